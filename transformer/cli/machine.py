"""What this machine and this environment have, as plain values; nothing but Python is needed to look."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.cpus import usable_cpus
from ..kernels import building
from .torch_facts import Torch, look_at_torch

DISTRIBUTION = "prepost-transformer"
GONE = "the current directory has been deleted"
DANGLING = "a link to what is not there"
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Package:
    """A dependency: the version that is there, if any, and the range that is asked for."""

    name: str
    installed: str | None
    wanted: str  # as `>=2.9`
    extra: str  # what asks for it; empty = nothing works without it
    error: str = ""  # why it cannot be imported


@dataclass(frozen=True)
class Place:
    """A directory that is written: where, bytes free, whether it can be, and why not."""

    what: str
    path: str
    free: int
    writable: bool
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """All that was found. Memory and disk in bytes."""

    python: tuple[int, int, int]
    system: str
    processor: str
    torch: Torch
    packages: tuple[Package, ...]  # none: the distribution is not installed
    compiler: str | None
    c_compiler: str | None
    nvidia: bool  # a driver for NVIDIA's GPUs is there
    cpus: int
    usable_cpus: int
    quota: float | None  # CPUs that a cgroup grants
    omp_threads: str | None
    memory: int
    memory_available: int
    memory_limit: int | None  # of a cgroup
    places: tuple[Place, ...]


def look(cache: Path) -> Facts:
    """Look at everything. `cache`: the directory of prepared data."""
    memory, available = _memory()
    quota, limit = cgroup_limits()
    torch = look_at_torch()
    return Facts(
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        system=platform.system(),
        processor=platform.machine(),
        torch=torch,
        packages=tuple(replace(p, error=torch.unusable.get(p.name, "")) for p in packages()),
        compiler=next(filter(None, map(shutil.which, _compilers())), None),
        c_compiler=" ".join(building.compiler()) if building.library() else None,
        nvidia=shutil.which("nvidia-smi") is not None,
        cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        quota=quota,
        omp_threads=os.environ.get("OMP_NUM_THREADS"),
        memory=memory,
        memory_available=available,
        memory_limit=limit,
        places=(
            place("current directory", Path()),
            place("data cache", cache),
            place("temporary files", _temporary()),
        ),
    )


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError:  # none can be written
        return Path("/tmp")


def _compilers() -> Iterator[str]:
    """C++ compilers, in torch.compile's order."""
    yield from filter(None, [os.environ.get("CXX")])
    yield from ("g++", "clang++", "c++")


def place(what: str, path: Path) -> Place:
    """A directory, or the nearest one above it that is there, since it would be made; tried by writing."""
    there, free = path, 0
    try:
        there = _absolute(path)
        nearest = _nearest(there)
        free = shutil.disk_usage(nearest).free
        with tempfile.TemporaryFile(dir=nearest, buffering=0) as file:
            file.write(b"x")
    except OSError as error:
        return Place(what, _name(path, there), free, writable=False, error=error.strerror or str(error))
    return Place(what, _name(path, there), free, writable=True)


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, GONE) from error


def _nearest(path: Path) -> Path:
    """The path, or what is above it and there; OSError where the rest cannot be made below that."""
    there = path
    while True:
        try:
            there.stat()
            break
        except FileNotFoundError:
            if there.is_symlink():
                raise FileNotFoundError(errno.ENOENT, DANGLING) from None
            if there == there.parent:  # a drive that is not there
                raise
            there = there.parent
    longest = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if any(len(os.fsencode(name)) > longest for name in path.relative_to(there).parts):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return there


def _name(path: Path, there: Path) -> str:
    """As it was given; the current directory by its name."""
    return str(path if path.name else there)


def packages() -> Iterator[Package]:
    """All that the toolkit depends on; nothing where it is not installed."""
    for requirement, extra in _requirements(Path(__file__).parents[2] / "pyproject.toml"):
        named = re.match(r"\s*([\w.-]+)\s*(?:\[[^]]*\])?\s*([^;]*)", requirement)
        assert named, requirement
        name, wanted = named.groups()
        if name != DISTRIBUTION:  # an extra that is made of other extras
            yield Package(name, _version(name), wanted.strip(), extra)


def _requirements(project: Path) -> Iterator[tuple[str, str]]:
    """Each requirement and its extra: from a checkout's file, since what was installed may be older."""
    if project.is_file() and sys.version_info >= (3, 11):
        tables = importlib.import_module("tomllib").loads(project.read_text(encoding="utf-8"))["project"]
        yield from ((requirement, "") for requirement in tables["dependencies"])
        for extra, requirements in tables["optional-dependencies"].items():
            yield from ((requirement, extra) for requirement in requirements)
        return
    try:
        installed = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in installed:
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        yield requirement, extra[1] if extra else ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> tuple[int, int]:
    """Bytes there are, and bytes that could be had now; the former twice where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return values["MemTotal"], values["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total


def cgroup_limits(root: Path = _CGROUPS, own: str | None = None) -> tuple[float | None, int | None]:
    """CPUs and bytes that this process's cgroups (version 2) grant; None where there is no limit."""
    if own is None:
        try:
            lines = Path("/proc/self/cgroup").read_text().splitlines()
            own = next((line[3:] for line in lines if line.startswith("0::")), "/")
        except OSError:
            own = "/"
    folder = root / own.strip("/")
    cpus, memory = [], []
    for each in (folder, *folder.parents):
        cpus += _limit(each / "cpu.max", lambda text: int(text.split()[0]) / int(text.split()[1]))
        memory += _limit(each / "memory.max", lambda text: float(int(text)))
        if each == root:
            break
    return min(cpus, default=None), int(min(memory)) if memory else None


def _limit(path: Path, read: Callable[[str], float]) -> list[float]:
    try:
        return [read(path.read_text())]
    except (OSError, ValueError, IndexError):  # no such limit, or the word `max`
        return []

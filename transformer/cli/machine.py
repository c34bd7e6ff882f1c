"""What this machine and this environment have, as plain values; nothing but Python is needed to look."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.cpus import usable_cpus

DISTRIBUTION = "prepost-transformer"
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Package:
    """A dependency: the version that is there, if any, and the range that is asked for."""

    name: str
    installed: str | None
    wanted: str  # as `>=2.9`
    extra: str  # what asks for it; empty = nothing works without it


@dataclass(frozen=True)
class Torch:
    """`error`: why it cannot be imported or cannot make one small update of a model; empty if it can."""

    version: str = ""
    error: str = ""
    cuda: str | None = None  # version it was built for
    gpus: tuple[str, ...] = ()
    capability: str = ""  # vector instructions that torch uses on this CPU
    reports: tuple[str, ...] = ()  # of AVX512-BF16 and AMX, those that the CPU has
    fast_bf16: bool = False
    onednn: bool = False


@dataclass(frozen=True)
class Place:
    """A directory that is written: where, bytes free, and whether it can be."""

    what: str
    path: str
    free: int
    writable: bool


@dataclass(frozen=True)
class Facts:
    """All that was found. Memory and disk in bytes."""

    python: tuple[int, int, int]
    system: str
    processor: str
    torch: Torch
    packages: tuple[Package, ...]  # none: the distribution is not installed
    compiler: str | None
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
    return Facts(
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        system=platform.system(),
        processor=platform.machine(),
        torch=_torch(),
        packages=tuple(packages()),
        compiler=next(filter(None, map(shutil.which, _compilers())), None),
        nvidia=shutil.which("nvidia-smi") is not None,
        cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        quota=quota,
        omp_threads=os.environ.get("OMP_NUM_THREADS"),
        memory=memory,
        memory_available=available,
        memory_limit=limit,
        places=(
            place("current directory", Path.cwd()),
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
    """A directory, or the nearest one above it that is there, since it would be made."""
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
        tempfile.TemporaryFile(dir=there).close()
    except OSError:
        return Place(what, str(path), free=_free(there), writable=False)
    return Place(what, str(path), free=free, writable=True)


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


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


def _torch() -> Torch:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        return Torch(error=_first_line(error))
    try:
        from ..modules.precision import fast_bf16
        from ..modules.products import has_onednn
        from .runs import pick_device

        device = pick_device("auto")
        return Torch(
            version=torch.__version__,
            error=_trial(device),
            cuda=torch.version.cuda,
            gpus=tuple(_gpus(torch.cuda.device_count())),
            capability=torch.backends.cpu.get_cpu_capability(),
            reports=tuple(_reports()),
            fast_bf16=fast_bf16(device),
            onednn=has_onednn(),
        )
    except Exception as error:
        return Torch(version=torch.__version__, error=_first_line(error))


def _gpus(count: int) -> Iterator[str]:
    import torch

    for number in range(count):
        found = torch.cuda.get_device_properties(number)
        memory = found.total_memory / 2**30
        yield f"{found.name}, {memory:.0f} GiB, compute capability {found.major}.{found.minor}"


def _reports() -> Iterator[str]:
    import torch

    for name, text in (("_is_avx512_bf16_supported", "AVX512-BF16"), ("_is_amx_tile_supported", "AMX")):
        if getattr(torch.cpu, name, lambda: False)():
            yield text


def _trial(device: object) -> str:
    """Why one update of a small model fails on the device; empty if it does not."""
    import torch

    from ..model.transformer import Transformer

    try:
        model = Transformer(8, 8, d_model=8, heads=2, d_ff=8, encoder_layers=1, decoder_layers=1)
        model.to(device)  # type: ignore[call-overload]
        ids = torch.tensor([[4, 5, 3]], device=model.output_weight.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(ids, ids).logsumexp(-1).sum().backward()
        optimizer.step()
        finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    except Exception as error:
        return _first_line(error)
    return "" if finite else "the weights are not finite after one update"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


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

"""python -m transformer doctor: under each condition the right finding, its remedy, and the exit code."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from transformer.cli import doctor, machine, torch_facts
from transformer.cli.doctor import examine
from transformer.cli.machine import (
    DANGLING,
    GONE,
    Facts,
    Package,
    Place,
    cgroup_limits,
    packages,
    place,
)
from transformer.cli.packages import EXTRAS, Finding
from transformer.cli.torch_facts import Torch
from transformer.core.versions import satisfies

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
SOUND = Facts(
    python=(3, 11, 7),
    system="Linux",
    processor="x86_64",
    torch=Torch("2.13.0+cpu", capability="AVX512", reports=("AVX512-BF16",), fast_bf16=True, onednn=True),
    packages=(
        Package("torch", "2.13.0+cpu", ">=2.9", ""),
        Package("numpy", "2.4.6", ">=1.26", ""),
        Package("matplotlib", "3.11.2", ">=3.8", "report"),
    ),
    compiler="/usr/bin/g++",
    c_compiler="/usr/bin/cc",
    nvidia=False,
    cpus=2,
    usable_cpus=2,
    quota=None,
    omp_threads=None,
    memory=24 * GIB,
    memory_available=20 * GIB,
    memory_limit=None,
    places=(
        Place("current directory", "/here", 40 * GIB, True),
        Place("data cache", ".cache", 40 * GIB, True),
        Place("temporary files", "/tmp", 40 * GIB, True),
    ),
)


def without(facts: Facts, name: str, installed: str | None) -> Facts:
    """The same with another version of a package, or none."""
    changed = tuple(replace(p, installed=installed) if p.name == name else p for p in facts.packages)
    return replace(facts, packages=changed)


def broken(facts: Facts, name: str) -> Facts:
    """The same with a package that is there and cannot be imported."""
    error = "ImportError: libx.so: cannot open shared object file"
    changed = tuple(replace(p, error=error) if p.name == name else p for p in facts.packages)
    return replace(facts, packages=changed)


def at(facts: Facts, what: str, **values: object) -> Facts:
    """The same with something else about a place."""
    return replace(
        facts,
        places=tuple(replace(p, **values) if p.what == what else p for p in facts.places),  # type: ignore[arg-type]
    )


def unwritable(what: str, error: str) -> Facts:
    return at(SOUND, what, writable=False, error=error)


def torch_with(**values: object) -> Facts:
    return replace(SOUND, torch=replace(SOUND.torch, **values))  # type: ignore[arg-type]


CONDITIONS: dict[str, tuple[Facts, str, str, str]] = {
    "old Python": (replace(SOUND, python=(3, 9, 1)), "python", "wrong", "3.10 or newer"),
    "another system": (replace(SOUND, system="Windows"), "system", "note", "WSL"),
    "no torch": (
        replace(SOUND, torch=Torch(error="ModuleNotFoundError: torch")),
        "torch",
        "wrong",
        "pip install",
    ),
    "torch that cannot compute": (
        torch_with(error="RuntimeError: CUDA error"),
        "trial",
        "wrong",
        "--device cpu",
    ),
    "torch that ends its process": (
        replace(SOUND, torch=Torch("2.13.0+cpu", error="the process ended with signal 4")),
        "trial",
        "wrong",
        "install torch anew",
    ),
    "a GPU without CUDA": (replace(SOUND, nvidia=True), "device", "note", "nvidia-smi"),
    "no bf16": (torch_with(fast_bf16=False, reports=()), "precision", "note", "auto"),
    "no oneDNN": (torch_with(onednn=False), "oneDNN", "note", "pytorch.org"),
    "no compiler": (replace(SOUND, compiler=None), "compiler", "note", "g++"),
    "no C compiler": (replace(SOUND, c_compiler=None), "C compiler", "note", "gcc"),
    "not installed": (replace(SOUND, packages=()), "packages", "note", "-e ."),
    "a package missing": (without(SOUND, "numpy", None), "packages", "wrong", "numpy>=1.26"),
    "a package too old": (without(SOUND, "torch", "2.8.1"), "packages", "wrong", "torch>=2.9"),
    "a package broken": (broken(SOUND, "numpy"), "packages", "wrong", "--force-reinstall"),
    "an extra broken": (broken(SOUND, "matplotlib"), "extra report", "note", "[report]"),
    "an extra missing": (without(SOUND, "matplotlib", None), "extra report", "note", "[report]"),
    "an extra too old": (without(SOUND, "matplotlib", "3.7"), "extra report", "note", "[report]"),
    "a quota": (replace(SOUND, quota=1.5), "cpus", "note", "train.threads=1"),
    "one thread by the environment": (replace(SOUND, omp_threads="1"), "threads", "note", "train.threads=2"),
    "little memory": (replace(SOUND, memory_available=GIB), "memory", "note", "batch_tokens"),
    "no memory": (replace(SOUND, memory_available=GIB // 8), "memory", "wrong", "batch_tokens"),
    "a small cgroup": (replace(SOUND, memory_limit=GIB // 4), "memory", "wrong", "batch_tokens"),
    "little disk": (at(SOUND, "data cache", free=GIB), "data cache", "note", "data.cache"),
    "a full disk": (at(SOUND, "current directory", free=0), "current directory", "wrong", "--run-dir"),
    "a cache that is read-only": (
        at(SOUND, "data cache", writable=False),
        "data cache",
        "wrong",
        "data.cache",
    ),
    "a directory that is gone": (unwritable("current directory", GONE), "current directory", "wrong", "cd"),
    "a dangling link": (unwritable("data cache", DANGLING), "data cache", "wrong", "delete the link"),
    "no file may grow": (
        unwritable("data cache", os.strerror(errno.EFBIG)),
        "data cache",
        "wrong",
        "ulimit -f unlimited",
    ),
    "a name that is too long": (
        unwritable("data cache", os.strerror(errno.ENAMETOOLONG)),
        "data cache",
        "wrong",
        "shorter",
    ),
    "no place for temporary files": (
        at(SOUND, "temporary files", writable=False),
        "temporary files",
        "wrong",
        "TMPDIR",
    ),
}


def run(monkeypatch: pytest.MonkeyPatch, facts: Facts, *argv: str) -> int:
    monkeypatch.setattr(doctor, "look", lambda cache: facts)
    return doctor.main(argv)


def test_where_all_is_well_nothing_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {(finding.state, finding.remedy) for finding in examine(SOUND)} == {("ok", "")}
    assert run(monkeypatch, SOUND) == 0
    assert capsys.readouterr().out.endswith("\ntraining is possible\n")


@pytest.mark.parametrize("name", CONDITIONS)
def test_each_condition_has_its_finding_its_remedy_and_its_exit_code(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, topic, state, remedy = CONDITIONS[name]
    poor = [finding for finding in examine(facts) if finding.state != "ok"]
    assert [(finding.topic, finding.state) for finding in poor] == [(topic, state)]
    assert remedy in poor[0].remedy
    assert run(monkeypatch, facts) == (1 if state == "wrong" else 0)
    text = capsys.readouterr().out
    assert f"\n{'':<26}-> {poor[0].remedy}" in text
    assert ("training is not possible: " + topic in text) == (state == "wrong")
    assert run(monkeypatch, facts, "--json") == (1 if state == "wrong" else 0)
    told = json.loads(capsys.readouterr().out)
    assert told["can_train"] == (state != "wrong")
    assert [Finding(**finding) for finding in told["findings"]] == examine(facts)


def test_what_auto_precision_takes_is_told_with_its_reason() -> None:
    def words(facts: Facts) -> str:
        return next(finding.found for finding in examine(facts) if finding.topic == "precision")

    assert re.search(
        r"auto takes bf16.*AVX512-BF16 and AMX", words(torch_with(reports=("AVX512-BF16", "AMX")))
    )
    assert "auto takes float32" in words(torch_with(fast_bf16=False, reports=()))
    assert "bf16: the GPU" in words(torch_with(gpus=("H200, 140 GiB, compute capability 9.0",)))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *(
            (value, "is no number of threads")
            for value in ("²", "1" * 5000, "0" * 5000 + "1", "0", "-1", "a")
        ),
        *((value, "keeps torch from using") for value in ("1", " 01 ", "1,4")),
        *((value, None) for value in ("2", "2,1", "", None)),
    ],
    ids=lambda value: str(value)[:9],
)
def test_a_number_of_threads_is_read_as_openmp_does(value: str | None, said: str | None) -> None:
    poor = [finding for finding in examine(replace(SOUND, omp_threads=value)) if finding.state != "ok"]
    assert [finding.topic for finding in poor] == (["threads"] if said else [])
    for finding in poor:
        assert said
        assert said in finding.found
        assert len(finding.found) < 80
        assert "unset it" in finding.remedy


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_the_console_cannot_show_are_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = io.BytesIO()
    with io.TextIOWrapper(told, encoding=encoding) as console:
        monkeypatch.setattr(sys, "stdout", console)
        assert run(monkeypatch, at(SOUND, "data cache", path="\udcff/é")) == 0
        assert b"\\udcff/" in told.getvalue()


def test_a_torch_that_ends_its_process_is_a_finding_among_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = "import os, sys\nprint('no such instruction', file=sys.stderr, flush=True)\nos.abort()\n"
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor.main([]) == 1
    told = capsys.readouterr().out
    assert re.search(r"^wrong +torch +.* signal 6 .*: no such instruction\n +-> ", told, re.MULTILINE)
    assert "temporary files" in told


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os\nos._exit(0)", "exit code 0"),
        ("import os\nprint('{a site may greet}', flush=True)\nos._exit(0)", "exit code 0"),
        ("import time\ntime.sleep(60)", "did not answer within 2 seconds"),
    ],
)
def test_a_torch_that_tells_nothing_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, said: str
) -> None:
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch_facts, "LONGEST", 2 if "sleep" in code else 300)
    found = torch_facts.look_at_torch()
    assert said in found.error
    assert not found.version


@pytest.mark.parametrize(
    ("package", "error"),
    [("tensorboard", "TypeError"), pytest.param("sentencepiece", "ImportError", marks=pytest.mark.slow)],
)
def test_a_package_that_cannot_be_imported_is_a_finding_and_no_traceback(
    package: str,
    error: str,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise {error}('descriptors of another version')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor.main([]) == (0 if package == "tensorboard" else 1)
    told = capsys.readouterr().out
    state = "note" if package == "tensorboard" else "wrong"
    finding = rf"{state} +packages +{package} cannot be imported \({error}: descriptors of .*\).*\n"
    assert re.search(rf'^{finding} +-> pip install --force-reinstall "{package}', told, re.MULTILINE)
    words = [sys.executable, "train.py", config, "--run-dir", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert "Traceback" not in done.stderr
    if package == "tensorboard":
        assert done.returncode == 0
        assert "events cannot be written (TypeError: descriptors of another version)" in done.stderr
    else:
        assert done.returncode == 1
        assert "`python -m transformer doctor` says what is missing" in done.stderr


@pytest.mark.parametrize(
    ("package", "code", "said"),
    [
        pytest.param(
            "matplotlib",
            "import os\nos.abort()",
            r"note +extra report +.* signal 6 ",
            marks=pytest.mark.slow,
        ),
        ("matplotlib", "raise SystemExit(0)", r"note +extra report +.*SystemExit"),
        pytest.param(
            "matplotlib",
            "import os\nos._exit(0)",
            r"note +extra report +.* exit code 0",
            marks=pytest.mark.slow,
        ),
        ("typing_extensions", "raise ValueError('cut short')", r"wrong +packages +typing_ext.*cut short"),
    ],
)
def test_a_package_that_ends_the_process_or_torch_with_it_is_named(
    package: str,
    code: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / f"{package}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor.main([]) == int("wrong" in said)
    told = capsys.readouterr().out
    assert re.search(f"^{said}", told, re.MULTILINE), told
    assert ("one update of a small model works" in told) == (package == "matplotlib")
    assert ("mend first what is said of packages" in told) == (package != "matplotlib")


def test_a_torch_that_cannot_be_tried_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert "no process" in torch_facts.look_at_torch().error


def test_a_deleted_directory_is_a_finding_and_torch_is_tried_from_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """MKL ends a process whose directory is gone."""
    code = "import os\ntry: os.getcwd()\nexcept OSError: os._exit(2)\nraise ImportError('all is there')\n"
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert doctor.main([]) == 1
    told = capsys.readouterr().out
    assert "all is there" in told
    for topic in ("current directory", "data cache"):
        assert re.search(rf"^wrong +{topic} .*deleted\n +-> change to a directory", told, re.MULTILINE)


@pytest.mark.usefixtures("starts_warm")
def test_this_machine_can_be_looked_at(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = doctor.main(["--json", "--cache", str(tmp_path / "made" / "later")])
    told = json.loads(capsys.readouterr().out)
    assert code == 0, told
    topics = [finding["topic"] for finding in told["findings"]]
    assert {
        "python",
        "torch",
        "trial",
        "device",
        "precision",
        "compiler",
        "C compiler",
        "memory",
        "data cache",
    } <= set(topics)
    assert told["facts"]["places"][1]["writable"]
    assert not (tmp_path / "made").exists()


def test_the_trial_fails_where_an_update_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_facts._trial("cpu") == ""
    assert "no such device" in torch_facts._trial("no such device") or "Expected" in torch_facts._trial(
        "no such device"
    )


def test_the_dependencies_are_those_of_the_project() -> None:
    asked = {p.name for p in packages() if p.extra not in ("test", "dev")}
    assert asked == {"torch", *torch_facts.IMPORTS}, "each is tried by importing it"
    named = {(package.name, package.extra): package for package in packages()}
    assert named["torch", ""].wanted == ">=2.9"
    assert named["matplotlib", "report"].wanted == ">=3.8"
    assert {extra for _, extra in named if extra} == set(EXTRAS)
    assert all(package.wanted for (name, _), package in named.items() if not name.startswith("types-"))
    assert all(satisfies("999", package.wanted) for package in named.values())


def test_an_installed_toolkit_without_a_checkout_tells_its_dependencies_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = [
        "torch>=2.9",
        'matplotlib>=3.8; extra == "report"',
        "x[a]>=1,<2; python_version > \"3\" and extra == 'y'",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: told)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert [(p.name, p.wanted, p.extra) for p in packages()] == [
        ("torch", ">=2.9", ""),
        ("matplotlib", ">=3.8", "report"),
        ("x", ">=1,<2", "y"),
    ]


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.13.0+cpu", ">=2.9", True),
        ("2.9", ">=2.9.0", True),
        ("2.8.9", ">=2.9", False),
        ("2.9.0rc1", ">=2.9", True),
        ("3.0", ">=2.9,<3", False),
        ("2.10", ">=2.9,<3", True),
        ("1.2.3", "==1.2.3", True),
        ("1.2.3", "!=1.2.3", False),
        ("anything", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, wanted: str, fits: bool) -> None:
    assert satisfies(version, wanted) == fits


def test_limits_of_control_groups_are_found_on_the_way_up(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert cgroup_limits(tmp_path, "/a/b") == (None, None)
    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text("4096\n")
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "memory.max").write_text("1024\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup_limits(tmp_path, "/a/b") == (1.5, 1024)
    assert cgroup_limits(tmp_path, "/") == (None, None)


def test_a_place_is_tried_by_writing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert place("cache", tmp_path / "not" / "yet").writable
    assert not place("cache", tmp_path / "file" / "below").writable
    assert place("cache", tmp_path).free > 0
    assert not list(tmp_path.glob("tmp*"))


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process may become larger."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def nobody() -> Iterator[None]:
    """Not root, who may enter every directory."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_why_a_place_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 5 * GIB  # the disk's own changes while others write to it
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with nobody():
        refused = place("cache", closed / "a" / "b")
    closed.chmod(0o700)
    assert (refused.writable, refused.error) == (False, os.strerror(errno.EACCES))
    long = "a" * 300
    for path in (tmp_path / long, tmp_path / "not" / long / "yet"):
        assert place("cache", path).error == os.strerror(errno.ENAMETOOLONG)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at all")
    for path in (tmp_path / "link", tmp_path / "link" / "below"):
        assert place("cache", path).error == DANGLING
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert place("cache", tmp_path / "loop").error == os.strerror(errno.ELOOP)
    with limited(0):
        full = place("cache", tmp_path)
    assert full == Place("cache", str(tmp_path), free, False, os.strerror(errno.EFBIG))
    assert place("cache", tmp_path) == Place("cache", str(tmp_path), free, True)


@pytest.mark.parametrize(("command", "code"), [("doctor", 1), ("train", 1)])
def test_without_torch_there_is_a_message(command: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "transformer", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=60,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    if command == "doctor":
        assert re.search(r"^wrong +torch +cannot be imported.*\n +-> pip install", done.stdout, re.MULTILINE)
    else:
        assert "`python -m transformer doctor` says what is missing" in done.stderr


def test_a_wrong_flag_is_the_command_line_s_fault() -> None:
    for words, code in ((["--nothing"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as caught:
            doctor.main(words)
        assert caught.value.code == code

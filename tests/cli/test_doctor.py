"""python -m transformer doctor: under each condition the right finding, its remedy, and the exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from transformer.cli import doctor, machine
from transformer.cli.doctor import EXTRAS, Finding, examine
from transformer.cli.machine import Facts, Package, Place, Torch, cgroup_limits, packages, place
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


def at(facts: Facts, what: str, **values: object) -> Facts:
    """The same with something else about a place."""
    return replace(
        facts,
        places=tuple(replace(p, **values) if p.what == what else p for p in facts.places),  # type: ignore[arg-type]
    )


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
    "a GPU without CUDA": (replace(SOUND, nvidia=True), "device", "note", "nvidia-smi"),
    "no bf16": (torch_with(fast_bf16=False, reports=()), "precision", "note", "auto"),
    "no oneDNN": (torch_with(onednn=False), "oneDNN", "note", "pytorch.org"),
    "no compiler": (replace(SOUND, compiler=None), "compiler", "note", "g++"),
    "not installed": (replace(SOUND, packages=()), "packages", "note", "-e ."),
    "a package missing": (without(SOUND, "numpy", None), "packages", "wrong", "numpy>=1.26"),
    "a package too old": (without(SOUND, "torch", "2.8.1"), "packages", "wrong", "torch>=2.9"),
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


def test_this_machine_can_be_looked_at(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = doctor.main(["--json", "--cache", str(tmp_path / "made" / "later")])
    told = json.loads(capsys.readouterr().out)
    assert code == 0, told
    topics = [finding["topic"] for finding in told["findings"]]
    assert {"python", "torch", "trial", "device", "precision", "compiler", "memory", "data cache"} <= set(
        topics
    )
    assert told["facts"]["places"][1]["writable"]
    assert not (tmp_path / "made").exists()


def test_the_trial_fails_where_an_update_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._trial("cpu") == ""
    assert "no such device" in machine._trial("no such device") or "Expected" in machine._trial(
        "no such device"
    )


def test_the_dependencies_are_those_of_the_project() -> None:
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


@pytest.mark.parametrize(("command", "code"), [("doctor", 1), ("train", 1)])
def test_without_torch_there_is_a_message(command: str, code: int) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; from transformer.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command], capture_output=True, text=True, cwd=ROOT, timeout=60
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

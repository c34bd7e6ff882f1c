"""The runner, with trainings that are a few lines of Python; locks, signals, and what is never run twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import transformer.cli.study as command_module
from transformer.cli.config import Config
from transformer.core.errors import ConfigError
from transformer.core.loading import load
from transformer.studies import runner
from transformer.studies.cells import Cell
from transformer.studies.estimate import estimate
from transformer.studies.locks import holder, take
from transformer.studies.runner import Slots, command_of, environment, lock_of, log_of, run, threads_of

# A training that takes a while, ends well when it is let, and saves when it is asked to end.
TRAINING = """
import json, os, pathlib, signal, sys, time
run, seconds, code = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
run.mkdir(parents=True, exist_ok=True)
(run / "config.yaml").write_text("{}")
def end(status, code):
    (run / "result.json").write_text(json.dumps({"status": status, "test": {}}))
    with open(run / "times", "a") as times:
        times.write(f"{begun} {time.monotonic()} {os.environ['OMP_NUM_THREADS']}\\n")
    sys.exit(code)
begun = time.monotonic()
signal.signal(signal.SIGTERM, lambda *_: end("interrupted", 130))
(run / "begun").touch()
print("a line", file=sys.stderr)
time.sleep(seconds)
if code in (0, 3):
    end({0: "completed", 3: "diverged"}[code], code)
sys.exit(code)
"""


def cells_of(folder: Path, *names: str) -> list[Cell]:
    return [Cell(name, {}, folder / "study" / "cells" / name, 1, {}) for name in names]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say how long trainings take, and how the named ones end."""

    def becomes(seconds: float = 0.0, **codes: int) -> None:
        def command(cell: Cell, resume: bool, device: str, threads: int) -> list[str]:
            code = str(codes.get(cell.name, 0))
            return [sys.executable, "-S", "-c", TRAINING, str(cell.run_dir), str(seconds), code]

        monkeypatch.setattr(runner, "command_of", command)

    return becomes


def times(cells: list[Cell]) -> list[tuple[float, float]]:
    lines = [line.split() for cell in cells for line in (cell.run_dir / "times").read_text().splitlines()]
    return sorted((float(begun), float(ended)) for begun, ended, _ in lines)


def test_cells_end_as_their_trainings_say_and_are_not_run_again(
    tmp_path: Path, training: Callable[..., None]
) -> None:
    cells = cells_of(tmp_path, "good", "bad")
    training(bad=3)
    assert run(cells, Slots(("cpu",), 1), print).ends == {"good": "completed", "bad": "diverged"}
    before = times(cells)
    said: list[str] = []
    assert run(cells, Slots(("cpu",), 1), said.append).ends == {"good": "completed", "bad": "diverged"}
    assert times(cells) == before
    assert said == []


def test_a_cell_that_fails_leaves_the_others_alone_and_is_tried_again(
    tmp_path: Path, training: Callable[..., None]
) -> None:
    cells = cells_of(tmp_path, "broken", "good")
    training(broken=1)
    summary = run(cells, Slots(("cpu",), 1), print)
    assert summary.ends["good"] == "completed"
    assert list(summary.failed) == ["broken"]
    assert "exit code 1: a line" in summary.failed["broken"]
    assert str(log_of(cells[0])) in summary.failed["broken"]
    training()
    assert run(cells, Slots(("cpu",), 1), print).failed == {}


@pytest.mark.parametrize("jobs", [1, 2])
def test_as_many_cells_run_side_by_side_as_there_are_places(
    tmp_path: Path, training: Callable[..., None], jobs: int
) -> None:
    cells = cells_of(tmp_path, "a", "b", "c", "d")
    training(seconds=0.3)
    run(cells, Slots(("cpu",) * jobs, 1), print)
    spans = times(cells)
    together = max(sum(begun <= at < ended for begun, ended in spans) for at, _ in spans)
    assert together == jobs


def test_two_runners_share_a_study_and_run_each_cell_once(
    tmp_path: Path, training: Callable[..., None]
) -> None:
    cells = cells_of(tmp_path, "a", "b", "c", "d")
    training(seconds=0.3)
    ends: list[dict[str, str]] = []
    runners = [
        threading.Thread(target=lambda: ends.append(run(cells, Slots(("cpu",), 1), print).ends))
        for _ in range(2)
    ]
    for one in runners:
        one.start()
    for one in runners:
        one.join(60)
    assert ends == [dict.fromkeys("abcd", "completed")] * 2, "each returns when the whole study is done"
    assert len(times(cells)) == 4


def test_a_signal_ends_the_trainings_which_save_and_the_rest_waits(
    tmp_path: Path, training: Callable[..., None]
) -> None:
    cells = cells_of(tmp_path, "a", "b", "c")
    training(seconds=30)

    def stop() -> None:
        while not all((cell.run_dir / "begun").exists() for cell in cells[:2]):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    summary = run(cells, Slots(("cpu", "cpu"), 1), print)
    assert summary.interrupted == "SIGTERM"
    assert summary.ends == {"a": "interrupted", "b": "interrupted"}
    training()
    assert set(run(cells, Slots(("cpu",), 1), print).ends.values()) == {"completed"}


def test_a_lock_is_held_once_says_by_whom_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "cell.lock"
    code = (
        "import sys, time; from pathlib import Path; from transformer.studies.locks import take;"
        "assert take(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(1))
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert take(path) is None
    assert f"process {other.pid} on " in holder(path)
    other.kill()
    other.wait()
    other.stdout.close()
    lock = take(path)
    assert lock is not None, "what a killed process held is free"
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


def test_a_training_that_outlives_its_runner_keeps_its_cell(
    tmp_path: Path, training: Callable[..., None]
) -> None:
    (cell,) = cells_of(tmp_path, "a")
    training(seconds=1.0)
    lock = take(lock_of(cell))
    assert lock is not None
    job = runner._start(cell, False, "cpu", Slots(("cpu",), 1), lock)
    lock.release()  # as the system does when the runner is killed
    assert take(lock_of(cell)) is None
    assert f"training in process {job.process.pid}" in holder(lock_of(cell))
    assert run([cell], Slots(("cpu",), 1), print).ends == {"a": "completed"}, "waited for, and not run again"
    assert len(times([cell])) == 1
    job.process.wait()


def test_places_share_the_cores_and_threads_of_the_configuration_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "cores", lambda: 8)
    assert Slots.of(None, "cpu") == Slots(("cpu",), 8)
    assert Slots.of(3, "cpu") == Slots(("cpu",) * 3, 2)
    assert Slots.of(20, "cpu").threads == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Slots.of(None, "auto") == Slots(("cuda:0", "cuda:1"), 4)
    assert Slots.of(3, "cuda").devices == ("cuda:0", "cuda:1", "cuda:0")
    assert Slots.of(2, "cuda:1").devices == ("cuda:1", "cuda:1")
    with pytest.raises(ConfigError, match="there are 2 CUDA devices"):
        Slots.of(None, "cuda:2")
    (cell,) = cells_of(tmp_path, "a")
    assert command_of(cell, False, "cpu", 3)[-1] == "train.threads=3"
    assert command_of(cell, True, "cpu", 3)[3:6] == ["train", "--resume", str(cell.run_dir)]
    assert environment(3)["OMP_NUM_THREADS"] == "3"
    own = replace(cell, config=load(Config, None, ["train.threads=1"]))
    assert command_of(own, False, "cpu", 3)[-1] == "train.threads=1"
    assert (threads_of(own, 3), threads_of(cell, 3)) == (1, 3)


@pytest.mark.usefixtures("starts_warm")
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_submitit_runs_cells_in_its_local_mode(number: int, tmp_path: Path, folder: Path) -> None:
    from transformer.cli.resolve import new_config
    from transformer.studies.cells import plan
    from transformer.studies.config import load_study
    from transformer.studies.launch import launch

    cells = plan(load_study(folder / "study.yaml"), new_config, tmp_path / "runs")[:number]
    jobs = launch(cells, "local", tmp_path / "jobs", {"timeout_min": 5}, "cpu")
    assert [job.result() for job in jobs.values()] == ["completed"] * number
    assert not [path for path in (tmp_path / "jobs").rglob("*") if "%" in path.name]
    with pytest.raises(ConfigError, match="launch-set"):
        launch(cells, "local", tmp_path / "jobs", {"no_such": 1})


Done = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Say with which Python statement every training of the real study ends at once."""

    def becomes(statement: str) -> None:
        words = [sys.executable, "-S", "-c", f"import os, signal, sys, time; {statement}"]
        monkeypatch.setattr(runner, "command_of", lambda *_: words)

    return becomes


ENDINGS = ["sys.exit(1)", "sys.exit(130)", "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"]


@pytest.mark.parametrize("statement", ENDINGS)
@pytest.mark.parametrize("half", [True, False])
def test_a_study_with_unfinished_cells_ends_with_code_1_and_says_which(
    folder: Path,
    done: Done,
    tmp_path: Path,
    ending: Callable[[str], None],
    statement: str,
    half: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if half:  # the other cell is finished
        name = "small/cells/post-seed1"
        shutil.copytree(done[0] / name, tmp_path / name)
    ending(statement)
    assert command_module.main([str(folder / "study.yaml"), "--runs", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "\npre-seed1: " in told
    assert ("1 of 2 cells are missing: pre-seed1" if half else "no report: no cell") in told


def test_a_report_that_cannot_be_made_after_a_run_is_said(
    folder: Path, done: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(command_module, "find_spec", lambda _: None)
    words = [str(folder / "study.yaml"), "--runs", str(done[0])]
    assert command_module.main(words) == 1
    assert "no report: " in capsys.readouterr().err


def test_cells_that_are_trained_are_not_launched_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handed: list[str] = []

    def record(cells: list[Cell], *_: Any) -> dict[str, Any]:
        assert cells
        handed.extend(cell.name for cell in cells)
        return {}

    monkeypatch.setattr(command_module, "launch", record)
    words = [str(folder / "study.yaml"), "--runs", str(tmp_path), "--launch", "local"]
    locks = [take(tmp_path / "small" / "locks" / f"{name}-seed1.lock") for name in ("post", "pre")]
    assert command_module.main(words) == 0
    told = capsys.readouterr().err
    assert handed == []
    assert "nothing to launch" in told
    assert "post-seed1: not launched, it is with process" in told
    locks[0].release()  # type: ignore[union-attr]
    assert command_module.main(words) == 0
    assert handed == ["post-seed1"]
    locks[1].release()  # type: ignore[union-attr]


def test_a_missing_scheduler_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [str(folder / "study.yaml"), "--runs", str(tmp_path), "--launch", "slurm"]
    assert command_module.main(words) == 2
    assert "--launch slurm: Could not detect" in capsys.readouterr().err


def test_parameters_of_a_launch_are_for_a_launch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_module.main([str(folder / "study.yaml"), "--launch-set", "timeout_min=5"]) == 2
    assert "--launch-set is for --launch" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["\u00b2/3", "1/\u0663", "1", "1/2/3", "-1/2", "/"])
def test_a_part_that_cannot_be_read_is_told(
    folder: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_module.main([str(folder / "study.yaml"), f"--shard={text}", "--dry-run"]) == 2
    assert "give i/n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *((each, "give a whole number from 1 on") for each in ("0", "-1", "two")),
        *((each, "at most 256") for each in ("257", "9" * 5000)),
    ],
)
def test_a_number_of_jobs_that_makes_no_sense_is_told(
    text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_module.main(["study.yaml", f"--jobs={text}"])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_an_estimate_counts_what_a_training_takes_around_its_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(json.dumps({"update": n, "seconds": n * 0.001}) + "\\n" for n in (2, 8))
    code = (
        "import pathlib, sys, time; time.sleep(0.5); run = pathlib.Path(sys.argv[1]); run.mkdir();"
        f"(run / 'metrics.jsonl').write_text('{lines}')"
    )
    monkeypatch.setattr(
        "transformer.studies.estimate.command_of",
        lambda cell, *_: [sys.executable, "-S", "-c", code, str(cell.run_dir)],
    )
    config = load(Config, None, ["train.updates=10"])
    cells = [replace(cell, config=config) for cell in cells_of(tmp_path, "a", "b", "c", "d")]
    found = estimate(cells, dict.fromkeys("abcd", "new"), Slots(("cpu",), 1))  # type: ignore[arg-type]
    assert found.seconds is not None
    assert found.seconds > 4 * 0.5
    assert "for each cell to start and to end" in found.how

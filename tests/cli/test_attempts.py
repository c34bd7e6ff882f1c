"""torchrun's attempts at one job: what the job began goes on, what was there before is not taken for it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transformer.cli.conclude import exit_code
from transformer.cli.hold import held
from transformer.cli.room import put_aside, room
from transformer.cli.train import main as train
from transformer.core.rundir import JOB
from transformer.training.ranks import RankLost, open_ranks
from transformer.training.trainer import Trainer

Attempt = Callable[..., None]


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """Make this process the only one of a torchrun's attempt of that number, counted from 0."""

    def begin(number: int, torchrun: str = "none_a") -> None:
        file = f"/tmp/torchelastic_b/{torchrun}/attempt_{number}/0/error.json"
        told = {"RUN_ID": "none", "RESTART_COUNT": number, "ERROR_FILE": file}
        for name, value in {"RANK": 0, "WORLD_SIZE": 1}.items():
            monkeypatch.setenv(name, str(value))
        for name, value in told.items():
            monkeypatch.setenv(f"TORCHELASTIC_{name}", str(value))

    return begin


def copied(run: Path, place: Path) -> Path:
    shutil.copytree(run, place)
    return place


def updates(run: Path) -> int:
    return int(json.loads((run / "result.json").read_text())["updates"])


def lost(*_: object, **__: object) -> None:
    raise RankLost("rank 1 was killed")


def test_a_run_that_was_there_before_is_refused_in_every_attempt(
    run: Path, config: str, tmp_path: Path, attempt: Attempt
) -> None:
    old = copied(run, tmp_path / "old")
    before = (old / "log.txt").read_bytes()
    for number in range(3):
        attempt(number)
        assert train([config, "--run-dir", str(old)]) == 2
    assert (old / "log.txt").read_bytes() == before


def test_an_overwrite_that_is_lost_while_it_prepares_is_tried_again(
    run: Path, config: str, tmp_path: Path, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old run, which has the same configuration and is put back, is not the job's."""
    old = copied(run, tmp_path / "old")
    command = [config, "--run-dir", str(old), "--overwrite", "--set", "train.updates=1"]
    attempt(0)
    with monkeypatch.context() as patch:
        patch.setattr("transformer.cli.train.prepare", lost)
        assert train(command) == 1
    assert updates(old) == 10
    attempt(1)
    assert train(command) == 0
    assert updates(old) == 1
    assert not put_aside(old)


def test_an_overwrite_that_is_killed_just_before_it_trains_is_tried_again(
    run: Path, config: str, tmp_path: Path, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the new run needs is laid out, and the old one still put aside."""
    old = copied(run, tmp_path / "old")
    attempt(0)
    dead = room(old, overwrite=True)
    dead.__enter__()
    for name in ("config.yaml", "tokenizer"):
        (shutil.copytree if name == "tokenizer" else shutil.copy)(run / name, old / name)
    with open_ranks(torch.device("cpu")) as ranks:
        (old / JOB).write_text(ranks.job)
    command = [config, "--run-dir", str(old), "--overwrite", "--set", "train.updates=1"]
    attempt(1)
    with monkeypatch.context() as patch:
        patch.setattr("transformer.cli.train.prepare", lost)
        assert train(command) == 1
    assert updates(old) == 10, "it is there until another one trains"
    attempt(2)
    assert train(command) == 0
    assert updates(old) == 1
    dead.gen.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_what_the_job_began_goes_on(
    flags: list[str], config: str, tmp_path: Path, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, step = tmp_path / "run", Trainer.step

    def dying(trainer: Trainer, batches: Any) -> None:
        if trainer.progress.update == 7:
            lost()
        step(trainer, batches)

    command = [config, "--run-dir", str(ours), *flags]
    attempt(0)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dying)
        assert train(command) == 1
    attempt(1)
    assert train(command) == 0
    assert "resumed after update 5" in (ours / "log.txt").read_text()
    assert updates(ours) == 10


def test_another_torchrun_is_another_job(
    run: Path, config: str, tmp_path: Path, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = copied(run, tmp_path / "run")
    attempt(0)
    assert train(["--resume", str(ours)]) == 0
    attempt(1, "none_c")
    assert train([config, "--run-dir", str(ours)]) == 2
    attempt(1)
    (ours / JOB).write_text("none another 1 2\n" + (ours / JOB).read_text())  # of another machine
    assert train([config, "--run-dir", str(ours)]) == 0


MACHINES = {
    "replaced, one after the other": (["anew\nother", "anew\nlast"], "anew\nlast\none\nother"),
    "gone, and back when the last one goes": (["one", "other"], "one\nother"),
}


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
@pytest.mark.parametrize("case", MACHINES)
def test_a_job_is_the_same_with_other_machines(
    case: str,
    flags: list[str],
    run: Path,
    config: str,
    tmp_path: Path,
    attempt: Attempt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where an attempt is lost before the run is loaded."""
    ours, (jobs, signed) = copied(run, tmp_path / "run"), MACHINES[case]
    (ours / JOB).write_text("one\nother")
    for number, (job, code) in enumerate(zip(jobs, (1, 0), strict=True)):
        attempt(number)
        with monkeypatch.context() as patch:
            patch.setattr("transformer.training.ranks.job_of", lambda _, job=job: job)
            if code:
                patch.setattr("transformer.cli.train.prepare", lost)
            assert train([config, "--run-dir", str(ours), *flags]) == code
    assert (ours / JOB).read_text() == signed
    assert "resumed after update 10" in (ours / "log.txt").read_text()


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_an_attempt_that_does_not_know_its_job_overwrites_nothing(
    flags: list[str],
    run: Path,
    config: str,
    tmp_path: Path,
    attempt: Attempt,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = copied(run, tmp_path / "run")
    before = (ours / "log.txt").read_bytes()
    attempt(1)
    monkeypatch.setattr("transformer.training.ranks.job_of", lambda _: "")
    assert train([config, "--run-dir", str(ours), *flags]) == 2
    assert ("hand TORCHELASTIC_ERROR_FILE on" in capsys.readouterr().err) == bool(flags)
    assert (ours / "log.txt").read_bytes() == before
    attempt(0)
    assert train([config, "--run-dir", str(ours), "--overwrite", "--set", "train.updates=1"]) == 0


def test_an_attempt_waits_for_the_lock_of_the_one_before(
    run: Path, config: str, tmp_path: Path, attempt: Attempt
) -> None:
    """Also on a machine that has taken another one's place, whose torchrun counts from 0."""
    ours = copied(run, tmp_path / "run")
    attempt(0)
    assert train(["--resume", str(ours)]) == 0
    locked = threading.Event()

    def lock() -> None:
        with held(ours):
            locked.set()
            time.sleep(1.0)

    before = threading.Thread(target=lock)
    before.start()
    locked.wait()
    assert train([config, "--run-dir", str(ours)]) == 0
    before.join()


def test_a_run_that_has_diverged_is_not_tried_again_also_when_it_was_resumed(
    run: Path, config: str, tmp_path: Path, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, tried = copied(run, tmp_path / "run"), []
    (ours / "result.json").write_text('{"status": "diverged", "reason": "too fast"}')
    monkeypatch.setattr("transformer.cli.train.train", lambda *_: tried.append(1) or 3)
    attempt(0)
    assert train(["--resume", str(ours)]) == 3
    assert len(tried) == 1, "it diverged earlier, and it was asked for"
    with open_ranks(torch.device("cpu")) as ranks:
        (ours / JOB).write_text(ranks.job)
    attempt(1)
    for command in (["--resume", str(ours)], [config, "--run-dir", str(ours)]):
        assert train(command) == 3
    assert len(tried) == 1


def test_a_start_without_torchrun_takes_the_run_from_the_job(
    run: Path, tmp_path: Path, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = copied(run, tmp_path / "run")
    with monkeypatch.context() as patch:
        attempt(0)
        assert train(["--resume", str(ours)]) == 0
        assert (ours / JOB).is_file()
        patch.undo()
    for name in list(os.environ):
        if name.startswith("TORCHELASTIC_"):
            monkeypatch.delenv(name)
    assert train(["--resume", str(ours)]) == 0
    assert not (ours / JOB).exists()


def test_a_saved_interruption_is_no_failure_to_torchrun(attempt: Attempt) -> None:
    """It would start all anew, and train on."""
    assert [exit_code(each) for each in ("completed", "diverged", "interrupted")] == [0, 3, 130]
    attempt(0)
    assert [exit_code(each) for each in ("completed", "diverged", "interrupted")] == [0, 3, 0]

"""Signals before, while and after a run is trained: each is one request, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import transformer.cli.hold as hold_module
import transformer.cli.train as train_module
from transformer.cli.train import main as train
from transformer.core.rundir import JOB
from transformer.training.logbook import Logbook
from transformer.training.trainer import Trainer

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_data_is_prepared_is_an_interruption(
    number: int, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        monkeypatch.setattr("transformer.cli.train.prepare", lambda *_: signal.raise_signal(number))
        assert train([config, "--run-dir", str(tmp_path / "run")]) == 130
        assert capsys.readouterr().err.endswith("interrupted\n")
        assert not (tmp_path / "run" / "run.lock").exists()
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_sigterm_at_the_end_stops_at_once_and_the_run_can_end_again(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish", lambda _: signal.raise_signal(signal.SIGTERM))
        assert train([config, "--run-dir", str(run)]) == 130
    assert train(["--resume", str(run)]) == 0
    assert json.loads((run / "result.json").read_text())["status"] == "completed"


def signalling(
    patch: pytest.MonkeyPatch, owner: object, name: str, number: int = signal.SIGTERM
) -> list[str]:
    """Before this is called a signal comes, the first time."""
    called, before = [], getattr(owner, name)

    def after_signal(*given: object, **named: object) -> object:
        if not called:
            called.append(name)
            signal.raise_signal(number)
        return before(*given, **named)

    patch.setattr(owner, name, after_signal)
    return called


@pytest.fixture
def interrupted(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of torchrun's that a signal ended."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with monkeypatch.context() as patch:
        signalling(patch, Trainer, "step")
        assert train([config, "--run-dir", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


STARTING = [(train_module, "prepare"), (Trainer, "resume"), (train_module, "_lay_out"), (Trainer, "_begin")]


@pytest.mark.parametrize(("owner", "name"), STARTING)
def test_a_signal_while_a_run_of_torchruns_is_resumed_ends_it_with_0(
    owner: object, name: str, interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchrun would start it anew after any other code, to train on."""
    updates = json.loads((interrupted / "result.json").read_text())["updates"]
    with monkeypatch.context() as patch:
        called = signalling(patch, owner, name)
        assert train(["--resume", str(interrupted)]) == 0
    assert called
    result = json.loads((interrupted / "result.json").read_text())
    assert (result["status"], result["updates"]) == ("interrupted", updates)
    assert train(["--resume", str(interrupted)]) == 0
    assert json.loads((interrupted / "result.json").read_text())["status"] == "completed"


def test_a_machine_that_takes_another_ones_place_ends_with_0_too(
    config: str, interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To its torchrun this is the first attempt; the run is its job's."""
    (interrupted / JOB).write_text("one\nother")
    monkeypatch.setattr("transformer.training.ranks.job_of", lambda _: "one\nanew")
    called = signalling(monkeypatch, train_module, "prepare")
    assert train([config, "--run-dir", str(interrupted)]) == 0
    assert called
    assert json.loads((interrupted / "result.json").read_text())["status"] == "interrupted"


ENDING = [
    (Trainer, "_interrupted"),
    (Logbook, "close"),
    (train_module, "conclude"),
    (hold_module, "_release"),
]


@pytest.mark.parametrize(("owner", "name"), ENDING)
def test_a_signal_that_comes_again_while_a_run_ends_is_the_same_request(
    owner: object, name: str, interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signalling(patch, Trainer, "step")
        called = signalling(patch, owner, name)
        assert train(["--resume", str(interrupted)]) == 0
    assert called
    assert json.loads((interrupted / "result.json").read_text())["status"] == "interrupted"
    assert not (interrupted / "run.lock").exists()


@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "nohup"])
def test_a_terminal_that_hangs_up_is_an_interruption_unless_it_is_ignored(
    ignored: bool, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        signalling(monkeypatch, Trainer, "step", signal.SIGHUP)
        assert train([config, "--run-dir", str(tmp_path / "run")]) == (0 if ignored else 130)
    finally:
        signal.signal(signal.SIGHUP, before)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == ("completed" if ignored else "interrupted")

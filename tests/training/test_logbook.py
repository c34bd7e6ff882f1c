"""What is written where, and that it can be read back."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from transformer.training.logbook import Logbook


def events(run: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        accumulator = EventAccumulator(str(run / "tensorboard"))
        accumulator.Reload()
    return accumulator


def test_tensorboard_has_the_curves_and_the_sample_translations(workshop: Any) -> None:
    trainer = workshop.trainer(tensorboard=True, samples=lambda: "ein Hund | a dog")
    trainer.fit()
    read = events(trainer.run_dir)
    curves = {
        f"train/{name}" for name in ("loss", "nll", "learning_rate", "gradient_norm", "tokens_per_second")
    }
    assert curves <= set(read.Tags()["scalars"])
    assert {"valid/loss", "valid/nll", "valid/bleu"} <= set(read.Tags()["scalars"])
    assert [event.step for event in read.Scalars("train/loss")] == [1, 2, 4, 6, 8, 10, 12]
    assert "ein Hund" in str(read.Tensors("valid/samples/text_summary")[0])


def test_a_resumed_run_replaces_the_points_it_computes_again(workshop: Any) -> None:
    trainer = workshop.trainer(tensorboard=True)
    step = trainer.step

    def dying(batches: Any) -> None:
        if trainer.progress.update == 7:
            raise InterruptedError
        step(batches)

    trainer.step = dying
    with pytest.raises(InterruptedError):
        trainer.fit()
    resumed = workshop.trainer(tensorboard=True)
    resumed.resume()
    assert resumed.progress.update == 4
    resumed.fit()
    steps = [event.step for event in events(resumed.run_dir).Scalars("train/loss")]
    assert steps == [1, 2, 4, 6, 8, 10, 12]


def test_where_events_cannot_be_written_the_run_goes_on_without_them(workshop: Any) -> None:
    trainer = workshop.trainer(tensorboard=True, updates=2)
    (trainer.run_dir / "tensorboard").write_text("a file")
    assert trainer.fit().status == "completed"
    assert "TensorBoard's events cannot be written" in (trainer.run_dir / "log.txt").read_text()


@pytest.mark.parametrize("lack", [OSError, MemoryError])
def test_where_events_are_lost_on_the_way_the_run_goes_on_too(
    lack: type[Exception], workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise lack("no room")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", lost)
    trainer = workshop.trainer(tensorboard=True, updates=2)
    assert trainer.fit().status == "completed"
    assert "TensorBoard's events cannot be written (no room)" in (trainer.run_dir / "log.txt").read_text()


def test_every_line_of_the_metrics_is_strict_json_with_its_update(tmp_path: Path) -> None:
    book = Logbook(tmp_path, tensorboard=False, quiet=True)
    book.open()
    book.record(1, {"loss": float("nan"), "nll": 2.0}, "text")
    book.record(2, {"loss": 1.5}, "text")
    book.close()
    lines = [
        json.loads(line, parse_constant=pytest.fail) for line in book.metrics_path.read_text().splitlines()
    ]
    assert lines == [{"update": 1, "loss": None, "nll": 2.0}, {"update": 2, "loss": 1.5}]


def test_what_was_written_after_the_resumed_update_is_dropped_half_lines_too(tmp_path: Path) -> None:
    book = Logbook(tmp_path, tensorboard=False, quiet=True)
    book.open()
    book.record(1, {"loss": 1.0}, "one")
    position = book.position()
    book.record(2, {"loss": 1.0}, "two")
    with open(book.metrics_path, "a") as file:
        file.write('{"update": 3, "lo')
    book.open(update=1, position=position)
    assert [json.loads(line)["update"] for line in book.metrics_path.read_text().splitlines()] == [1]


def test_a_log_has_plain_lines_and_a_terminal_a_progress_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, terminal in (("log", False), ("terminal", True)):
        book = Logbook(tmp_path / name, tensorboard=False)
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        book.open(total=10)
        book.say("a line")
        book.tick(3)
        book.close()
        errors = capsys.readouterr().err
        assert "a line" in errors
        assert ("/10" in errors) == terminal
        assert "a line" in (tmp_path / name / "log.txt").read_text()

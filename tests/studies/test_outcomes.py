"""Real trainings: a study from its file to its report, killed and gone on with, and what is read from it."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transformer.cli.resolve import new_config
from transformer.cli.study import main as study
from transformer.evaluation.metrics import corpus_metrics
from transformer.studies.cells import Cell, plan
from transformer.studies.config import load_study
from transformer.studies.outcomes import load, outcomes_of

pytest.importorskip("matplotlib")
Done = tuple[Path, "subprocess.CompletedProcess[str]"]


def cells_of(folder: Path, runs: Path) -> list[Cell]:
    return plan(load_study(folder / "study.yaml"), new_config, runs)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_one_command_trains_every_cell_and_writes_the_report(folder: Path, done: Done) -> None:
    runs, said = done
    assert said.returncode == 0, said.stderr
    assert said.stdout == f"{runs / 'small' / 'report' / 'report.md'}\n"
    assert "Is pre better?" in (runs / "small" / "report" / "report.md").read_text()
    assert [cell.name for cell in cells_of(folder, runs)] == ["post-seed1", "pre-seed1"]
    assert "[2/2] pre-seed1: completed" in said.stderr


def test_cells_share_their_data_to_the_byte(folder: Path, done: Done) -> None:
    one, other = (bytes_of(cell.run_dir / "tokenizer") for cell in cells_of(folder, done[0]))
    assert one == other
    assert one


def test_finished_cells_are_not_touched_again(
    folder: Path, done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, _ = done
    cells = runs / "small" / "cells"
    before = {path: path.stat().st_mtime_ns for path in cells.rglob("*")}
    report = bytes_of(runs / "small" / "report")
    assert study([str(folder / "study.yaml"), "--runs", str(runs)]) == 0
    assert "2 cells, 2 completed" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in cells.rglob("*")}
    assert bytes_of(runs / "small" / "report") == report


def test_a_study_that_is_killed_goes_on_and_ends_with_the_same_report(
    folder: Path, done: Done, start_study: Callable[..., subprocess.Popen[str]]
) -> None:
    """In its first training; of the second, whose turn it was not, it has the finished one's files."""
    runs = folder / "killed"
    shutil.copytree(*(where / "small" / "cells" / "pre-seed1" for where in (done[0], runs)))
    words = [str(folder / "study.yaml"), "--runs", str(runs)]
    saved = runs / "small" / "cells" / "post-seed1" / "checkpoints" / "last"
    process = start_study(*words)
    while not saved.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "the same command goes on" in told
    assert not (runs / "small" / "report").exists()
    process = start_study(*words)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    ours, theirs = (bytes_of(where / "small" / "report") for where in (done[0], runs))
    assert ours == theirs


@pytest.mark.usefixtures("starts_warm")
def test_a_dry_run_prints_the_plan_and_what_the_estimate_rests_on(
    folder: Path, done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study([str(folder / "study.yaml"), "--dry-run", "--runs", str(folder / "nowhere")]) == 0
    fresh = capsys.readouterr().out
    for words in ("2 new", "axis model.placement: post, pre", "Is pre better?", "new          pre-seed1"):
        assert words in fresh
    assert "2 cells to run, 12 updates: about" in fresh
    assert "s an update, timed over 6 updates of post-seed1" in fresh
    assert not (folder / "nowhere").exists()
    words = [str(folder / "study.yaml"), "--dry-run", "--runs", str(done[0]), "--shard", "2/2"]
    assert study(words) == 0
    finished = capsys.readouterr().out
    assert "1 cells, 1 completed (of 2 in all)" in finished
    assert "nothing to run" in finished


def test_a_changed_study_is_refused_and_names_what_changed(
    folder: Path, done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(folder / "study.yaml"), "--runs", str(done[0]), "--set", "train.clip=3"]
    assert study(words) == study([*words, "--report-only"]) == 2
    assert capsys.readouterr().err.count("train.clip: the run in") == 2, "a line for both cells, twice"


@pytest.mark.usefixtures("starts_warm")
def test_a_damaged_cell_stops_no_report_and_a_run_names_it(
    folder: Path, done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(done[0], runs)
    file = runs / "small" / "cells" / "pre-seed1" / "config.yaml"
    file.write_bytes(b"")
    words = [str(folder / "study.yaml"), "--runs", str(runs)]
    assert study([*words, "--report-only"]) == 0
    told = capsys.readouterr().err
    assert "1 of 2 cells are missing: pre-seed1" in told
    for more in ([], ["--launch", "local"]):
        assert study([*words, *more]) == 1
        told = capsys.readouterr().err.strip()
        assert told.startswith(f"error: {file}: damaged")
        assert len(told.splitlines()) == 1
    assert study([*words, "--dry-run"]) == 0
    assert "damaged      pre-seed1" in capsys.readouterr().out


def test_a_report_of_what_is_finished_says_what_is_missing(
    folder: Path, done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (folder / "study.yaml").read_text().replace("seeds: [1]", "seeds: [1, 2]")
    (folder / "more.yaml").write_text(more)
    out = tmp_path / "report"
    words = [str(folder / "more.yaml"), "--runs", str(done[0]), "--out", str(out), "--report-only"]
    assert study(words) == 0
    assert "2 of 4 cells are missing: post-seed2, pre-seed2" in capsys.readouterr().err
    assert (out / "report.html").is_file()
    assert study([*words[:2], str(tmp_path / "none"), "--report-only"]) == 2
    assert "nothing to report" in capsys.readouterr().err


def test_an_outcome_is_what_the_run_directory_holds(folder: Path, done: Done) -> None:
    outcomes = outcomes_of(load_study(folder / "study.yaml"), cells_of(folder, done[0]))
    assert [outcome.cell.values["model.placement"] for outcome in outcomes] == ["post", "pre"]
    for outcome in outcomes:
        result = json.loads((outcome.cell.run_dir / "result.json").read_text())
        assert outcome.status == "completed"
        assert not outcome.diverged
        assert outcome.measure("valid_loss") == result["valid_loss"] == min(loss for _, loss in outcome.curve)
        assert [update for update, _ in outcome.curve] == [3, 6]
        assert [update for update, _ in outcome.train_curve] == [1, 2, 4, 6]
        assert (outcome.updates, outcome.parameters) == (6, result["parameters"])
        assert outcome.config["model.placement"] == outcome.cell.values["model.placement"]
        assert outcome.config["data.test.held"] == str(folder / "text")
        assert outcome.measure("test.held.bleu") == result["test"]["held"]["bleu"]
        assert outcome.measure("test.other.bleu") is None


def test_the_kept_translations_give_the_scores_of_the_result(folder: Path, done: Done) -> None:
    outcome = outcomes_of(load_study(folder / "study.yaml"), cells_of(folder, done[0]))[0]
    hypotheses, references = outcome.hypotheses("held"), outcome.references("held")
    assert hypotheses is not None
    assert references is not None
    scores = corpus_metrics(hypotheses, references)
    assert scores.sentences == outcome.tests["held"]["sentences"]
    assert scores.chrf == outcome.tests["held"]["chrf"]
    assert outcome.hypotheses("other") is None


def made_up(folder: Path, status: str, records: list[dict[str, Any]]) -> Cell:
    cell = Cell("x", {}, folder / "study" / "cells" / "x", 1, {})
    cell.run_dir.mkdir(parents=True)
    (cell.run_dir / "config.yaml").write_text("train: {lr: 0.1}\n")
    (cell.run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = {"status": status, "updates": 4, "seconds": 1.5, "parameters": 7, "valid_loss": 3.0, "test": {}}
    (cell.run_dir / "result.json").write_text(json.dumps(result))
    return cell


ENDED = '"status": "completed", "seconds": 1, "parameters": 7, "valid_loss": 3.0'
RECORDS = [
    {"update": 2, "loss": 5.0, "nll": 4.0},
    {"update": 2, "valid_loss": 4.0, "valid_nll": 3.25},
    {"update": 4, "loss": 4.5, "nll": 2.0},
    {"update": 4, "valid_loss": 3.0, "valid_nll": 2.5},
    {"update": 4, "valid_loss": 2.9, "valid_nll": 2.4, "averaged": 2},
]


def test_what_an_outcome_measures(tmp_path: Path) -> None:
    outcome = load(made_up(tmp_path, "completed", RECORDS), target=3.5)
    assert outcome is not None
    assert outcome.curve == [(2, 4.0), (4, 3.0)], "an average of weights is no point of the curve"
    assert outcome.gap_curve == [(2, -0.75), (4, 0.5)]
    assert outcome.measure("gap") == 0.5
    assert outcome.measure("train_loss") == 4.5
    assert outcome.measure("updates_to_target") == 3, "from 4.0 at 2 to 3.0 at 4"
    for target in (1.0, None):
        assert load(outcome.cell, target).measure("updates_to_target") is None  # type: ignore[union-attr]


def test_a_diverged_run_is_an_outcome_without_a_value(tmp_path: Path) -> None:
    records = [*RECORDS[:2], {"update": 4, "loss": None, "nll": None}]
    outcome = load(made_up(tmp_path, "diverged", records))
    assert outcome is not None
    assert (outcome.diverged, outcome.measure("valid_loss"), outcome.measure("train_loss")) == (
        True,
        None,
        None,
    )
    assert math.isnan(outcome.train_curve[-1][1])


@pytest.mark.parametrize("loss", ["null", "NaN"])
def test_a_completed_run_without_a_finite_loss_is_diverged(tmp_path: Path, loss: str) -> None:
    cell = made_up(tmp_path, "completed", RECORDS)
    file = cell.run_dir / "result.json"
    file.write_text(file.read_text().replace('"valid_loss": 3.0', f'"valid_loss": {loss}'))
    outcome = load(cell)
    assert outcome is not None
    assert (outcome.diverged, outcome.status) == (True, "completed")


def test_what_was_measured_and_was_no_number_is_nan_and_what_was_not_measured_is_none(tmp_path: Path) -> None:
    outcome = load(made_up(tmp_path, "completed", [*RECORDS, {"update": 6, "valid_nll": None, "nll": None}]))
    assert outcome is not None
    assert math.isnan(outcome.measure("gap") or 0.0)
    assert outcome.measure("valid_bleu") is None


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.jsonl", '{"update": 2, "lo'),
        ("metrics.jsonl", ""),
        ("metrics.jsonl", '{"update": 2, "valid_loss": 4.0}\n'),
        ("result.json", '{"status": "completed", "test": {}}'),
        ("result.json", '{"status": "completed", "test": null}'),
        ("result.json", f'{{{ENDED}, "updates": Infinity}}'),
        ("result.json", f'{{{ENDED}, "updates": 4, "test": {{"news": null}}}}'),
    ],
)
def test_a_damaged_cell_is_told_and_left_out(
    tmp_path: Path, file: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    cell = made_up(tmp_path, "completed", RECORDS)
    (cell.run_dir / file).write_text(text)
    assert load(cell) is None
    assert f"{cell.run_dir}: its files are damaged" in caplog.text


def test_a_run_that_goes_on_is_no_outcome(tmp_path: Path) -> None:
    assert load(made_up(tmp_path, "interrupted", RECORDS)) is None
    assert load(Cell("y", {}, tmp_path / "y", 1, {})) is None

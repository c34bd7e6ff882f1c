"""What the cells of a study have come to: read from their run directories, nothing is computed twice."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.rundir import CONFIG_FILE, METRICS, kept
from .cells import FINISHED, Cell, flat, load_yaml, read_result, state
from .config import Study
from .metrics import scored_set
from .statistics import reached_at_once, updates_to

Curve = list[tuple[int, float]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A finished cell. One that ended without a finite validation loss is `diverged` too.

    `curve` and `train_curve` are (update, loss), as trained: with label smoothing. `gap_curve` is
    (update, validation nll - training nll), neither of them smoothed; the training nll is a mean over
    the updates since the log line before, with dropout. `config` is flat: dotted option to value.
    """

    cell: Cell
    status: str
    diverged: bool
    curve: Curve
    train_curve: Curve
    tests: Mapping[str, Mapping[str, Any]]
    updates: int
    seconds: float
    parameters: int
    result: Mapping[str, Any]
    bleu_curve: Curve = field(default_factory=list)
    gap_curve: Curve = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)
    target: float | None = None

    def measure(self, metric: str) -> float | None:
        """The value of any metric; None when the run diverged, or has not measured it; NaN may be measured.

        `valid_loss` and `valid_bleu` are those of the run's model: the best that was validated, not the last.
        `gap` and `train_loss` are those of the last validation and the last log line. `updates_to_target` is
        where the validation loss, straight between validations, first is at the study's target.
        """
        if self.diverged:
            return None
        if test := scored_set(metric):
            return _number(self.tests.get(test[0], {}).get(test[1]))
        if metric == "updates_to_target":
            return None if self.target is None else updates_to(self.curve, self.target)
        curves = {"gap": self.gap_curve, "train_loss": self.train_curve}
        if metric in curves:
            return curves[metric][-1][1] if curves[metric] else None
        value = self.result.get(metric)
        if metric == "valid_loss" and value is None and metric in self.result:
            return math.nan  # which JSON has no word for
        return _number(value)

    @property
    def at_target_at_once(self) -> bool:
        """Is `updates_to_target` an upper bound only?"""
        return self.target is not None and reached_at_once(self.curve, self.target)

    def hypotheses(self, test: str) -> list[str] | None:
        """The run's translations of a test set, a sentence each; None where none were kept."""
        return _lines(kept(self.cell.run_dir, test, "hyp"))

    def references(self, test: str) -> list[str] | None:
        """The untouched reference of a test set, a sentence each."""
        return _lines(kept(self.cell.run_dir, test, "ref"))


def load(cell: Cell, target: float | None = None) -> Outcome | None:
    """What a cell has come to; None unless it is finished, and its files are whole."""
    known = state(cell)
    said = "its files are damaged, and it is left out; delete the directory to train it again"
    if known == "damaged":
        _log.warning("%s: %s (%s is not a whole configuration)", cell.run_dir, said, CONFIG_FILE)
    if known not in FINISHED:
        return None
    try:
        return _read(cell, target)
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # a copy that was cut short, say
        _log.warning("%s: %s (%r)", cell.run_dir, said, error)
        return None


def _read(cell: Cell, target: float | None) -> Outcome:
    result, records = read_result(cell.run_dir), _records(cell.run_dir / METRICS)
    outcome = Outcome(
        cell=cell,
        status=result["status"],
        diverged=result["status"] == "diverged",
        curve=_curve(records, "valid_loss"),
        train_curve=_curve(records, "loss"),
        tests=result.get("test") or {},
        updates=int(result["updates"]),
        seconds=float(result["seconds"]),
        parameters=int(result["parameters"]),
        result=result,
        bleu_curve=_curve(records, "valid_bleu"),
        gap_curve=_gaps(records),
        config=flat(load_yaml(cell)),
        target=target,
    )
    if not all(isinstance(scores, Mapping) for scores in outcome.tests.values()):
        raise ValueError(f"scores of test sets: {outcome.tests}")
    last = outcome.curve[-1][0] if outcome.curve else None
    if outcome.status == "completed" and last != outcome.updates:
        raise ValueError(f"the last validation is of update {last}, the run ended at {outcome.updates}")
    loss = outcome.measure("valid_loss")
    return outcome if loss is None or math.isfinite(loss) else replace(outcome, diverged=True)


def outcomes_of(study: Study, cells: Sequence[Cell]) -> list[Outcome]:
    """Of the finished cells, in their order."""
    loaded = (load(cell, study.target) for cell in cells)
    return [outcome for outcome in loaded if outcome is not None]


def _records(path: Path) -> list[dict[str, Any]]:
    """The objects of metrics.jsonl; those that measure an average of weights are no point of a curve."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "averaged" not in record]


def _curve(records: Sequence[Mapping[str, Any]], name: str) -> Curve:
    """(update, value) of what was measured; a value that was not finite is NaN."""
    return [(record["update"], _finite(record[name])) for record in records if name in record]


def _gaps(records: Sequence[Mapping[str, Any]]) -> Curve:
    """Validation nll - training nll at each validation, the latter from the last log line."""
    gaps: Curve = []
    train: float | None = None
    for record in records:
        if "nll" in record:
            train = _finite(record["nll"])
        if "valid_nll" in record and train is not None:
            gaps.append((record["update"], _finite(record["valid_nll"]) - train))
    return gaps


def _finite(value: float | None) -> float:
    """A number of metrics.jsonl, which has null for what was not finite."""
    return math.nan if value is None else float(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _lines(path: Path) -> list[str] | None:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.is_file() else None

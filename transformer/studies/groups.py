"""Runs of one setting gathered over seeds, in an order and with names that a reader knows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..core.plans import shown
from .config import ARM, RATE
from .metrics import LR_RANGE, scored_set
from .outcomes import Outcome
from .statistics import Mean, mean_of

WARMUP = "train.warmup"
LOSS, TO_TARGET = "valid_loss", "updates_to_target"


@dataclass(frozen=True)
class Group:
    """One setting: `values` as the study's cells have them, the seed apart, and the run of each seed."""

    values: Mapping[str, Any]
    runs: Mapping[int, Outcome]

    @cached_property
    def failed(self) -> list[int]:
        """Seeds that diverged."""
        return [seed for seed, run in self.runs.items() if run.diverged]

    def _measured(self, metric: str) -> dict[int, float]:
        found = {seed: run.measure(metric) for seed, run in self.runs.items() if not run.diverged}
        return {seed: value for seed, value in found.items() if value is not None}

    def scores(self, metric: str) -> dict[int, float]:
        """The metric with each seed that trained, where it has one."""
        return {seed: v for seed, v in self._measured(metric).items() if math.isfinite(v)}

    def fell_short(self, metric: str) -> list[int]:
        """Seeds that diverged, measured no finite number, or, asked for the target, never reached it."""
        scores = self.scores(metric)
        tried = self.runs if metric == TO_TARGET else {*self.failed, *self._measured(metric)}
        return [seed for seed in self.runs if seed in tried and seed not in scores]

    def unmeasured(self, metric: str) -> list[int]:
        """Seeds that trained and have not measured it: nothing is known of them."""
        known = {*self.scores(metric), *self.fell_short(metric)}
        return [seed for seed in self.runs if seed not in known]

    def bounded(self, metric: str) -> list[int]:
        """Seeds whose number is an upper bound: at the target by their first validation."""
        reached = self.scores(metric) if metric == TO_TARGET else ()
        return [seed for seed in reached if self.runs[seed].at_target_at_once]

    def mean(self, metric: str) -> Mean | None:
        return mean_of(list(self.scores(metric).values()))

    @property
    def ended(self) -> int:
        """How many seeds are known."""
        return len(self.runs) - len(self.unmeasured(LOSS))

    @property
    def loss(self) -> Mean | None:
        return self.mean(LOSS)

    @property
    def merit(self) -> tuple[float, float]:
        """For choosing among settings: fewest diverged seeds first, then the lowest mean validation loss."""
        loss, failed = self.loss, self.fell_short(LOSS)
        share = len(failed) / len(self.runs) if self.runs else 1.0
        return (share, math.inf if loss is None else loss.mean)

    def matches(self, wanted: Mapping[str, Any]) -> bool:
        return all(key in self.values and plain(self.values[key]) == plain(v) for key, v in wanted.items())

    def only(self, keys: Sequence[str]) -> dict[str, Any]:
        """Its values of some of the keys."""
        return {key: value for key, value in self.values.items() if key in keys}


def grouped(outcomes: Sequence[Outcome], order: Sequence[Mapping[str, Any]] = ()) -> list[Group]:
    """Outcomes by setting, in the order of a study's settings, else sorted; theirs does not matter."""
    found: dict[str, tuple[dict[str, Any], dict[int, Outcome]]] = {}
    for outcome in outcomes:
        values = {key: value for key, value in outcome.cell.values.items() if key != "seed"}
        held = found.setdefault(identity(values), (values, {}))
        held[1][outcome.cell.seed] = outcome
    groups = [Group(values, dict(sorted(runs.items()))) for values, runs in found.values()]
    groups.sort(key=lambda group: [(k, sort_key(v)) for k, v in sorted(group.values.items())])
    places = {identity(values): i for i, values in enumerate(order)}
    return sorted(groups, key=lambda group: places.get(identity(group.values), len(places)))


def identity(values: Mapping[str, Any]) -> str:
    """The same text for the same setting."""
    return repr(sorted((key, repr(plain(value))) for key, value in values.items()))


def best_of(groups: Sequence[Group]) -> Group | None:
    """Of the settings with most seeds: the fewest diverged ones, then the lowest mean validation loss."""
    return min(complete(groups), key=lambda group: group.merit, default=None)


def complete(groups: Sequence[Group]) -> list[Group]:
    """The settings with as many seeds as any: with fewer, one lucky seed would be a good setting."""
    ended = [group.ended for group in groups]
    return [group for group, count in zip(groups, ended, strict=True) if count == max(ended)]


def axes_of(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Keys of which more than one value occurs, and the values in order."""
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        for key, value in group.values.items():
            found.setdefault(key, {})[repr(plain(value))] = value
    varying = {
        key: sorted(values.values(), key=sort_key)
        for key, values in sorted(found.items())
        if len(values) > 1 or any(key not in group.values for group in groups)
    }
    return {key: values for key, values in varying.items() if not _said_by_arm(key, groups)}


def _said_by_arm(key: str, groups: Sequence[Group]) -> bool:
    """Does each arm have but one value of the key, so that the arm's label says it?"""
    if key == ARM or any(ARM not in group.values for group in groups):
        return False
    arms: dict[str, set[str]] = {}
    for group in groups:
        arms.setdefault(group.values[ARM], set()).add(repr(plain(group.values.get(key))))
    return all(len(values) == 1 for values in arms.values()) and len({*map(str, arms.values())}) > 1


def split_by(groups: Sequence[Group], keys: Sequence[str]) -> list[tuple[dict[str, Any], list[Group]]]:
    """(values of the keys, the groups that have them), in order of first appearance."""
    found: dict[str, tuple[dict[str, Any], list[Group]]] = {}
    for group in groups:
        values = group.only(keys)
        name = repr([(k, repr(plain(v))) for k, v in sorted(values.items())])
        found.setdefault(name, (values, []))[1].append(group)
    return list(found.values())


def family_keys(groups: Sequence[Group]) -> list[str]:
    """What tells arms apart: all axes but learning rate and warm-up, or the warm-up if it is alone."""
    axes = axes_of(groups)
    keys = [key for key in axes if key not in (RATE, WARMUP)]
    return keys or [key for key in axes if key == WARMUP]


def label(values: Mapping[str, Any]) -> str:
    """`post, no warm-up, rate 1e-3`; "all runs" where nothing is told apart."""
    order = sorted(values, key=lambda key: (key != ARM, key == RATE, key == WARMUP, _rank(key), key))
    return ", ".join(words(key, values[key]) for key in order) or "all runs"


def words(key: str, value: Any) -> str:
    """One value as a reader says it."""
    name = key.rpartition(".")[2].replace("_", " ")
    if key == WARMUP:
        return f"warm-up {plain(value):g}" if plain(value) else "no warm-up"
    if key == RATE:
        return f"rate {rate_text(value)}"
    if key == ARM:
        return str(value)
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, Mapping):
        return f"{name} {shown(dict(value))}"
    given = plain(value)
    if isinstance(given, (int, float)):
        return f"{name} {number(given)}"
    return str(given) if _rank(key) < len(_BARE) else f"{name} {given}"


# Keys whose values speak for themselves, in the order in which they are said.
_BARE = ("placement", "norm", "optimizer", "schedule")


def _rank(key: str) -> int:
    name = key.rpartition(".")[2]
    return _BARE.index(name) if name in _BARE else len(_BARE)


def metric_name(metric: str) -> str:
    """The metric as a reader says it: `validation loss`, `test2016 BLEU`."""
    if (test := scored_set(metric)) is not None:
        return f"{test[0]} {test[1].upper() if test[1] != 'chrf' else 'chrF2'}"
    return {
        LOSS: "validation loss",
        "valid_bleu": "validation BLEU",
        TO_TARGET: "updates to target",
        LR_RANGE: "range of workable rates (decades)",
    }.get(metric, metric.replace("_", " "))


def number(value: float) -> str:
    """`3e-4` for small and large numbers, plain digits else."""
    if value == 0 or 0.01 <= abs(value) < 100_000:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def rate_text(value: Any) -> str:
    """A learning rate below 0.1 as `1e-2`, so that a row of them is read at a glance."""
    if float(plain(value)) >= 0.1:
        return f"{float(plain(value)):g}"
    mantissa, _, exponent = f"{float(plain(value)):.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def plain(value: Any) -> Any:
    """1e-3 however YAML took it (`1e-3` is text there), for comparing; anything else as it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def sort_key(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then all else by its text."""
    given = plain(value)
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return (0, float(given), "")
    return (1, 0.0, repr(given))

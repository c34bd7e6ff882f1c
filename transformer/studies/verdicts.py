"""Answer a study's questions: numbers first, then one of four words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .bootstrap import BOOTSTRAPPED
from .cells import Cell
from .config import RATE, Question
from .derived import both_everywhere, difference, ranges, without
from .groups import (
    LOSS,
    TO_TARGET,
    WARMUP,
    Group,
    axes_of,
    best_of,
    complete,
    grouped,
    label,
    metric_name,
    plain,
    sort_key,
)
from .judging import (
    MIXED,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    Comparison,
    compare,
    few_names,
    judge,
    sentence,
)
from .metrics import LR_RANGE
from .outcomes import Outcome
from .statistics import holm

__all__ = ["Comparison", "Verdict", "answer"]


@dataclass(frozen=True)
class Verdict:
    """The answer to a question: one of four words, a sentence, and the comparisons it rests on.

    `notes` say what limits it: cells that are missing, a tuned value at the edge of what was tried.
    """

    question: Question
    verdict: str
    words: str
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> list[dict[str, Any]]:
        """Plain values of every comparison, for table.json."""
        return [comparison.to_dict() for comparison in self.comparisons]


def answer(
    question: Question,
    outcomes: Sequence[Outcome],
    metric: str = LOSS,
    missing: Sequence[Cell] = (),
    target: float | None = None,
) -> Verdict:
    """Compare, judge each setting, and sum up; by `rules.RULES`.

    `metric` decides where the question names none. `missing` are cells without an outcome, to be named.
    `target` is the study's, below which a rate is a workable one.
    """
    metric = question.metric or metric
    concerned = [g for g in grouped(outcomes) if any(g.matches(chosen) for _, chosen in question.sides)]
    wanting = sorted(cell.name for cell in missing if _concerns(question, cell))
    notes = [f"not finished: {few_names(wanting)}"] if wanting else []
    rates = [float(plain(g.values[RATE])) for g in concerned if RATE in g.values]
    if metric == LR_RANGE and target is not None:
        concerned, told = ranges(concerned, target)
        notes += told
    held = {name: [g for g in concerned if g.matches(chosen)] for name, chosen in question.sides}
    if absent := [label(chosen) for name, chosen in question.sides if not held[name]]:
        return Verdict(question, NOT_TESTABLE, f"no finished run: {'; '.join(absent)}", [], notes)
    if question.over == "best":
        pairs, told = _tuned(question, held["this"], held["that"])
        notes = [*told, *notes]
    else:
        pairs = _settings(question, held["this"], held["that"])
    if question.against:
        pairs = _contrast(question, pairs[0], held["against.this"], held["against.that"], metric)
    if metric in (LR_RANGE, TO_TARGET):
        pairs, told = _bounded(pairs, rates, metric)
        notes += told
    if not pairs:
        return Verdict(question, NOT_TESTABLE, "no setting has finished runs of both", [], notes)
    comparisons = [compare(*pair, metric, question.margin) for pair in pairs]
    tested = [(c, c.p) for c in comparisons if c.p is not None]
    for (comparison, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
        comparison.adjusted = p
    for comparison in comparisons:
        comparison.verdict, comparison.why = judge(question.expect, comparison)
    notes += _unusual([group for _, *pair in pairs for group in pair], metric)
    if len(comparisons) > BOOTSTRAPPED and any(
        run.tests for _, this, _ in pairs for run in this.runs.values()
    ):
        notes.append(
            f"no bootstrap over sentences: {len(comparisons)} settings, and at most {BOOTSTRAPPED} are"
        )
    return Verdict(question, *_sum_up(comparisons), comparisons, notes)


Pairs = list[tuple[str, Group, Group]]


def _settings(question: Question, these: Sequence[Group], those: Sequence[Group]) -> Pairs:
    """Pairs that agree in all axes that the question does not name; the label says what varies among them."""
    named = {*question.this, *question.that}
    free = [key for key in axes_of([*these, *those]) if key not in named]

    def rest(group: Group) -> dict[str, Any]:
        return {key: plain(value) for key, value in group.only(free).items()}

    pairs = [(this, that) for this in these for that in those if rest(this) == rest(that)]
    varying = [key for key in axes_of([this for this, _ in pairs]) if key in free]
    return [(label(this.only(varying)) if varying else "", this, that) for this, that in pairs]


def _tuned(question: Question, these: Sequence[Group], those: Sequence[Group]) -> tuple[Pairs, list[str]]:
    """The best setting of each side, and what was chosen."""
    this, that = best_of(these), best_of(those)
    assert this is not None
    assert that is not None
    chosen, notes = [], _tries(question, these, those)
    for fixed, best, among in ((question.this, this, these), (question.that, that, those)):
        tried = {k: v for k, v in axes_of(among).items() if k not in fixed}
        if tried:
            chosen.append(f"{label(best.only(list(tried)))} for {label(fixed)}")
        notes += _edges(fixed, best, tried)
    return [("", this, that)], ([f"best on validation loss: {'; '.join(chosen)}"] if chosen else []) + notes


def _contrast(
    question: Question,
    pair: tuple[str, Group, Group],
    these: Sequence[Group],
    those: Sequence[Group],
    metric: str,
) -> Pairs:
    """The difference of a pair, and the one it is compared with, as a pair."""
    this, that = best_of(these), best_of(those)
    assert question.against is not None
    assert this is not None
    assert that is not None
    own, other = question.this, question.against.this
    sides = [
        label(
            {key: value for key, value in side.items() if key not in rest or plain(rest[key]) != plain(value)}
        )
        for side, rest in ((own, other), (other, own))
    ]
    name = f"{sides[0]} against {sides[1]}, as differences"
    return [(name, difference(pair[1], pair[2], metric), difference(this, that, metric))]


def _bounded(pairs: Pairs, rates: Sequence[float], metric: str) -> tuple[Pairs, list[str]]:
    """Without the seeds at which of both sides only a bound is known: they tell nothing.

    Of a range of rates it is one where both work at every rate that was tried; of the updates to the target
    where both are there at their first validation.
    """
    found, notes = [], []
    for setting, this, that in pairs:
        if metric == LR_RANGE:
            seeds, why = both_everywhere(this, that, rates), "both work at every rate tried"
        else:
            seeds = [seed for seed in this.bounded(metric) if seed in that.bounded(metric)]
            why = "both are at the target by their first validation, left out"
        at = f"{setting}: " if setting else ""
        if seeds:
            this, that = without(this, seeds), without(that, seeds)
            notes.append(f"{at}{why}: {', '.join(map(str, seeds))} of the seeds")
        for word, side, other in (("first", this, that), ("second", that, this)):
            known = other.scores(metric)  # where the other failed there is no amount
            if bounds := [seed for seed in side.bounded(metric) if seed in known]:
                numbers = ", ".join(map(str, bounds))
                notes.append(
                    f"{at}the {word} is at the target by its first validation with seed {numbers}:"
                    " the difference is at least so large"
                )
        found.append((setting, this, that))
    return found, notes


def _tries(question: Question, these: Sequence[Group], those: Sequence[Group]) -> list[str]:
    """How many settings each side tried, where one had more; which were left out for want of seeds."""
    notes, tries = [], []
    for fixed, among in ((question.this, these), (question.that, those)):
        whole, keys = complete(among), list(axes_of(among))
        tries.append(f"{len(whole)} for {label(fixed)}")
        if rest := [label(group.only(keys)) for group in among if group not in whole]:
            notes.append(f"not tuned over, with fewer seeds than others of {label(fixed)}: {few_names(rest)}")
    if len(complete(these)) != len(complete(those)):
        notes.append(f"settings tried: {', '.join(tries)}; the best of more looks better by chance alone")
    return notes


def _unusual(groups: Sequence[Group], metric: str) -> list[str]:
    """Seeds that ended without the metric, or without a finite number for it."""
    keys, broken, absent = list(axes_of(groups)), [], []
    for group in groups:
        name = label(group.only(keys))
        absent += [f"{name}, seed {seed}" for seed in group.unmeasured(metric)]
        if metric != TO_TARGET:
            runs = {seed: group.runs[seed] for seed in group.fell_short(metric) if seed in group.runs}
            failed = [seed for seed, run in runs.items() if run.status != "diverged"]
            broken += [f"{name}, seed {seed}" for seed in failed]
    told = {f"no finite {metric_name(metric)}, counted as diverged": broken}
    told[f"no {metric_name(metric)}, left out"] = absent
    return [f"{what}: {few_names(list(dict.fromkeys(names)))}" for what, names in told.items() if names]


def _edges(fixed: Mapping[str, Any], best: Group, tried: Mapping[str, list[Any]]) -> list[str]:
    """Where the best of a tuned number is the first or last one tried, a better one may lie beyond."""
    notes = []
    for key, values in tried.items():
        ends = {sort_key(values[0]): "lowest", sort_key(values[-1]): "highest"}
        chosen = sort_key(best.values.get(key))
        if chosen[0] == 0 and chosen[1] > 0 and chosen in ends:
            name = {RATE: "rate", WARMUP: "warm-up"}.get(key, key)
            notes.append(
                f"the best {name} of {label(fixed)} is the {ends[chosen]} tried: a better may lie beyond"
            )
    return notes


def _sum_up(comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """One word and one sentence of all settings."""
    if len(comparisons) == 1:
        return comparisons[0].verdict, sentence(comparisons[0])
    by_verdict = {
        verdict: [c for c in comparisons if c.verdict == verdict]
        for verdict in (REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE)
    }
    yes, no = bool(by_verdict[REPRODUCED]), bool(by_verdict[NOT_REPRODUCED])
    verdict = MIXED if yes and no else REPRODUCED if yes else NOT_REPRODUCED if no else NOT_TESTABLE
    if len(comparisons) <= 3:
        found = (
            f"{len(by_verdict[REPRODUCED if verdict == MIXED else verdict])} of {len(comparisons)} settings"
        )
        lead = f"{REPRODUCED} at {found}" if verdict == MIXED else f"at {found}"
        return verdict, "; ".join([lead, *(f"{c.verdict} at {sentence(c)}" for c in comparisons)])
    told = []
    for name, held in by_verdict.items():
        part = len(held) < len(comparisons)
        settings = f" ({few_names([c.setting for c in held])})" if part else ""
        told += [f"{name} at {len(held)} of {len(comparisons)} settings{settings}"] if held else []
    return verdict, "; ".join(told)


def _concerns(question: Question, cell: Cell) -> bool:
    group = Group(cell.values, {})
    return any(group.matches(chosen) for _, chosen in question.sides)

"""Compare two settings over their seeds and judge the difference, by rules that the report prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .bootstrap import BOOTSTRAPPED
from .config import LR_RANGE, higher_is_better
from .groups import TO_TARGET, Group
from .statistics import Mean, Paired, mean_of, paired, sign_test, split_chance

ALPHA = 0.05
FEWEST = 3  # seeds
MOST_DIGITS = 9  # of a difference

REPRODUCED, NOT_REPRODUCED, MIXED, NOT_TESTABLE = "reproduced", "not reproduced", "mixed", "not testable"
RULES = (
    "Arms are compared within seeds: one seed gives both the same data order and the same initial values"
    " for what they share. Where no run diverged, the paired t test over seeds decides at 5 % (two-sided);"
    " intervals are Student's at 95 %; the effect size is Cohen's d_z, the mean difference over the deviation"
    " of the differences. Where the differences of all seeds are alike but for rounding, a t test would be"
    " certain of anything, and the sign test over seeds decides in its place.",
    "The validation loss of a run is its best validation loss, that of the model it left: the best one that"
    " it validated, by train.metric, or the average where that was better. It is not the last one. The gap is"
    " from the last validation, and the training loss from the last log line.",
    f"Fewer than {FEWEST} seeds in common are too few for any answer: not testable.",
    "A run that diverged is worse than any that did not, by no stated amount. So is one that ended without a"
    " finite number for what is compared; and, for the updates to a target, one that has not reached it."
    f" An arm that diverged with every seed is worse than one that did with none, from {FEWEST} seeds on: two"
    " arms that fail equally often part so cleanly with a probability of at most 2/4^n, which is 3 % with"
    " three seeds. Where some seeds diverged, the sign test over seeds decides. It counts a seed at which one"
    " of the two diverged, or the two differ by more than the margin, and it takes six of them to decide"
    " anything. Where both arms diverged with every seed there is nothing to compare.",
    '"Better" and "worse" are reproduced when the difference is significant and its whole interval lies'
    " beyond the margin on the side that is claimed, and not reproduced when the whole interval leaves out"
    ' any such difference. "Differs" is reproduced with the interval beyond the margin on either side, and'
    ' not reproduced with the interval within it. "Same", "no worse" and "no better" are reproduced when the'
    " whole interval lies within the margin, not reproduced when it lies wholly beyond. In all other cases"
    " the seeds do not decide, and the answer is not testable: that no difference is significant does not"
    " show that there is none.",
    "The range of workable rates is how many decades of the learning rate, within those tried, have a"
    " validation loss of at most the study's target, the loss taken to be straight over the log of the rate;"
    " a diverged run counts as the lowest loss that any of the compared runs began with. It is found for each"
    " seed that has a result at every rate. No workable rate at all counts as divergence does, and a seed at"
    " which both sides work at every rate that was tried tells nothing.",
    'A question about a difference of differences ("as differences") compares what one pair differs by with'
    " what another pair differs by, within seeds. Where the first of a pair failed and the second did not,"
    " the difference is worse than any; where the second failed, the seed is left out, and named.",
    'Over "best", whatever the question leaves open (the learning rate, say) is tuned for each arm, among the'
    " settings for which most seeds have ended: fewest diverged seeds first, then the lowest validation loss,"
    " as a mean over seeds; test sets are not looked at. The seeds that chose the best setting also compare"
    " it, so it looks better than it is, the more so the more settings were tried: nothing corrects for"
    " that, and a note says where one arm had more tries than the other.",
    'Over "each", every setting is compared by itself with Holm\'s p values, those of clean splits included;'
    " several settings therefore take more seeds (two to six settings that all part cleanly need four). All"
    " reproduced is reproduced, none is not reproduced, some of each is mixed; settings that cannot be tested"
    " are named and do not count.",
    "Nothing corrects for the number of questions of a study: of twenty that are all in truth without a"
    " difference, one is expected to show a significant one.",
    f"The bootstrap over sentences is made for questions of at most {BOOTSTRAPPED} settings.",
)


@dataclass
class Comparison:
    """`this` against `that` at one setting, over the seeds both have.

    `gain` is how much better this is, so positive is better whatever the metric. `lean` is 1 where this is
    surely better by divergence or the sign test leans to it, -1 where that is, 0 where neither.
    """

    setting: str
    this: Group
    that: Group
    metric: str
    margin: float = 0.0
    seeds: list[int] = field(default_factory=list)
    scores: tuple[dict[int, float], dict[int, float]] = ({}, {})
    failed: tuple[int, int] = (0, 0)
    signs: tuple[int, int] = (0, 0)  # seeds at which this is better, and worse, by more than the margin
    tested: Paired | None = None
    p: float | None = None
    adjusted: float | None = None  # Holm's
    lean: int = 0
    verdict: str = NOT_TESTABLE
    why: str = ""

    @property
    def gain(self) -> Mean | None:
        return self.tested.difference if self.tested else None

    @property
    def all_failed(self) -> bool:
        return self.failed == (len(self.seeds), len(self.seeds))

    @property
    def clean_split(self) -> bool:
        """One failed with every seed, the other with none."""
        return bool(self.seeds) and set(self.failed) == {0, len(self.seeds)}

    def counts(self) -> str:
        """`diverged 3 of 3 against 0 of 3`."""
        verb = {TO_TARGET: "missed the target", LR_RANGE: "worked at no rate"}.get(self.metric, "diverged")
        return f"{verb} {self.failed[0]} of {len(self.seeds)} against {self.failed[1]} of {len(self.seeds)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for table.json."""
        gain, scores = self.gain, [{str(s): v for s, v in held.items()} for held in self.scores]
        return {
            "setting": self.setting,
            "metric": self.metric,
            "seeds": self.seeds,
            "this": {**dict(self.this.values), "scores": scores[0], "failed": self.failed[0]},
            "that": {**dict(self.that.values), "scores": scores[1], "failed": self.failed[1]},
            "gain": None if gain is None else gain.mean,
            "interval": None if gain is None or gain.low is None else [gain.low, gain.high],
            "p": self.p,
            "p_holm": self.adjusted,
            "cohen_dz": self.tested.effect if self.tested else None,
            "verdict": self.verdict,
            "why": self.why,
        }


def compare(setting: str, this: Group, that: Group, metric: str, margin: float = 0.0) -> Comparison:
    """The numbers of one comparison, not yet judged."""
    found = Comparison(setting, this, that, metric, margin)
    scores, failed = [g.scores(metric) for g in (this, that)], [g.fell_short(metric) for g in (this, that)]
    seeds = (set(scores[0]) | set(failed[0])) & (set(scores[1]) | set(failed[1]))
    found.seeds = sorted(seeds)
    ours, theirs = ({s: v for s, v in held.items() if s in seeds} for held in scores)
    found.scores = ours, theirs
    found.failed = len(seeds.intersection(failed[0])), len(seeds.intersection(failed[1]))
    if higher_is_better(metric):
        found.tested = paired(ours, theirs)
    else:
        found.tested = paired(theirs, ours)
    found.signs = wins, losses = _signs(found)
    if any(found.failed) and not found.all_failed:
        found.lean = (wins > losses) - (wins < losses)
    if len(seeds) >= FEWEST and not found.all_failed:
        found.p = _chance(found)
    return found


def _signs(c: Comparison) -> tuple[int, int]:
    """Seeds at which this is better, and worse, by more than the margin; what failed is worse by any."""
    side = 1 if higher_is_better(c.metric) else -1
    ours, theirs = ([side * held[s] if s in held else -math.inf for s in c.seeds] for held in c.scores)
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]  # where both failed NaN, which is neither
    return sum(gain > c.margin for gain in gains), sum(gain < -c.margin for gain in gains)


def _chance(c: Comparison) -> float | None:
    """The p of the test that fits how many failed."""
    if c.clean_split:
        return split_chance(len(c.seeds))
    return sign_test(*c.signs) if any(c.failed) or c.tested is None else c.tested.p


def judge(expect: str, c: Comparison) -> tuple[str, str]:
    """(verdict, reason in words) of one comparison, by `RULES`."""
    count = len(c.seeds)
    if not count:
        return NOT_TESTABLE, "no seed has a result in both"
    if c.all_failed:
        return NOT_TESTABLE, f"{c.counts()}: nothing to compare"
    if c.p is None:
        few = f"{count} seed{'s' if count > 1 else ''} in common: fewer than {FEWEST} are too few"
        return NOT_TESTABLE, f"{c.counts()}; {few}" if any(c.failed) else few
    p = c.p if c.adjusted is None else c.adjusted
    result = f"significant ({p_words(p)})" if p < ALPHA else f"not significant ({p_words(p)})"
    if any(c.failed):
        return _failures(expect, c, p, result)
    assert c.tested is not None
    if c.tested.identical:
        held = expect in ("same", "no worse", "no better")
        return (REPRODUCED if held else NOT_REPRODUCED), "identical with every seed, not significant (p = 1)"
    gain = c.tested.difference
    low, high = (gain.mean if bound is None else bound for bound in (gain.low, gain.high))
    if c.tested.steady:
        result = f"the same difference with every seed, by the sign test {result}"
        if p >= ALPHA:
            return NOT_TESTABLE, f"{result}, and so few seeds cannot be"
    if expect in ("better", "worse", "differs"):
        return _difference(expect, c.margin, low, high, p < ALPHA, result)
    return _equality(expect, c.margin, low, high, result)


def _failures(expect: str, c: Comparison, p: float, result: str) -> tuple[str, str]:
    """Where some run diverged: a clean split, or the sign test."""
    if c.clean_split:
        told = f"{c.counts()} (by chance with a probability of at most {p:.2g})"
        if p < ALPHA:
            return _decided(expect, c.lean), told
        return NOT_TESTABLE, f"{told}: so many settings at once take more seeds"
    wins, losses = c.signs
    beyond = f" by more than {c.margin:g}" if c.margin else ""
    told = f"{c.counts()}; {wins} better and {losses} worse{beyond}, by the sign test {result}"
    if p < ALPHA:
        return _decided(expect, c.lean), told
    if sign_test(wins + losses, 0) >= ALPHA or not min(wins, losses):
        return NOT_TESTABLE, f"{told}, and so few seeds cannot be"
    return NOT_TESTABLE, f"{told}: the seeds do not decide"


def _difference(
    expect: str, margin: float, low: float, high: float, significant: bool, result: str
) -> tuple[str, str]:
    """Claims that there is a difference."""
    above, below = low > margin, high < -margin
    if significant and {"better": above, "worse": below}.get(expect, above or below):
        return REPRODUCED, result
    told = f"{expect} by more than {margin:g}" if margin else expect
    if expect == "differs":
        left_out = margin and -margin < low and high < margin
        told = f"a difference beyond {margin:g}"
    else:
        left_out = high < margin if expect == "better" else low > -margin
        if significant and (high < 0 if expect == "better" else low > 0):
            return NOT_REPRODUCED, f"{result}, the other way round"
    if left_out:
        return NOT_REPRODUCED, f"{result}; {told} is ruled out"
    if significant and margin:
        return (
            NOT_TESTABLE,
            f"{result}, but not surely beyond the margin of {margin:g}: the seeds do not decide",
        )
    return NOT_TESTABLE, f"{result}: the seeds do not decide"


def _equality(expect: str, margin: float, low: float, high: float, result: str) -> tuple[str, str]:
    """Claims that there is none, or none in one direction."""
    within = {"same": -margin < low and high < margin, "no worse": low > -margin, "no better": high < margin}
    beyond = {"same": low > margin or high < -margin, "no worse": high < -margin, "no better": low > margin}
    told = {
        "same": f"a difference beyond {margin:g}",
        "no worse": f"worse by more than {margin:g}",
        "no better": f"better by more than {margin:g}",
    }[expect]
    if within[expect]:
        return REPRODUCED, f"{result}; {told} is ruled out"
    if beyond[expect]:
        return NOT_REPRODUCED, f"{result}; {told}, with the whole interval"
    if not margin:
        return NOT_TESTABLE, f"{result}; without a margin that does not show equality"
    return NOT_TESTABLE, f"{result}; {told} is neither shown nor ruled out: the seeds do not decide"


def _decided(expect: str, side: int) -> str:
    """The verdict where this is surely better (1) or worse (-1) than that, by no stated amount."""
    held = {"better": side > 0, "worse": side < 0, "no worse": side > 0, "no better": side < 0}
    return REPRODUCED if held.get(expect, expect == "differs") else NOT_REPRODUCED


def sentence(c: Comparison) -> str:
    """`rate 1e-3: 2.971 against 3.066, 0.095 better (95 % interval 0.05 to 0.14), significant (p = 0.02)`."""
    parts, digits = [], digits_for(c)
    ours, theirs = (mean_of(list(held.values())) for held in c.scores)
    if ours is not None and theirs is not None:
        parts.append(f"{ours.mean:,.{digits}f} against {theirs.mean:,.{digits}f}")
    gain = c.gain
    if gain is not None and gain.mean and not any(c.failed):
        side, sign = ("better", 1) if gain.mean > 0 else ("worse", -1)
        bounds = ""
        if gain.low is not None and gain.high is not None:
            low, high = sorted((sign * gain.low, sign * gain.high))
            bounds = f" (95 % interval {low:,.{digits}f} to {high:,.{digits}f})"
        parts.append(f"{abs(gain.mean):,.{digits}f} {side}{bounds}")
    if c.tested is not None and c.tested.effect is not None and not any(c.failed):
        effect = c.tested.effect
        parts.append(
            f"d_z = {effect:.1f}" if abs(effect) < 20 else f"d_z beyond {math.copysign(20, effect):g}"
        )
    text = ", ".join([*parts, c.why])
    return f"{c.setting}: {text}" if c.setting else text


def digits_for(c: Comparison) -> int:
    """Decimals that show two digits of the difference and one of each bound; a loss has three at least."""
    usual = 0 if c.metric == TO_TARGET else 2 if higher_is_better(c.metric) else 3
    if c.gain is None or any(c.failed):
        return usual
    first = [-math.floor(math.log10(abs(v))) if v else 0 for v in (c.gain.mean, c.gain.low, c.gain.high)]
    return max(usual, min(MOST_DIGITS, max(first[0] + 1, *first)))


def p_words(p: float) -> str:
    """`p < 0.001`, `p = 0.031`, `p = 0.42`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def few_names(names: Sequence[str], most: int = 6) -> str:
    """`a; b; c and 4 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more

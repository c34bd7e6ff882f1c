"""The tables of a report: results, comparisons, bootstraps, and what differs between the arms."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import DataError
from ..core.reading import written
from .bootstrap import BOOTSTRAPPED, paired_bootstrap
from .cells import FREE
from .config import RATE, Study
from .cost import cost_of_run
from .document import Table
from .drawing import lines_of
from .figures import line_sensitivity
from .groups import (
    LOSS,
    TO_TARGET,
    Group,
    axes_of,
    family_keys,
    label,
    metric_name,
    plain,
    rate_text,
    sort_key,
    split_by,
)
from .judging import Comparison, p_words
from .metrics import higher_is_better
from .outcomes import Outcome
from .statistics import Mean
from .verdicts import Verdict

_log = logging.getLogger(__name__)
# Where a run is, and what is written when: nothing that decides it.
UNTOLD = ("seed", *FREE)


def digits_of(metric: str) -> int:
    return 0 if metric == TO_TARGET else 3 if not higher_is_better(metric) else 2


def mean_text(mean: Mean | None, digits: int) -> str:
    """`2.971 ± 0.012`, without the interval where there is one seed."""
    if mean is None:
        return "–"
    half = "" if mean.half is None else f" ± {mean.half:,.{digits}f}"
    return f"{mean.mean:,.{digits}f}{half}"


def metrics_of(study: Study, groups: Sequence[Group]) -> list[str]:
    """What the results table shows: losses and BLEU first, then whatever else the study asks for."""
    tests = sorted({name for g in groups for run in g.runs.values() for name in run.tests})
    asked = [study.metric, *(q.metric for q in study.questions if q.metric)]
    wanted = [LOSS, "valid_bleu", *(f"test.{name}.bleu" for name in tests), *asked]
    wanted += [TO_TARGET] if study.target is not None else []
    return [m for m in dict.fromkeys(wanted) if any(g.scores(m) for g in groups)]


def results(study: Study, groups: Sequence[Group]) -> Table:
    """A row for each setting: seeds, divergence, mean and interval of each metric."""
    metrics = metrics_of(study, groups)
    keys = list(axes_of(groups))
    rows = []
    for group in groups:
        cells = [label(group.only(keys)), f"{len(group.runs)}", f"{len(group.failed)}"]
        rows.append([*cells, *(_mean_or_bound(group, m) for m in metrics)])
    return Table(["setting", "seeds", "diverged", *map(metric_name, metrics)], rows)


def _mean_or_bound(group: Group, metric: str) -> str:
    """`≤ 50` where a seed's number is an upper bound, of which no interval is known."""
    mean, digits = group.mean(metric), digits_of(metric)
    if mean is not None and group.bounded(metric):
        return f"≤ {mean.mean:,.{digits}f}"
    return mean_text(mean, digits)


def sensitivities(groups: Sequence[Group]) -> Table | None:
    """The sensitivity of each line to the learning rate, and its best rate."""
    rows = []
    for line in lines_of(groups):
        found = line_sensitivity(line)
        if found is not None:
            best = line.best
            rows.append([line.label, f"{found:.3f}", rate_text(best.values[RATE]), mean_text(best.loss, 3)])
    return Table(["arm", "sensitivity", "best rate", "loss there"], rows) if rows else None


def comparisons(verdict: Verdict) -> Table:
    """Every setting of a question."""
    rows = []
    for c in verdict.comparisons:
        digits = digits_of(c.metric)
        told = [c.setting or label(verdict.question.this), f"{len(c.seeds)}"]
        told += [f"{c.failed[0]} / {c.failed[1]}"]
        if c.gain is None or any(c.failed):
            told += ["–", "–"]
        else:
            low, high = c.gain.low, c.gain.high
            unknown = low is None or high is None
            bounds = "" if unknown else f"{_signed(low or 0.0, digits)} to {_signed(high or 0.0, digits)}"
            told += [_signed(c.gain.mean, digits), bounds or "–"]
        effect = c.tested.effect if c.tested and not any(c.failed) else None
        told += ["–" if effect is None else f"{effect:.1f}"]
        told += [
            "–" if c.adjusted is None else p_words(c.adjusted).removeprefix("p ").removeprefix("= "),
            c.verdict,
        ]
        rows.append(told)
    head = ["setting", "seeds", "diverged", "gain", "95 % interval", "d_z", "p (Holm)", "verdict"]
    return Table(
        head,
        rows,
        folded=f"Question {{number}}, setting by setting: {metric_name(verdict.comparisons[0].metric)}",
    )


@dataclass
class Bootstraps:
    """Paired bootstraps of BLEU within seeds, each pair of runs tested once."""

    known: dict[tuple[str, str, str], list[Any]] = field(default_factory=dict)
    told: set[tuple[str, str, str]] = field(default_factory=set)

    def rows(self, number: int, verdict: Verdict) -> list[list[str]]:
        """A row for each setting, test set and seed; none where no translations were kept."""
        if len(verdict.comparisons) > BOOTSTRAPPED:
            return []
        return [row for c in verdict.comparisons for row in self._of(number, c)]

    def _of(self, number: int, c: Comparison) -> list[list[str]]:
        found = []
        tests = sorted({name for g in (c.this, c.that) for run in g.runs.values() for name in run.tests})
        for test in tests:
            for seed in c.seeds:
                this, that = c.this.runs[seed], c.that.runs[seed]
                key = (this.cell.name, that.cell.name, test)
                if key in self.told:
                    continue  # another question's pair
                self.told.add(key)
                for bleu in self._tested(this, that, test):
                    scores = [
                        f"{bleu.first:.2f} ± {bleu.first_half:.2f}",
                        f"{bleu.second:.2f} ± {bleu.second_half:.2f}",
                    ]
                    told = [f"{number} {c.setting}".strip(), test, str(seed), *scores]
                    found.append([*told, _signed(-bleu.difference, 2), p_words(bleu.p)])
        return found

    def _tested(self, this: Outcome, that: Outcome, test: str) -> list[Any]:
        key = (this.cell.name, that.cell.name, test)
        if key not in self.known:
            texts = this.hypotheses(test), that.hypotheses(test), this.references(test)
            same = this.references(test) == that.references(test)
            if any(text is None for text in texts) or not same:
                self.known[key] = []
            else:
                first, second, reference = (text or [] for text in texts)
                try:
                    self.known[key] = paired_bootstrap(first, second, reference, chrf=False)
                except DataError as error:
                    _log.warning("%s and %s: no bootstrap of %s: %s", *key, error)
                    self.known[key] = []
        return self.known[key]


def bootstraps(verdicts: Sequence[Verdict]) -> tuple[Table, str] | None:
    """The table, and the signature of its scores; None without saved translations."""
    held = Bootstraps()
    rows = [row for number, verdict in enumerate(verdicts, 1) for row in held.rows(number, verdict)]
    if not rows:
        return None
    signature = next(found[0].signature for found in held.known.values() if found)
    head = ["question", "test set", "seed", "first", "second", "difference", "paired bootstrap"]
    return Table(head, rows, left=2), signature


def differences(groups: Sequence[Group]) -> Table:
    """A row for each arm: its cost, and its values of every option that is not the same in all runs."""
    families = family_keys(groups)
    parts = split_by(groups, families)
    runs = [run for group in groups for run in group.runs.values()]
    keys = sorted({key for run in runs for key in run.config if key not in UNTOLD})
    differing = [key for key in keys if len({_text(run.config.get(key)) for run in runs}) > 1]
    rows = []
    for values, members in parts:
        own = [run for group in members for run in group.runs.values()]
        parameters = sorted({run.parameters for run in own})
        cost = next((cost for run in own if (cost := cost_of_run(run)) is not None), None)
        costs = ["–", "–"] if cost is None else [f"{cost.source:,}", f"{cost.target:,}"]
        cells = [label(values), " / ".join(f"{count:,}" for count in parameters), *costs]
        rows.append([*cells, *(_several([run.config.get(key) for run in own]) for key in differing)])
    head = ["arm", "parameters", "FLOP a source token", "FLOP a target token", *differing]
    return Table(head, rows)


def _several(values: Sequence[Any]) -> str:
    """Every value that occurs; – for an option that a run does not have."""
    distinct = {_text(value): value for value in values}
    ordered = sorted(distinct.values(), key=sort_key)
    return ", ".join(_text(value) for value in ordered)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return written(value) if isinstance(value, Mapping) else str(value)


def _signed(value: float, digits: int) -> str:
    """`+0.12`; what rounds to zero has no sign."""
    text = f"{value:+,.{digits}f}"
    return text[1:] if float(text.replace(",", "")) == 0 else text


def agreed(groups: Sequence[Group], key: str) -> str:
    """A fact of all runs' result.json, or all values of it."""
    runs = [run for group in groups for run in group.runs.values()]
    held: dict[str, None] = dict.fromkeys(sorted({_text(plain(run.result.get(key))) for run in runs}))
    return ", ".join(held)

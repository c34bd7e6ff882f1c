"""How much the learning rate matters: settings that differ in nothing else, taken together seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .config import RATE, SENSITIVITY
from .groups import LOSS, Group, plain, split_by
from .statistics import sensitivity


def seed_sensitivities(groups: Sequence[Group]) -> dict[int, float]:
    """The sensitivity to the rate of each seed that has a result at every rate.

    `groups` differ in the rate alone. The loss at initialisation is the highest first training loss among
    their runs. Empty where it is not known, and below two rates. Source: `statistics.sensitivity`.
    """
    rates = {float(plain(group.values[RATE])): group for group in groups if RATE in group.values}
    runs = [run for group in rates.values() for run in group.runs.values()]
    starts = [run.train_curve[0][1] for run in runs if run.train_curve]
    initial = max((start for start in starts if math.isfinite(start)), default=None)
    if len(rates) < 2 or initial is None:
        return {}
    losses = {rate: group.scores(LOSS) for rate, group in rates.items()}
    ended = [{*scores, *rates[rate].fell_short(LOSS)} for rate, scores in losses.items()]
    found = {
        seed: sensitivity({rate: scores.get(seed) for rate, scores in losses.items()}, initial)
        for seed in sorted(set.intersection(*ended))
    }
    return {seed: value for seed, value in found.items() if value is not None}


def swept(groups: Sequence[Group]) -> list[Group]:
    """A group for each setting but for the rate: its runs measure the sensitivity, and their best loss."""
    keys = sorted({key for group in groups for key in group.values} - {RATE})
    found = []
    for values, members in split_by(groups, keys):
        runs = {}
        for seed, value in seed_sensitivities(members).items():
            losses = [score for group in members if (score := group.scores(LOSS).get(seed)) is not None]
            result = {SENSITIVITY: value, LOSS: min(losses, default=None)}
            any_run = members[0].runs[seed]
            runs[seed] = replace(any_run, status="completed", diverged=False, tests={}, result=result)
        if runs:
            found.append(Group(values, runs))
    return found

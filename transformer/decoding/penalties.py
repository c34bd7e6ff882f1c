"""How a hypothesis' length enters its score: score = log p / penalty(length).

Length counts the target's subwords and its EOS. A penalty is positive and never falls with length,
which is what beam search's stop criterion rests on (see beam.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..core.registry import Registry

LengthPenalty = Callable[[int, float], float]
LENGTH_PENALTIES: Registry[LengthPenalty] = Registry("length penalty")


@LENGTH_PENALTIES.register(
    "none",
    title="None",
    equation="score = log p",
    note="Prefers short translations: each further token costs.",
)
def no_penalty(length: int, alpha: float) -> float:
    return 1.0


@LENGTH_PENALTIES.register(
    "average",
    title="Average",
    equation="score = log p / length^alpha",
    paper="Cho et al. 2014, arXiv 1409.1259, section 3.2",
    note="With alpha 1, the mean log-probability of a token; fairseq's --lenpen.",
)
def average(length: int, alpha: float) -> float:
    return math.pow(length, alpha)


@LENGTH_PENALTIES.register(
    "wu",
    title="Wu",
    equation="score = log p / ((5 + length) / 6)^alpha",
    paper="Wu et al. 2016, arXiv 1609.08144, equation 14",
    note="Nearly flat on short sentences.",
)
def wu(length: int, alpha: float) -> float:
    return math.pow((5 + length) / 6, alpha)


def penalty_table(name: str, alpha: float, longest: int) -> list[float]:
    """penalty(length) for length 1..longest, made monotone against rounding; entry 0 is not used."""
    penalty = LENGTH_PENALTIES[name]
    table = [1.0]
    for length in range(1, longest + 1):
        value = penalty(length, alpha)
        table.append(max(value, table[-1]) if length > 1 else value)
    return table

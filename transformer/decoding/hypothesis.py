"""A finished target and its worth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """Target tokens without BOS and EOS; log p including EOS; log p under the length penalty.

    `log_probability` is the model's own: the tokens that search may not choose keep their share of the
    probability, so that scoring a translation gives the number that search reported.
    """

    tokens: tuple[int, ...]
    log_probability: float
    score: float

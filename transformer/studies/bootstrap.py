"""Paired bootstrap of two translations of one text, by sacreBLEU's own code (Koehn 2004; Post 2018)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from ..core.errors import DataError

SAMPLES = 1000
BOOTSTRAPPED = 4  # settings of one question; each costs seconds for every seed and test set


@dataclass(frozen=True)
class Resampled:
    """A metric of both texts: score, half of the 95 % interval over resampled sentences, and the test's p."""

    metric: str
    first: float
    second: float
    first_half: float
    second_half: float
    p: float
    signature: str

    @property
    def difference(self) -> float:
        return self.second - self.first

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "difference": self.difference}


def paired_bootstrap(
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[str],
    *,
    samples: int = SAMPLES,
    chrf: bool = True,
) -> list[Resampled]:
    """BLEU (and chrF2) of both, and the p of their difference, by resampling sentences.

    sacreBLEU draws the same sentences for both, with a seed of its own (SACREBLEU_SEED). Translations that
    score alike have p = 1, which its count of *larger* differences would miss.
    Raises DataError when the numbers of lines differ or there is none.
    """
    if not len(first) == len(second) == len(references):
        raise DataError(
            f"{len(first):,} and {len(second):,} translations, {len(references):,} references:"
            " the paired test needs them line by line"
        )
    if not references:
        raise DataError("0 translations and 0 references: there is nothing to compare")
    metrics: dict[str, Any] = {"BLEU": BLEU(force=True), **({"chrF2": CHRF()} if chrf else {})}
    with _quiet():
        test = PairedTest(
            [("first", list(first)), ("second", list(second))],
            metrics,
            [list(references)],
            test_type="bs",
            n_samples=samples,
        )
        signatures, scores = test()
    found = []
    for metric, signature in signatures.items():
        one, other = (_plain(result) for result in scores[metric])
        p = 1.0 if one[0] == other[0] else other[2]
        found.append(Resampled(metric, one[0], other[0], one[1], other[1], p, str(signature)))
    return found


def _plain(result: Any) -> tuple[float, float, float]:
    """(score, half of the interval, p) of sacreBLEU's result; the first text has no p of its own."""
    p = 1.0 if result.p_value is None else float(result.p_value)
    return float(result.score), float(result.ci), p


@contextmanager
def _quiet() -> Iterator[None]:
    """Without sacreBLEU's account of its progress."""
    logger = logging.getLogger("sacrebleu")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

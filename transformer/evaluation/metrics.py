"""BLEU, chrF and TER as sacreBLEU defines them, with the signatures that make a score comparable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from ..core.errors import DataError

# Marks that only tokenizers leave: Moses' escapes and hyphens, subword joints.
_MARKS = re.compile(r"&(apos|quot|amp|lt|gt|bar);|&#\d+;| @-@ |@@( |$)|▁")
# French sets a space before ? ! : ; and nobody sets one before a comma or a full stop.
_SPACED = re.compile(r"\S (,|\.)( |$)")


@dataclass(frozen=True)
class Metrics:
    """Scores of a corpus in percent (TER: edits per 100 reference words) and sacreBLEU's signature of each.

    `ter` is None where it was not asked for. `warnings` are about the reference, for the user.
    """

    bleu: float
    chrf: float
    ter: float | None
    sentences: int
    signatures: dict[str, str]
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """`{bleu, chrf, ter, sentences, signature: {bleu: ..., chrf: ..., ter: ...}}`, for result.json."""
        scores: dict[str, Any] = {"bleu": self.bleu, "chrf": self.chrf}
        if self.ter is not None:
            scores["ter"] = self.ter
        return {**scores, "sentences": self.sentences, "signature": dict(self.signatures)}

    def __str__(self) -> str:
        rows = [("BLEU", "bleu", self.bleu), ("chrF2", "chrf", self.chrf), ("TER", "ter", self.ter)]
        lines = [
            f"{title:5} {score:6.2f}   {self.signatures[name]}"
            for title, name, score in rows
            if score is not None
        ]
        return "\n".join(lines)


def corpus_metrics(hypotheses: Sequence[str], references: Sequence[str], *, ter: bool = True) -> Metrics:
    """Score detokenised translations against untouched references, one of each per line.

    BLEU: 13a tokenisation inside the metric, cased, smoothed only where an n-gram order has no match
    (Post 2018, arXiv 1804.08771); chrF2: characters up to 6-grams, beta = 2 (Popović 2016); TER: Snover 2006,
    uncased, and slow on long lines: `ter=False` leaves it out.

    Raises DataError when the numbers of lines differ or there is none.
    """
    if len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses):,} translations but {len(references):,} references: each line needs its own"
        )
    if not hypotheses:
        raise DataError("0 translations and 0 references: there is nothing to score")
    metrics = {"bleu": BLEU(force=True), "chrf": CHRF()}
    if ter:
        metrics["ter"] = TER()
    lists = list(hypotheses), [list(references)]
    scores = {name: float(metric.corpus_score(*lists).score) for name, metric in metrics.items()}
    return Metrics(
        bleu=scores["bleu"],
        chrf=scores["chrf"],
        ter=scores.get("ter"),
        sentences=len(references),
        signatures={name: str(metric.get_signature()) for name, metric in metrics.items()},
        warnings=tuple(reference_warnings(references)),
    )


def reference_warnings(references: Sequence[str]) -> list[str]:
    """What suggests that the reference is not the original text, so that the BLEU is not comparable."""
    warnings = []
    found = [(number, _MARKS.search(line)) for number, line in enumerate(references, 1)]
    marked = [(number, match[0].strip()) for number, match in found if match]
    if marked and len(marked) * 100 >= len(references):
        number, mark = marked[0]
        warnings.append(
            f"the reference looks tokenised: {mark!r} in line {number:,}, such marks in {len(marked):,} of"
            f" {len(references):,} lines; BLEU is comparable only against the original text"
        )
    spaced = [n for n, line in enumerate(references, 1) if _SPACED.search(line)]
    if spaced and len(spaced) * 10 >= len(references):
        warnings.append(
            f"the reference looks tokenised: a space before a comma or full stop in {len(spaced):,} of"
            f" {len(references):,} lines (first in line {spaced[0]:,}); BLEU is comparable only against the"
            " original text"
        )
    return warnings

"""Encode and filter some pairs at a time: what one process does for the others, or for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.special import UNK
from . import report as why
from .corpus import Pair, Split
from .encoded import SIDES, Flat, id_type
from .report import SplitReport
from .tokenizer import Tokenizer

# No subword is longer on average. What lies beyond `max_length` of them is not looked at: it would take
# SentencePiece a hundred bytes a character to tell that the pair is too long.
_CHARACTERS_PER_SUBWORD = 32

Chunk = Sequence[tuple[str, Pair]]  # pairs with the prefix of their files


@dataclass(frozen=True)
class Recipe:
    """All that decides what becomes of a pair; `models` are those of the tokenizers, equal if joint."""

    split: Split
    models: tuple[bytes, bytes]
    max_length: int
    max_ratio: float | None
    drop_copies: bool
    texts: bool
    drops: bool


@dataclass(frozen=True)
class Part:
    """The rows of a chunk that were kept, by the names of `CorpusWriter`'s files, and what was left out."""

    flats: dict[str, Flat]
    report: SplitReport


class Encoder:
    """Makes parts of chunks, by one recipe."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        """`threads` of SentencePiece; -1 = all CPUs."""
        self._recipe, self._threads = recipe, threads
        source, target = recipe.models
        self._source = Tokenizer(source)
        self._target = self._source if source == target else Tokenizer(target)

    def judge(self, chunk: Chunk) -> tuple[list[list[int]], list[list[int]], list[str | None]]:
        """Ids of either side, and why a pair is no good for training, or None."""
        most = longest_text(self._recipe.max_length)
        sources = self._source.encode_batch([pair.source[:most] for _, pair in chunk], self._threads)
        targets = self._target.encode_batch([pair.target[:most] for _, pair in chunk], self._threads)
        reasons = [
            self._reason(pair, len(source), len(target))
            for (_, pair), source, target in zip(chunk, sources, targets, strict=True)
        ]
        return sources, targets, reasons

    def encode(self, chunk: Chunk) -> Part:
        recipe, limit = self._recipe, self._recipe.max_length - 1
        sources, targets, reasons = self.judge(chunk)
        report = SplitReport(recipe.split, drops=recipe.drops)
        keep = []
        for row, ((prefix, pair), reason) in enumerate(zip(chunk, reasons, strict=True)):
            if reason:
                shown = pair.target if reason == why.EMPTY_SOURCE else pair.source
                report.add(reason, f"{prefix}, line {pair.line}", shown)
            if not (reason and recipe.drops):
                keep.append(row)
        flats = {}
        for side, rows, size in zip(
            SIDES, (sources, targets), (self._source.size, self._target.size), strict=True
        ):
            flats[f"{side}.ids"] = flat = Flat.of([rows[row][:limit] for row in keep], id_type(size))
            setattr(report, f"{side}_tokens", len(flat.values))
            setattr(report, f"{side}_unknown", int(np.count_nonzero(flat.values == UNK)))
            if recipe.texts:
                lines = [getattr(chunk[row][1], side).encode() for row in keep]
                flats[f"{side}.text"] = Flat.of(lines, "uint8")
        report.read, report.kept = len(chunk), len(keep)
        return Part(flats, report)

    def _reason(self, pair: Pair, source: int, target: int) -> str | None:
        """Why a pair is no good for training, or None. Lengths are in tokens without the end mark."""
        recipe = self._recipe
        if not source or not target:
            return why.EMPTY_BOTH if source == target else why.EMPTY_TARGET if source else why.EMPTY_SOURCE
        if max(source, target) + 1 > recipe.max_length or max(map(len, pair[1:])) > longest_text(
            recipe.max_length
        ):
            return why.TOO_LONG
        longer, shorter = max(source, target) + 1, min(source, target) + 1
        if recipe.max_ratio is not None and longer > recipe.max_ratio * shorter:
            return why.RATIO
        if recipe.drop_copies and pair.source.strip() == pair.target.strip():
            return why.COPY
        return None


def longest_text(max_length: int) -> int:
    """Characters of a side that are looked at; with more it is too long for `max_length` subwords."""
    return max_length * _CHARACTERS_PER_SUBWORD

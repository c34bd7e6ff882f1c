"""Random segmentations of a word, drawn from a given generator: the same numbers draw the same pieces.

SentencePiece can sample too, but its generator is salted anew in every process, so a resumed run would not
see the subwords of the run it resumes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from random import Random

_CACHED_WORDS = 1 << 16


class Segmenter(ABC):
    """`pieces`: piece -> (id, score). A word begins with `▁` and every character of it is a piece."""

    def __init__(self, pieces: Mapping[str, tuple[int, float]]) -> None:
        self._pieces = pieces
        self._longest = max(map(len, pieces), default=0)

    def knows(self, word: str) -> bool:
        return all(character in self._pieces for character in word)

    @abstractmethod
    def draw(self, word: str, alpha: float, generator: Random) -> list[int]:
        """Ids of a random segmentation."""


class BPEDropout(Segmenter):
    """Merge the best pair of neighbours that is not dropped, until all are; each is dropped with rate alpha.

    Provilkov et al. 2020, algorithm 1. The best pair has the highest score, and is the leftmost of equals.
    """

    def draw(self, word: str, alpha: float, generator: Random) -> list[int]:
        symbols = list(word)
        while True:
            best, where = -math.inf, -1
            for place in range(len(symbols) - 1):
                merged = self._pieces.get(symbols[place] + symbols[place + 1])
                if merged and generator.random() >= alpha and merged[1] > best:
                    best, where = merged[1], place
            if where < 0:
                return [self._pieces[symbol][0] for symbol in symbols]
            symbols[where : where + 2] = [symbols[where] + symbols[where + 1]]


class UnigramSampling(Segmenter):
    """P(pieces) proportional to prod p(piece)^alpha over all segmentations of the word.

    Kudo 2018, section 3.2 with l = infinity: sums from the left, then draws from the right.
    """

    def __init__(self, pieces: Mapping[str, tuple[int, float]]) -> None:
        super().__init__(pieces)
        self._last_pieces = lru_cache(_CACHED_WORDS)(self._find_last_pieces)

    def draw(self, word: str, alpha: float, generator: Random) -> list[int]:
        table = self._last_pieces(word, alpha)
        ids: list[int] = []
        end = len(word)
        while end:
            threshold = generator.random()
            end, number = next((start, number) for start, number, up_to in table[end] if threshold < up_to)
            ids.append(number)
        return ids[::-1]

    def _find_last_pieces(self, word: str, alpha: float) -> list[list[tuple[int, int, float]]]:
        """For each prefix of the word: (start, id, cumulative probability) of the pieces it may end in."""
        totals = [0.0]  # log of the sum over all segmentations of each prefix
        table: list[list[tuple[int, int, float]]] = [[]]
        for end in range(1, len(word) + 1):
            found = []
            for start in range(max(0, end - self._longest), end):
                if piece := self._pieces.get(word[start:end]):
                    found.append((start, piece[0], totals[start] + alpha * piece[1]))
            highest = max(weight for _, _, weight in found)
            total = sum(math.exp(weight - highest) for _, _, weight in found)
            totals.append(highest + math.log(total))
            row, reached = [], 0.0
            for start, number, weight in found:
                reached += math.exp(weight - highest) / total
                row.append((start, number, reached))
            row[-1] = (*row[-1][:2], math.inf)  # rounding must not leave a gap below 1
            table.append(row)
        return table

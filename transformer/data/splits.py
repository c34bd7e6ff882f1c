"""The text of a split: read once to check and to hash it, again to use it; never held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from .config import DataConfig
from .corpus import DEMO, Oddities, Pair, Split, find, read_pairs


class SplitText:
    """The text of a split: one or more prefixes, one after the other."""

    def __init__(self, config: DataConfig, prefixes: tuple[str, ...], split: Split) -> None:
        self.prefixes, self.split = prefixes, split
        self.source, self.target = config.source, config.target
        self.count = 0
        self.digest = ""
        self.oddities: list[str] = []

    def scan(self) -> None:
        """Read everything once: sides equally long, text readable, and the hash that addresses the cache."""
        digests = hashlib.sha256(), hashlib.sha256()
        for prefix in self.prefixes:
            notes = self._notes(prefix)
            for pair in read_pairs(prefix, self.source, self.target, self.split, notes):
                digests[0].update(pair.source.encode() + b"\n")
                digests[1].update(pair.target.encode() + b"\n")
                self.count += 1
            self.oddities += [message for note in notes for message in note.messages()]
        self.digest = digests[0].hexdigest() + digests[1].hexdigest()

    def _notes(self, prefix: str) -> tuple[Oddities, Oddities]:
        if prefix == DEMO:
            return Oddities(DEMO), Oddities(DEMO)
        return Oddities(str(find(prefix, self.source))), Oddities(str(find(prefix, self.target)))

    def located(self) -> Iterator[tuple[str, Pair]]:
        for prefix in self.prefixes:
            for pair in read_pairs(prefix, self.source, self.target, self.split):
                yield prefix, pair

    def pairs(self) -> Iterator[tuple[str, str]]:
        return ((pair.source, pair.target) for _, pair in self.located())

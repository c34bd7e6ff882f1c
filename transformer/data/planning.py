"""Which pairs stand in which batch of an epoch, in memory that does not grow with the corpus.

Pairs are sorted by length, ties in random order, cut into batches greedily, and the batches are shuffled. A
corpus of more than `WINDOW` pairs is ordered window by window: its blocks of `BLOCK` neighbours are shuffled,
and each window, an equal share of the blocks, is sorted, cut and shuffled by itself.
All of it is a pure function of (seed, epoch): every pair comes exactly once an epoch, and an epoch can be
entered at any batch. Entering costs one pass over the lengths, which counts the batches of each window, and
the order of one window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.seeding import derive_seed

WINDOW = 1 << 20  # pairs ordered at a time
BLOCK = 1 << 10  # neighbours that stay in one window

Lengths = NDArray[np.int32]


class Corpus(Protocol):
    """What an order needs to know of a corpus."""

    def __len__(self) -> int: ...
    def lengths(self, start: int, stop: int) -> tuple[Lengths, Lengths]: ...


class Batches(Protocol):
    """An epoch's batches: the places in the corpus of the pairs of batch k."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Plan:
    """An epoch's batches: batch k is `order[starts[k]:stops[k]]`."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        return self.order[self.starts[index] : self.stops[index]]


def plan_epoch(
    corpus: Corpus,
    tokens_per_batch: int,
    seed: int,
    epoch: int,
    *,
    shuffle: bool = True,
    window: int = WINDOW,
    block: int = BLOCK,
) -> Batches:
    """The batches of an epoch. Up to `window` pairs, and any number without `shuffle`, are one window."""
    own_seed = derive_seed(seed, "order", epoch)
    if len(corpus) <= window or not shuffle:
        return plan_batches(*corpus.lengths(0, len(corpus)), tokens_per_batch, own_seed, shuffle)

    def plan(number: int, sizes: tuple[Lengths, Lengths]) -> Plan:
        return plan_batches(*sizes, tokens_per_batch, derive_seed(seed, "order", epoch, number))

    blocks = -(-len(corpus) // block)
    sequence = np.random.default_rng(derive_seed(seed, "blocks", epoch)).permutation(blocks)
    windows = np.array_split(sequence, -(-blocks // max(1, window // block)))
    return Windows(corpus, windows, block, tokens_per_batch, plan)


class Windows:
    """The batches of one window after the other; the order of one of them is in memory at a time."""

    def __init__(
        self,
        corpus: Corpus,
        windows: list[NDArray[np.int64]],
        block: int,
        tokens_per_batch: int,
        plan: Callable[[int, tuple[Lengths, Lengths]], Plan],
    ) -> None:
        """`windows`: the blocks of each. `plan(number, lengths)`: the order of a window, places within it."""
        self._corpus, self._windows, self._block, self._plan = corpus, windows, block, plan
        self._ends = np.cumsum(
            [count_batches(np.maximum(*self._lengths(blocks)), tokens_per_batch) for blocks in windows]
        )
        self._planned: tuple[int, Plan, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        if self._planned is None or self._planned[0] != number:
            self._planned = None
            self._planned = (
                number,
                self._plan(number, self._lengths(self._windows[number])),
                self._firsts(number),
            )
        _, plan, firsts = self._planned
        rows = plan[index - (int(self._ends[number - 1]) if number else 0)]
        return firsts[rows // self._block] + rows % self._block

    def _firsts(self, number: int) -> NDArray[np.int64]:
        return np.sort(self._windows[number]) * self._block

    def _lengths(self, blocks: NDArray[np.int64]) -> tuple[Lengths, Lengths]:
        """Source and target lengths of the pairs of these blocks, which come in the corpus's own order.

        So a block that is not full, the corpus's last, is the last one here too.
        """
        starts = np.sort(blocks) * self._block
        parts = [
            self._corpus.lengths(start, min(start + self._block, len(self._corpus)))
            for start in starts.tolist()
        ]
        source, target = zip(*parts, strict=True)
        return np.concatenate(source), np.concatenate(target)


def count_batches(longest: Lengths, tokens: int) -> int:
    """Into how many batches `plan_batches` cuts pairs whose longer sides have these lengths, in any order."""
    counts = np.bincount(longest)
    widths = np.flatnonzero(counts)
    batches = open_rows = 0
    for width, rows in zip(widths.tolist(), counts[widths].tolist(), strict=True):
        room = max(1, tokens // width)
        taken = (
            min(rows, max(0, room - open_rows)) if open_rows else 0
        )  # by the batch begun with shorter pairs
        if taken == rows:
            open_rows += rows
            continue
        batches += open_rows > 0
        full, open_rows = divmod(rows - taken, room)
        batches += full
    return batches + (open_rows > 0)


def plan_batches(
    source_lengths: Lengths,
    target_lengths: Lengths,
    tokens_per_batch: int,
    seed: int,
    shuffle: bool = True,
) -> Plan:
    """Cut the pairs into batches of rows x max(longest source, longest target) <= `tokens_per_batch`.

    A pair that is longer by itself is a batch by itself. Without `shuffle` the batches come longest first and
    the seed does not matter.
    """
    assert tokens_per_batch > 0
    generator = np.random.default_rng(seed)
    order = _sorted(source_lengths, target_lengths, generator if shuffle else None)
    bounds = _cut(np.maximum(source_lengths, target_lengths)[order], tokens_per_batch)
    sequence = generator.permutation(len(bounds) - 1) if shuffle else np.arange(len(bounds) - 1)[::-1]
    return Plan(order, bounds[:-1][sequence], bounds[1:][sequence])


def _sorted(source: Lengths, target: Lengths, generator: np.random.Generator | None) -> NDArray[np.int64]:
    """Pairs by the longer side, then by how much longer the source is than the target, ties in random order.

    The longer side is what the budget counts; within one such length the second key orders both sides at
    once. It runs up and down in turn, so that a batch which spans two lengths finds similar pairs on both
    sides of the border. One 62-bit key (20 longer, 21 difference, 21 noise) sorts fastest; it is made in
    place, since memory is what limits a window.
    """
    limit = (1 << 20) - 1  # lengths beyond a million tokens sort as equal
    source, target = (np.minimum(lengths, limit).astype(np.int32) for lengths in (source, target))
    longer, difference = np.maximum(source, target), source - target
    del source, target
    np.negative(difference, out=difference, where=longer % 2 == 1)
    key = longer.astype(np.int64)
    key <<= 21
    key |= difference + limit
    del longer, difference
    key <<= 21
    if generator is not None:
        key |= generator.integers(0, 1 << 21, len(key))
    return np.argsort(key, kind="stable")


def _cut(longest: NDArray[Any], tokens: int) -> NDArray[np.int64]:
    """Bounds of greedy batches over rows in this order: take rows while (rows x longest so far) fits."""
    bounds = [0]
    while (start := bounds[-1]) < len(longest):
        # No batch from here can have more rows than this: its first row alone sets the width.
        room = max(1, tokens // int(longest[start]))
        width = np.maximum.accumulate(longest[start : start + room]).astype(np.int64)
        used = width * np.arange(1, len(width) + 1)
        bounds.append(start + max(1, int(np.searchsorted(used, tokens, side="right"))))
    return np.array(bounds, np.int64)

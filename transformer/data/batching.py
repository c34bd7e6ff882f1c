"""Batches that fit a budget of tokens, padding counted, from pairs of similar length.

Pairs are sorted by length, ties in random order, cut into batches greedily, and the batches are shuffled.
All of it is a pure function of (seed, epoch): every pair comes exactly once an epoch, and an epoch can be
entered at any batch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.seeding import derive_seed
from ..core.special import BOS, EOS, PAD
from .encoded import EncodedCorpus, Ids


@dataclass(frozen=True)
class Batch:
    """One micro-batch, right-padded with PAD, int64.

    `source` (B, S) ends in EOS; `target_in` (B, T) is BOS + y; `target_out` (B, T) is y + EOS. `indices` (B,)
    are the pairs' places in the corpus. `source_tokens` and `target_tokens` count what is not PAD.
    """

    source: Tensor
    target_in: Tensor
    target_out: Tensor
    indices: Tensor
    source_tokens: int
    target_tokens: int

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            move(self.source),
            move(self.target_in),
            move(self.target_out),
            move(self.indices),
            self.source_tokens,
            self.target_tokens,
        )


def collate(pairs: Sequence[tuple[Any, Any]], indices: Sequence[int] | NDArray[np.int64]) -> Batch:
    """Pad pairs of ids (without BOS and EOS; arrays or lists) into a Batch."""
    assert len(pairs) == len(indices) > 0
    sources, targets = zip(*pairs, strict=True)
    source, source_tokens = _padded(sources, last=EOS)
    target_out, target_tokens = _padded(targets, last=EOS)
    target_in, _ = _padded(targets, first=BOS)
    places = torch.from_numpy(np.array(indices, np.int64))
    return Batch(source, target_in, target_out, places, source_tokens, target_tokens)


def no_pairs() -> Batch:
    """A batch of no rows, which passes a model like any other: so a rank without rows keeps step."""
    none = torch.zeros(0, 1, dtype=torch.int64)
    return Batch(none, none, none, none[:, 0], 0, 0)


def _padded(rows: Sequence[Any], first: int | None = None, last: int | None = None) -> tuple[Tensor, int]:
    """Rows of ids, each with one id before or after it, as (B, longest + 1); and how many are not PAD."""
    lengths = np.array([len(row) for row in rows], np.int64)
    table = np.full((len(rows), int(lengths.max()) + 1), PAD, np.int64)
    start = 0 if first is None else 1
    columns = np.arange(table.shape[1]) - start
    table[(columns >= 0) & (columns < lengths[:, None])] = np.concatenate(rows)
    if first is not None:
        table[:, 0] = first
    if last is not None:
        table[np.arange(len(rows)), lengths] = last
    return torch.from_numpy(table), int(lengths.sum()) + len(rows)


@dataclass(frozen=True)
class Share:
    """Every `size`-th row from row `rank` on. Neighbours in a batch are of like length, so shares are too."""

    rank: int
    size: int

    def of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return indices if self.size == 1 else indices[self.rank :: self.size]


EVERYTHING = Share(0, 1)


class Sampler(Protocol):
    """Another segmentation of a pair for each epoch."""

    def pair(self, epoch: int, index: int) -> tuple[Ids, Ids]: ...


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


def plan_batches(
    source_lengths: NDArray[np.int32],
    target_lengths: NDArray[np.int32],
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
    longest = np.maximum(source_lengths, target_lengths).astype(np.int64)[order]
    bounds = _cut(longest, tokens_per_batch)
    sequence = generator.permutation(len(bounds) - 1) if shuffle else np.arange(len(bounds) - 1)[::-1]
    return Plan(order, bounds[:-1][sequence], bounds[1:][sequence])


def _sorted(
    source: NDArray[Any], target: NDArray[Any], generator: np.random.Generator | None
) -> NDArray[np.int64]:
    """Pairs by the longer side, then by how much longer the source is than the target, ties in random order.

    The longer side is what the budget counts; within one such length the second key orders both sides at
    once. It runs up and down in turn, so that a batch which spans two lengths finds similar pairs on both
    sides of the border. One 62-bit key (20 longer, 21 difference, 21 noise) sorts fastest.
    """
    limit = (1 << 20) - 1  # lengths beyond a million tokens sort as equal
    source, target = (np.minimum(lengths, limit).astype(np.int64) for lengths in (source, target))
    longer, difference = np.maximum(source, target), source - target
    key = longer << 42 | np.where(longer % 2 == 0, difference, -difference) + limit << 21
    if generator is not None:
        key |= generator.integers(0, 1 << 21, len(key))
    return np.argsort(key, kind="stable")


def _cut(longest: NDArray[np.int64], tokens: int) -> NDArray[np.int64]:
    """Bounds of greedy batches over rows in this order: take rows while (rows x longest so far) fits."""
    bounds = [0]
    while (start := bounds[-1]) < len(longest):
        # No batch from here can have more rows than this: its first row alone sets the width.
        room = max(1, tokens // int(longest[start]))
        width = np.maximum.accumulate(longest[start : start + room])
        used = width * np.arange(1, len(width) + 1)
        bounds.append(start + max(1, int(np.searchsorted(used, tokens, side="right"))))
    return np.array(bounds, np.int64)


class BatchStream:
    """The batches of each epoch, in an order that is a function of (seed, epoch)."""

    def __init__(
        self,
        corpus: EncodedCorpus,
        tokens_per_batch: int,
        seed: int,
        *,
        shuffle: bool = True,
        sampler: Sampler | None = None,
        prefetch: int = 0,
        share: Share = EVERYTHING,
    ) -> None:
        """`shuffle=False`: one order for all epochs, longest first. `prefetch`: batches made ahead.

        Of several ranks each has its `share` of every batch: the plan, and so the number of batches, is the
        same for all, and their rows together are the batch. A batch with fewer rows leaves some without.

        With a `sampler` the budget counts the plain segmentation; a sampled batch may be somewhat larger.
        """
        self.corpus, self.tokens_per_batch, self.seed = corpus, tokens_per_batch, seed
        self._shuffle, self._sampler, self._prefetch = shuffle, sampler, prefetch
        self._share = share
        self._planned: tuple[int, Plan] | None = None

    def plan(self, epoch: int) -> Plan:
        """Which pairs stand in which batch of an epoch."""
        epoch = epoch if self._shuffle else 0
        if self._planned is None or self._planned[0] != epoch:
            lengths = self.corpus.source_lengths, self.corpus.target_lengths
            plan = plan_batches(
                *lengths, self.tokens_per_batch, derive_seed(self.seed, "order", epoch), self._shuffle
            )
            self._planned = epoch, plan
        return self._planned[1]

    def batches_in(self, epoch: int) -> int:
        return len(self.plan(epoch))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch: what follows does not depend on where one begins."""
        plan = self.plan(epoch)
        batches = (self._batch(epoch, self._share.of(plan[k])) for k in range(start, len(plan)))
        return _ahead(batches, self._prefetch) if self._prefetch else batches

    def _batch(self, epoch: int, indices: NDArray[np.int64]) -> Batch:
        if not len(indices):
            return no_pairs()
        if self._sampler is None:
            return collate([self.corpus.pair(i) for i in indices.tolist()], indices)
        return collate([self._sampler.pair(epoch, i) for i in indices.tolist()], indices)


def _ahead(batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """The same batches, up to `depth` of them made in a thread before they are asked for."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # whatever it is, the thread that asked must see it
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()

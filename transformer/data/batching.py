"""Batches of padded ids, epoch by epoch, in the order that `planning` gives."""

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

from ..core.special import BOS, EOS, PAD
from .encoded import EncodedCorpus, Ids
from .planning import WINDOW, Batches, Plan, plan_batches, plan_epoch

__all__ = ["Batch", "BatchStream", "Plan", "Sampler", "collate", "plan_batches"]


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

    def rows(self, rows: slice) -> Batch:
        """Some of its pairs, padded to the longest of them."""
        source, target_in, target_out = self.source[rows], self.target_in[rows], self.target_out[rows]
        source_lengths, target_lengths = (source != PAD).sum(1), (target_out != PAD).sum(1)
        longest = int(target_lengths.max())
        return Batch(
            source[:, : int(source_lengths.max())],
            target_in[:, :longest],
            target_out[:, :longest],
            self.indices[rows],
            int(source_lengths.sum()),
            int(target_lengths.sum()),
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
        window: int = WINDOW,
        share: Share = EVERYTHING,
    ) -> None:
        """`shuffle=False`: one order for all epochs, longest first. `prefetch`: batches made ahead.

        `window`: pairs that are ordered at a time (`planning`); the memory that an order takes grows with it.

        Of several ranks each has its `share` of every batch: the plan, and so the number of batches, is the
        same for all, and their rows together are the batch. A batch with fewer rows leaves some without.

        With a `sampler` the budget counts the plain segmentation; a sampled batch may be somewhat larger.
        """
        self.corpus, self.tokens_per_batch, self.seed = corpus, tokens_per_batch, seed
        self._shuffle, self._sampler, self._prefetch, self._window = shuffle, sampler, prefetch, window
        self._share = share
        self._planned: tuple[int, Batches] | None = None

    def plan(self, epoch: int) -> Batches:
        """Which pairs stand in which batch of an epoch."""
        epoch = epoch if self._shuffle else 0
        if self._planned is None or self._planned[0] != epoch:
            self._planned = None  # two orders in memory would be one too many
            plan = plan_epoch(
                self.corpus,
                self.tokens_per_batch,
                self.seed,
                epoch,
                shuffle=self._shuffle,
                window=self._window,
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

    def undivided(self, epoch: int, number: int) -> Batch:
        """Batch `number`, from 0, of an epoch, with the rows of all ranks."""
        return self._batch(epoch, self.plan(epoch)[number])

    def _batch(self, epoch: int, indices: NDArray[np.int64]) -> Batch:
        if not len(indices):
            return no_pairs()
        if self._sampler is not None:
            return collate([self._sampler.pair(epoch, i) for i in indices.tolist()], indices)
        batch = collate([self.corpus.pair(i) for i in indices.tolist()], indices)
        self.corpus.require_known((batch.source.numpy(), batch.target_out.numpy()), indices.tolist())
        return batch


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

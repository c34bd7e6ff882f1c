"""The order of an epoch in windows: nothing lost, (seed, epoch) alone decides, memory bounded, well mixed."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.data import planning
from transformer.data.batching import BatchStream
from transformer.data.encoded import EncodedCorpus, Flat
from transformer.data.planning import count_batches, plan_batches, plan_epoch
from transformer.data.report import SplitReport
from transformer.data.writing import CorpusWriter

SIZES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=80)


class Made:
    """Pairs whose lengths are in no memory."""

    def __init__(self, count: int) -> None:
        self.count, self.longest_part = count, 0

    def __len__(self) -> int:
        return self.count

    def lengths(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        self.longest_part = max(self.longest_part, stop - start)
        places = np.arange(start, stop)
        return ((places * 7919) % 31 + 2).astype(np.int32), ((places * 104_729) % 29 + 2).astype(np.int32)


class Listed(Made):
    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        super().__init__(len(sizes))
        self.sizes = np.array(sizes, np.int32)

    def lengths(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self.sizes[start:stop, 0], self.sizes[start:stop, 1]


def plain_plan(source: np.ndarray, target: np.ndarray, tokens: int, seed: int) -> list[list[int]]:
    """The order as it was before there were windows, from its description: sort, cut, shuffle."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 1 << 21, len(source)).tolist()
    sizes = [(int(s), int(t)) for s, t in zip(source, target, strict=True)]

    def key(i: int) -> tuple[int, int, int]:
        longer, difference = max(sizes[i]), sizes[i][0] - sizes[i][1]
        return longer, -difference if longer % 2 else difference, noise[i]

    batches: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=key):
        if batches and (len(batches[-1]) + 1) * max(max(sizes[j]) for j in [*batches[-1], i]) <= tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return [batches[k] for k in generator.permutation(len(batches)).tolist()]


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 200), st.integers(0, 3))
def test_one_window_is_ordered_as_it_always_was(sizes: list[tuple[int, int]], tokens: int, seed: int) -> None:
    source, target = (np.array(side, np.int32) for side in zip(*sizes, strict=True))
    plan = plan_batches(source, target, tokens, seed)
    assert [plan[k].tolist() for k in range(len(plan))] == plain_plan(source, target, tokens, seed)


@settings(deadline=None, max_examples=100)
@given(SIZES, st.integers(1, 200))
def test_batches_are_counted_without_an_order(sizes: list[tuple[int, int]], tokens: int) -> None:
    source, target = (np.array(side, np.int32) for side in zip(*sizes, strict=True))
    assert count_batches(np.maximum(source, target), tokens) == len(plan_batches(source, target, tokens, 1))


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 200), st.integers(1, 3), st.integers(1, 9), st.integers(1, 5))
def test_every_pair_comes_once_in_windows_too(
    sizes: list[tuple[int, int]], tokens: int, epoch: int, block: int, blocks: int
) -> None:
    corpus = Listed(sizes)
    plan = plan_epoch(corpus, tokens, 5, epoch, window=block * blocks, block=block)
    batches = [plan[k].tolist() for k in range(len(plan))]
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert all(len(b) == 1 or len(b) * max(max(sizes[i]) for i in b) <= tokens for b in batches)


def test_a_windowed_epoch_is_a_function_of_seed_and_epoch_and_can_be_entered_anywhere() -> None:
    draw = np.random.default_rng(1)
    sizes = draw.integers(1, 12, (3000, 2))
    data = EncodedCorpus.of([([5] * s, [6] * t) for s, t in sizes.tolist()])

    def order(seed: int, epoch: int, start: int = 0, prefetch: int = 0) -> list[list[int]]:
        stream = BatchStream(data, 200, seed, window=1024, prefetch=prefetch)
        return [batch.indices.tolist() for batch in stream.epoch(epoch, start)]

    whole = order(1, 2)
    assert BatchStream(data, 200, 1, window=1024).batches_in(2) == len(whole)
    for start in (0, 1, len(whole) // 3, len(whole) - 1, len(whole)):
        assert order(1, 2, start) == order(1, 2, start, prefetch=2) == whole[start:]
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4
    again = BatchStream(data, 200, 1, window=1024)
    again.batches_in(1)
    assert [
        batch.indices.tolist() for batch in again.epoch(2)
    ] == whole  # what was asked before is nothing to it


def test_a_corpus_of_one_window_has_the_order_of_the_whole() -> None:
    corpus = Made(2000)
    whole = plan_epoch(corpus, 200, 3, 4)
    one = plan_epoch(corpus, 200, 3, 4, window=2000, block=10)
    assert [one[k].tolist() for k in range(len(one))] == [whole[k].tolist() for k in range(len(whole))]
    several = plan_epoch(corpus, 200, 3, 4, window=1999, block=10)
    assert [several[k].tolist() for k in range(5)] != [whole[k].tolist() for k in range(5)]


def test_an_order_takes_the_memory_of_a_window_whatever_the_corpus() -> None:
    peaks = []
    for pairs in (20_000, 400_000):
        corpus = Made(pairs)
        tracemalloc.start()
        plan = plan_epoch(corpus, 4096, 1, 1, window=10_000, block=100)
        for k in range(0, len(plan), max(1, len(plan) // 7)):
            assert len(plan[k])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert corpus.longest_part <= 100
    # Of the 380,000 pairs more, the blocks' sequence may be held, twice: 8 bytes for each 100 of them.
    assert peaks[1] - peaks[0] < 380_000 / 100 * 8 * 3


def test_windows_pad_hardly_more_than_the_whole() -> None:
    draw = np.random.default_rng(0)
    target = np.clip(draw.lognormal(2.6, 0.5, 120_000), 2, 250)
    source = np.clip(target * draw.lognormal(0, 0.2, len(target)), 2, 250)
    corpus = Listed(np.stack([source, target], axis=1).astype(int).tolist())

    def padding(window: int) -> float:
        plan = plan_epoch(corpus, 512, 1, 1, window=window, block=100)
        rows = [corpus.sizes[plan[k], 1] for k in range(len(plan))]
        return 1 - int(corpus.sizes[:, 1].sum()) / sum(len(row) * int(row.max()) for row in rows)

    assert padding(20_000) - padding(1 << 20) < 0.02  # at 600 batches a window


def test_each_window_is_a_sample_of_the_whole_corpus() -> None:
    """Of a corpus whose first half is one text and whose second half is another, every stretch holds both."""
    corpus = Made(40_000)
    plan = plan_epoch(corpus, 500, 1, 1, window=8000, block=40)
    order = np.concatenate([plan[k] for k in range(len(plan))])
    shares = [(stretch < 20_000).mean() for stretch in np.array_split(order, 5)]
    assert max(abs(share - 0.5) for share in shares) < 0.15  # four deviations of 200 drawn blocks
    assert not np.array_equal(np.sort(order[:8000]), np.arange(8000))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell")
def test_what_was_read_of_a_corpus_is_in_no_memory(tmp_path: Path) -> None:
    """No file of it is mapped, and an epoch holds no more than its batches."""
    pairs, length = 20_000, 200
    with CorpusWriter(tmp_path, (9, 9), False, SplitReport("train")) as writer:
        flat = Flat(np.full(pairs * length, 5, np.uint16), np.arange(pairs + 1) * length)
        writer.add({"source.ids": flat, "target.ids": flat}, SplitReport("train", read=pairs, kept=pairs))
        writer.close()
    del flat
    data = EncodedCorpus.open(tmp_path)
    tracemalloc.start()
    for batch in BatchStream(data, 20_000, 1, window=planning.BLOCK * 2).epoch(1):
        assert len(batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert peak < 0.2 * 2 * 2 * pairs * length  # of the 16 MB that were read in ten windows
    assert data.pair(7)[0].tolist() == [5] * length


def test_the_files_are_closed_with_the_corpus(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path, (9, 9), True, SplitReport("train")) as writer:
        writer.close()
    before = len(os.listdir("/dev/fd"))
    data = EncodedCorpus.open(tmp_path)
    assert (len(data), len(os.listdir("/dev/fd"))) == (0, before + 8)
    del data
    assert len(os.listdir("/dev/fd")) == before

"""Batches: the budget holds, nothing is lost, order is a function of (seed, epoch), little is padding."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.core.special import BOS, EOS, PAD
from transformer.data.batching import Batch, BatchStream, Plan, collate, plan_batches
from transformer.data.encoded import EncodedCorpus

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60)


def corpus(count: int = 200, seed: int = 0) -> EncodedCorpus:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(0, 20, (count, 2))
    return EncodedCorpus.of(
        [(draw.integers(4, 99, s).tolist(), draw.integers(4, 99, t).tolist()) for s, t in sizes]
    )


def realistic(count: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    target = np.clip(draw.lognormal(3.1, 0.6, count), 2, 250)
    source = np.clip(target * draw.lognormal(0, 0.25, count), 2, 250)
    return source.astype(np.int32), target.astype(np.int32)


def padding(plan: Plan, lengths: np.ndarray) -> float:
    cells = sum(len(plan[k]) * int(lengths[plan[k]].max()) for k in range(len(plan)))
    return 1 - int(lengths.sum()) / cells


def same(a: Batch, b: Batch) -> bool:
    names = ("source", "target_in", "target_out", "indices")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_a_batch_is_padded_and_marked_as_it_says() -> None:
    batch = collate([([5, 6, 7], [8]), ([], [9, 10])], [3, 1])
    assert batch.source.tolist() == [[5, 6, 7, EOS], [EOS, PAD, PAD, PAD]]
    assert batch.target_in.tolist() == [[BOS, 8, PAD], [BOS, 9, 10]]
    assert batch.target_out.tolist() == [[8, EOS, PAD], [9, 10, EOS]]
    assert batch.indices.tolist() == [3, 1]
    assert (batch.source_tokens, batch.target_tokens, len(batch)) == (5, 5, 2)
    assert batch.source.dtype == batch.target_in.dtype == batch.target_out.dtype == torch.int64
    assert same(batch.to("cpu"), batch)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 200), st.integers(0, 5), st.booleans())
def test_every_pair_comes_once_and_the_budget_holds(
    sizes: list[tuple[int, int]], budget: int, seed: int, shuffle: bool
) -> None:
    source, target = (np.array(side, np.int32) for side in zip(*sizes, strict=True))
    plan = plan_batches(source, target, budget, seed, shuffle)
    batches = [plan[k].tolist() for k in range(len(plan))]
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    for batch in batches:
        width = max(max(sizes[i]) for i in batch)
        assert len(batch) == 1 or len(batch) * width <= budget


def test_an_epoch_holds_the_pairs_of_the_corpus() -> None:
    data = corpus()
    seen = {}
    for batch in BatchStream(data, 64, seed=1).epoch(3):
        for row, index in enumerate(batch.indices.tolist()):
            source, target = batch.source[row], batch.target_out[row]
            seen[index] = (source[source != PAD].tolist(), target[target != PAD].tolist())
            assert batch.target_in[row][1:].tolist() == [0 if i == EOS else i for i in target[:-1].tolist()]
        assert batch.source_tokens == int((batch.source != PAD).sum())
        assert batch.target_tokens == int((batch.target_out != PAD).sum())
        assert batch.source_tokens == int(data.source_lengths[batch.indices.numpy()].sum())
    assert seen == {i: tuple([*ids.tolist(), EOS] for ids in data.pair(i)) for i in range(len(data))}


def test_order_is_a_function_of_seed_and_epoch() -> None:
    data = corpus()

    def order(seed: int, epoch: int) -> list[list[int]]:
        return [batch.indices.tolist() for batch in BatchStream(data, 64, seed).epoch(epoch)]

    assert order(1, 2) == order(1, 2)
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_epoch_can_be_entered_at_any_batch(prefetch: int) -> None:
    data = corpus()
    whole = list(BatchStream(data, 64, seed=1).epoch(4))
    for start in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
        rest = list(BatchStream(data, 64, seed=1, prefetch=prefetch).epoch(4, start))
        assert len(rest) == len(whole) - start
        assert all(map(same, rest, whole[start:]))
    assert BatchStream(data, 64, seed=1).batches_in(4) == len(whole)


def test_without_shuffling_epochs_are_alike_and_longest_come_first() -> None:
    stream = BatchStream(corpus(), 64, seed=1, shuffle=False)
    first, second = (list(stream.epoch(epoch)) for epoch in (0, 7))
    assert all(map(same, first, second))
    widths = [max(batch.source.shape[1], batch.target_in.shape[1]) for batch in first]
    assert widths == sorted(widths, reverse=True)


def test_an_overlong_pair_is_a_batch_by_itself() -> None:
    data = EncodedCorpus.of([([5] * 3, [5] * 3)] * 4 + [([5] * 500, [5] * 2)] + [([5], [5] * 900)])
    batches = list(BatchStream(data, 32, seed=0).epoch(0))
    assert sorted(
        len(batch) for batch in batches if max(batch.source.shape[1], batch.target_in.shape[1]) > 32
    ) == [1, 1]


@pytest.mark.parametrize(("budget", "pairs"), [(4096, 30_000), (25_000, 200_000)])
def test_little_is_padding_on_either_side(budget: int, pairs: int) -> None:
    source, target = realistic(pairs)
    plan = plan_batches(source, target, budget, seed=1)
    assert padding(plan, target) < 0.08
    assert padding(plan, source) < 0.15


def test_a_million_pairs_are_planned_in_seconds() -> None:
    source, target = realistic(1_000_000)
    started = time.process_time()
    plan_batches(source, target, 4096, seed=1)
    assert time.process_time() - started < 5


def test_an_error_in_the_background_reaches_the_reader_and_the_thread_ends() -> None:
    class Failing:
        def pair(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
            raise RuntimeError("no such pair")

    with pytest.raises(RuntimeError, match="no such pair"):
        next(BatchStream(corpus(), 64, seed=1, sampler=Failing(), prefetch=2).epoch(0))
    import threading

    stream = BatchStream(corpus(), 64, seed=1, prefetch=2).epoch(0)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_unigram_entropy_is_that_of_the_target_tokens() -> None:
    data = EncodedCorpus.of([([9], [5, 5, 6]), ([9], [5])])
    shares = np.array([3, 1, 2]) / 6  # 5, 6 and the end mark
    assert data.unigram_entropy() == pytest.approx(-(shares * np.log(shares)).sum())

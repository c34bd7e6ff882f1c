"""What is searched over: cached equals uncached, ensembles average probabilities, scores agree."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from decoding_toys import Toy, sources, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import usual
from torch import Tensor

from transformer import PLACEMENTS, Transformer
from transformer.core.errors import CheckpointError
from transformer.decoding import DecoderCache, Ensemble, Limits, ModelNextToken, beam_search
from transformer.decoding.columns import SelfAttentionCache
from transformer.modules.masks import padding_mask

EXACT = {"rtol": 1e-9, "atol": 1e-10}


def assert_cached_equals_uncached(model: Transformer, steps: int = 5) -> None:
    """Step both with rows repeated, reordered and dropped, as beam search does."""
    source = sources(4, 6)
    moves = [[0, 0, 1, 1, 2, 2, 3, 3], [1, 0, 2, 2, 5, 4, 7, 7], [0, 1, 4, 5], [3, 2, 1, 1, 0], [4]]
    with torch.inference_mode():
        cached = ModelNextToken(model).start(source)
        uncached = ModelNextToken(model, incremental=False).start(source)
        tokens = torch.full((4,), 2)
        for move in moves[:steps]:
            expected = uncached.step(tokens)
            torch.testing.assert_close(cached.step(tokens), expected, **EXACT)
            rows = torch.tensor(move)
            cached.select(rows)
            uncached.select(rows)
            tokens = expected.topk(2).indices[:, 1].index_select(0, rows)
        torch.testing.assert_close(cached.step(tokens), uncached.step(tokens), **EXACT)


@pytest.mark.parametrize(
    "flags", [{"positions": "learned"}, {"placement": {"encoder": "pre", "decoder": "post"}}]
)
def test_cached_steps_equal_uncached_ones_with_other_parts(flags: dict[str, Any]) -> None:
    assert_cached_equals_uncached(tiny(**flags))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_search_finds_the_same_with_and_without_cache(placement: str) -> None:
    model, source = tiny(placement=placement, norm=usual(placement), seed=1), sources(6, 5)
    with torch.inference_mode():
        runs = [
            beam_search(
                ModelNextToken(model, incremental),
                source,
                [Limits(20)] * 6,
                beam=4,
                n_best=4,
                length_penalty="wu",
            )
            for incremental in (True, False)
        ]
    for cached, uncached in zip(*runs, strict=True):
        assert [h.tokens for h in cached] == [h.tokens for h in uncached]
        for a, b in zip(cached, uncached, strict=True):
            assert a.score == pytest.approx(b.score, rel=1e-10)


def test_rows_may_be_selected_before_the_first_step() -> None:
    model, source = tiny(), sources(3, 5)
    with torch.inference_mode():
        continuation = ModelNextToken(model).start(source)
        continuation.select(torch.tensor([2, 2, 1]))
        some = continuation.step(torch.full((3,), 2))
        every = ModelNextToken(model).start(source).step(torch.full((3,), 2))
    torch.testing.assert_close(some, every[[2, 2, 1]], **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_log_probabilities_are_of_float32_at_least(dtype: torch.dtype) -> None:
    """Of a model as it is, and of one whose products give a shorter format."""
    model, source = tiny().float(), sources(3, 5)
    project = model.project
    model.project = lambda hidden: project(hidden).to(dtype)  # type: ignore[method-assign]
    with torch.inference_mode():
        found = ModelNextToken(model).start(source).step(torch.full((3,), 2))
        scored = ModelNextToken(model).token_log_probs(source, torch.full((3, 1), 2), torch.full((3, 1), 5))
    assert found.dtype == scored.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3, dtype=found.dtype), rtol=0, atol=1e-6)
    torch.testing.assert_close(scored[:, 0], found[:, 5], rtol=0, atol=1e-6 if dtype.itemsize > 2 else 0.02)


def columns_of(rows: int, keys: Tensor, held: Tensor | None) -> list[Tensor]:
    """The columns of keys or values (G, H, C, K) that each row sees, in order: (H, L, K)."""
    groups, _, capacity, _ = keys.shape
    seen = torch.ones(1, 1, 1, capacity, dtype=torch.bool) if held is None else held
    seen = seen.expand(groups, 1, rows // groups, capacity).reshape(rows, capacity)
    return [keys[row // (rows // groups)][:, seen[row]] for row in range(rows)]


def follow(moves: Iterable[list[int]], heads: int = 2, width: int = 4) -> SelfAttentionCache:
    """Extend a cache of three sentences a column at a time; after each its rows become those of the move."""
    cache, sentence = DecoderCache(1, 3), torch.arange(3)
    layer, past = cache.layers[0].self_attention, [torch.empty(3, heads, 0, width) for _ in range(2)]
    for step, move in enumerate(moves):
        new = tuple(torch.randn(len(sentence), heads, 1, width) for _ in range(2))
        past = [torch.cat(pair, 2) for pair in zip(past, new, strict=True)]
        for held, kept in zip(layer.extend(lambda new=new: new), past, strict=True):
            for found, expected in zip(columns_of(len(sentence), held, layer.held), kept, strict=True):
                assert torch.equal(found, expected)
            assert held.isfinite().all()  # a weight of 0 has to give 0
        assert cache.length == layer.length == step + 1
        rows = torch.tensor(move)
        cache.select(rows)
        past, sentence = [each[rows] for each in past], sentence[rows]
    return layer


def test_the_self_attention_cache_holds_what_was_appended_however_long() -> None:
    draws = random.Random(1)
    follow([sorted(draws.choices(range(3), k=3)) if step % 3 == 0 else [0, 1, 2] for step in range(70)])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_may_multiply_change_places_and_leave_in_any_way(data: st.DataObject) -> None:
    """Equally many of each sentence, as beam search has them, or not."""
    sentence, moves = [0, 1, 2], []
    for _ in range(data.draw(st.integers(1, 40))):
        width = data.draw(st.integers(1, 4))
        there = sorted(set(sentence))
        if data.draw(st.integers(0, 11)) == 0:
            there = data.draw(st.lists(st.sampled_from(there), min_size=1, unique=True).map(sorted))
        counts = [width] * len(there)
        if data.draw(st.integers(0, 19)) == 0:
            counts = data.draw(st.lists(st.integers(1, 3), min_size=len(there), max_size=len(there)))
        moves.append(
            [
                data.draw(st.sampled_from([row for row, of in enumerate(sentence) if of == each]))
                for each, count in zip(there, counts, strict=True)
                for _ in range(count)
            ]
        )
        sentence = [sentence[row] for row in moves[-1]]
    follow(moves)


def test_rows_that_change_places_within_their_sentence_share_columns() -> None:
    """No key is copied, and what nobody sees any more is left out when there is no room for more."""
    apart, one = [0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5]
    layer = follow([apart, *[one] * 10])
    assert len(layer._shared.buffers[0]) == 3
    before = layer._shared.buffers[0].data_ptr()
    layer.select_within(torch.tensor([1, 0, 3, 3, 5, 4]), 3, None)
    assert layer._shared.buffers[0].data_ptr() == before
    assert layer._shared.used == 1 + 2 * 10
    agreed = follow([apart, *[[0, 0, 2, 2, 4, 4]] * 100])  # at each step one of the two is dropped
    assert agreed._shared.used <= 100 + 2 * 9


def test_rows_that_have_nothing_in_common_part() -> None:
    """Each of twenty goes on by itself: products with the columns of all would be twenty times as many."""
    apart, one = [row for row in range(3) for _ in range(20)], list(range(60))
    assert follow([apart, *[one] * 4])._shared is not None
    parted = follow([apart, *[one] * 30])
    assert parted._shared is None
    assert len(parted._buffers[0]) == 60
    few = [row for row in range(3) for _ in range(5)]
    assert follow([few, *[list(range(15))] * 30])._shared is not None


def test_rows_that_share_columns_may_be_given_several_at_once() -> None:
    model, source = tiny(), sources(2, 5)
    with torch.inference_mode():
        memory, mask, cache = model.encode(source), padding_mask(source), DecoderCache(2, 2)
        prefix = torch.tensor([[2], [2]])
        new = prefix
        for columns in (1, 1, 3, 1):
            found = model.decode(new, memory, cache.as_attended(mask), cache)
            rows = torch.arange(len(new))
            wanted = model.decode(prefix, *(x.repeat_interleave(len(new) // 2, 0) for x in (memory, mask)))
            torch.testing.assert_close(found, wanted[:, -new.shape[1] :], **EXACT)
            if len(new) == 2:
                rows = torch.tensor([0, 0, 0, 1, 1, 1])
                cache.select(rows)
            new = torch.randint(4, 9, (6, columns))
            prefix = torch.cat((prefix[rows], new), 1)


def test_the_memory_is_projected_once() -> None:
    cache, calls = DecoderCache(1, 2), []
    cross = cache.layers[0].cross_attention
    memory = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)

    def project() -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        return memory

    cross.extend(project)
    cache.select(torch.tensor([0, 0, 1, 1]))
    first = cross.extend(project)
    cache.select(torch.tensor([1, 0, 3, 2]))  # within their sentences: nothing to gather
    assert cross.extend(project)[0] is first[0]
    assert cache.select(torch.tensor([3, 2])).tolist() == [1]
    keys, values = cross.extend(project)  # the two rows that are left share the sentence's
    assert torch.equal(keys[:, :, :3], memory[0][1:])
    assert torch.equal(values[:, :, :3], memory[1][1:])
    assert not torch.stack((keys, values))[:, :, :, 3:].any()
    assert len(calls) == 1


def test_rows_that_are_not_equally_many_get_the_memory_of_their_sentence() -> None:
    cache, memory = DecoderCache(1, 3), (torch.randn(3, 1, 3, 4), torch.randn(3, 1, 3, 4))
    cross = cache.layers[0].cross_attention
    for rows in ([0, 0, 1, 2, 2, 2], [2, 1, 0, 5]):
        cache.select(torch.tensor(rows))
        keys, values = cross.extend(lambda: memory)
        assert torch.equal(keys[:, :, :3], memory[0][cache.sentence])
        assert torch.equal(values[:, :, :3], memory[1][cache.sentence])


def test_an_ensemble_averages_probabilities() -> None:
    models, source = [tiny(seed=1), tiny(seed=2, placement="post")], sources(2, 4)
    members = [ModelNextToken(model) for model in models]
    tokens = torch.full((2,), 2)
    with torch.inference_mode():
        together = Ensemble(members).start(source).step(tokens)
        alone = torch.stack([member.start(source).step(tokens) for member in members])
    torch.testing.assert_close(together, alone.exp().mean(0).log(), **EXACT)
    torch.testing.assert_close(together.exp().sum(1), torch.ones(2, dtype=torch.float64), **EXACT)


def test_an_ensemble_is_finite_where_probabilities_vanish() -> None:
    members = [Toy(8, forbidden=[4, 5]), Toy(8, forbidden=[4, 6])]
    step = Ensemble(members).start(sources(1, 3)).step(torch.tensor([2]))
    assert step[0, 4] == -torch.inf
    assert step[0, 5:7].isfinite().all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_an_ensemble_of_one_model_twice_is_the_model(seed: int) -> None:
    model, source = ModelNextToken(tiny(seed=seed)), sources(3, 4, seed=seed)
    with torch.inference_mode():
        one = beam_search(model, source, [Limits(6)] * 3, beam=3, n_best=3)
        two = beam_search(Ensemble([model, model]), source, [Limits(6)] * 3, beam=3, n_best=3)
    for a, b in zip(one, two, strict=True):
        assert [h.tokens for h in a] == [h.tokens for h in b]
        assert [h.score for h in a] == pytest.approx([h.score for h in b], rel=1e-12)


def test_models_of_different_vocabularies_are_no_ensemble() -> None:
    with pytest.raises(CheckpointError, match="8, 9 entries"):
        Ensemble([Toy(8), Toy(9)])


@pytest.mark.parametrize("members", [1, 2])
def test_scoring_what_search_found_gives_its_log_probability(members: int) -> None:
    ensemble = Ensemble([ModelNextToken(tiny(seed=seed)) for seed in range(members)])
    source = sources(4, 5)
    limits = [Limits(6), Limits(3, 3), Limits(5, 0, (1, 4)), Limits(0)]
    with torch.inference_mode():
        found = beam_search(ensemble, source, limits, beam=4)
        targets = [best[0].tokens for best in found]
        longest = max(map(len, targets))
        padded = [[*target, 3, *[0] * (longest - len(target))] for target in targets]
        target_out = torch.tensor(padded)
        target_in = torch.cat([torch.full((4, 1), 2), target_out[:, :-1]], 1)
        log_probs = ensemble.token_log_probs(source, target_in, target_out)
    for (best,), row in zip(found, log_probs, strict=True):
        total = float(row[: len(best.tokens) + 1].sum())
        assert best.log_probability == pytest.approx(total, rel=1e-10)


def test_an_ensemble_scores_with_the_mean_of_its_members_probabilities() -> None:
    """Members whose probabilities are known: the oracle averages them token by token."""
    toys = [Toy(vocabulary=8, seed=seed) for seed in (1, 2)]
    source = torch.tensor([[5, 6, 3], [4, 3, 0]])
    target_out = torch.tensor([[6, 4, 3], [7, 3, 0]])
    target_in = torch.tensor([[2, 6, 4], [2, 7, 0]])
    scores = Ensemble(toys).token_log_probs(source, target_in, target_out)
    for row, (words, target) in enumerate((([5, 6, 3], [6, 4, 3]), ([4, 3], [7, 3]))):
        for t, token in enumerate(target):
            mean = sum(float(toy.next(words, target[:t])[token].exp()) for toy in toys) / 2
            assert float(scores[row, t].exp()) == pytest.approx(mean, rel=1e-9)

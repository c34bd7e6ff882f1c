"""What is searched over: cached equals uncached, ensembles average probabilities, scores agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding_toys import Toy, sources, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import usual

from transformer import PLACEMENTS, Transformer
from transformer.core.errors import CheckpointError
from transformer.decoding import DecoderCache, Ensemble, Limits, ModelNextToken, beam_search

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


def test_the_self_attention_cache_holds_what_was_appended_however_long() -> None:
    cache, kept = DecoderCache(1, 3), None
    layer = cache.layers[0].self_attention
    for step in range(70):
        new = torch.randn(3, 2, 1, 4), torch.randn(3, 2, 1, 4)
        kept = new if kept is None else tuple(torch.cat(pair, 2) for pair in zip(kept, new, strict=True))
        keys, values = layer.extend(lambda new=new: new)
        held = torch.ones(keys.shape[2], dtype=torch.bool) if layer.held is None else layer.held.flatten()
        assert torch.equal(held.nonzero().flatten(), torch.arange(step + 1))
        assert torch.equal(keys[:, :, held], kept[0])
        assert torch.equal(values[:, :, held], kept[1])
        assert not torch.stack((keys, values))[:, :, :, ~held].any()  # a weight of 0 has to give 0
        if step % 3 == 0:
            rows = torch.randint(3, (3,)).sort().values
            cache.select(rows)
            kept = tuple(part[rows] for part in kept)
    assert cache.length == 70


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

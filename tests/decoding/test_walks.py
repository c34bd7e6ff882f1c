"""Sampling: the right set, the right frequencies, and a seed that belongs to the sentence."""

from __future__ import annotations

import math

import pytest
import torch
from decoding_toys import Toy, sources, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.decoding import Limits, ModelNextToken, Sampling, greedy_search, sample

SEEDS = st.integers(0, 10**6)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_sampling_the_likeliest_token_is_greedy_search(seed: int) -> None:
    toy, source, limits = (
        Toy(8, seed),
        sources(3, 4, 8, seed),
        [Limits(5), Limits(6, 2), Limits(4, 0, (1, 5))],
    )
    drawn = sample(toy, source, limits, [[seed], [1], [2]], Sampling(top_k=1))
    assert drawn == greedy_search(toy, source, limits)


def test_a_draw_depends_on_its_seed_alone() -> None:
    model, source = ModelNextToken(tiny()), sources(6, 5)
    limits = [Limits(4 + i) for i in range(6)]
    seeds = [[10 + i, 20 + i] for i in range(6)]
    with torch.inference_mode():
        together = sample(model, source, limits, seeds, Sampling())
        alone = [
            sample(model, source[i : i + 1], limits[i : i + 1], [seeds[i]], Sampling())[0] for i in range(6)
        ]
        single = [
            sample(model, source[i : i + 1], limits[i : i + 1], [[seed]], Sampling())[0][0].tokens
            for i in range(6)
            for seed in seeds[i]
        ]
    assert [[h.tokens for h in each] for each in together] == [[h.tokens for h in each] for each in alone]
    assert sorted(single) == sorted(h.tokens for each in together for h in each)
    assert len(set(single)) > 6


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 9),
    top_p=st.floats(0.05, 1.0),
)
def test_the_distribution_is_truncated_as_the_papers_say(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(8, generator=generator, dtype=torch.float64).mul(2).log_softmax(0)
    heated = [math.exp(float(x) / temperature) for x in log_probs]
    ranked = sorted(range(8), key=lambda i: -heated[i])[: top_k or 8]
    mass, kept = sum(heated[i] for i in ranked), []
    for i in ranked:  # the smallest set whose probability reaches top_p
        kept.append(i)
        if sum(heated[j] for j in kept) / mass >= top_p:
            break
    drawn = Sampling(temperature, top_k, top_p).distribution(log_probs[None])[0]
    assert set(drawn.nonzero().flatten().tolist()) == set(kept)
    for i in kept:
        assert float(drawn[i]) == pytest.approx(heated[i] / sum(heated[j] for j in kept), rel=1e-9)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5), Sampling(1.5, 3), Sampling(1.0, 0, 0.8)])
def test_tokens_are_drawn_as_often_as_they_should(sampling: Sampling) -> None:
    toy, draws = Toy(8, seed=4, order=1), 3000
    source, limit = torch.tensor([[4, 3]]), Limits(1, 1)
    drawn = sample(toy, source, [limit], [list(range(draws))], sampling)[0]
    log_probs = toy.next([4, 3], [])[None].clone()
    log_probs[:, :4] = -torch.inf
    expected = draws * sampling.distribution(log_probs)[0]
    counts = torch.bincount(torch.tensor([h.tokens[0] for h in drawn]), minlength=8)
    assert not counts[expected == 0].any()
    positive = expected > 0
    chi_square = float(((counts - expected)[positive] ** 2 / expected[positive]).sum())
    assert chi_square < 21  # 3 degrees of freedom at most: p < 0.0002


def test_a_draws_log_probability_is_the_models_own() -> None:
    toy, source = Toy(8, seed=2), torch.tensor([[4, 3]])
    for h in sample(toy, source, [Limits(5)], [[1, 2, 3]], Sampling(0.7, 3))[0]:
        assert h.log_probability == pytest.approx(toy.log_prob([4, 3], h.tokens))


def test_where_nothing_may_be_drawn_nothing_is() -> None:
    toy = Toy(8, forbidden=[3, 4, 5, 6, 7])
    for sampling in (Sampling(), Sampling(top_k=2), Sampling(top_p=0.5)):
        assert sample(toy, sources(2, 3), [Limits(3)] * 2, [[1], [2]], sampling) == [[], []]

"""Beam search against exhaustive search and against itself without early stopping."""

from __future__ import annotations

import math

import pytest
import torch
from decoding_toys import PENALTIES, Toy, exhaustive, sources, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.core.errors import CheckpointError
from transformer.decoding import (
    LENGTH_PENALTIES,
    Hypothesis,
    Limits,
    ModelNextToken,
    beam_search,
    greedy_search,
)

SEEDS = st.integers(0, 10**6)
KINDS = st.sampled_from(sorted(LENGTH_PENALTIES))
ALPHAS = st.sampled_from([0.0, 0.3, 1.0, 2.5])
V = 7
LIMITS = st.builds(
    Limits,
    longest=st.integers(0, 3),
    shortest=st.integers(0, 4),
    prefix=st.lists(st.sampled_from([1, 4, 5, 6]), max_size=3).map(tuple),
)


def rows_of(source: torch.Tensor) -> list[list[int]]:
    return [[i for i in row if i] for row in source.tolist()]


def same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    for h, e in zip(found, expected, strict=True):
        assert math.isclose(h.log_probability, e.log_probability, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(h.score, e.score, rel_tol=1e-9, abs_tol=1e-9)


def test_every_length_penalty_has_an_oracle() -> None:
    assert set(PENALTIES) == set(LENGTH_PENALTIES)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, limits=st.lists(LIMITS, min_size=1, max_size=3), kind=KINDS, alpha=ALPHAS)
def test_a_large_beam_finds_what_exhaustive_search_finds(
    seed: int, limits: list[Limits], kind: str, alpha: float
) -> None:
    toy, source = Toy(V, seed), sources(len(limits), 4, V, seed)
    found = beam_search(toy, source, limits, beam=40, n_best=6, length_penalty=kind, alpha=alpha)
    for row, limit, hypotheses in zip(rows_of(source), limits, found, strict=True):
        same(hypotheses, exhaustive(toy.log_prob, row, V, limit, kind, alpha)[:6])


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, limit=LIMITS, kind=KINDS, alpha=ALPHAS)
def test_a_large_beam_searches_a_markov_chain_exhaustively(
    seed: int, limit: Limits, kind: str, alpha: float
) -> None:
    toy, source = Toy(V, seed, order=1), sources(1, 3, V, seed)
    (found,) = beam_search(toy, source, [limit], beam=64, n_best=64, length_penalty=kind, alpha=alpha)
    everything = exhaustive(toy.log_prob, rows_of(source)[0], V, limit, kind, alpha)
    assert len(found) == min(64, len(everything))
    same(found[:5], everything[:5])


BOUNDS = [Limits(3), Limits(3, 2), Limits(3, 0, (5,)), Limits(2, 0, (1, 4))]


@pytest.mark.parametrize(
    ("limit", "kind"),
    [  # each limit and each penalty at once, and all of them together by `make slow`
        pytest.param(limit, kind, marks=[] if i % len(LENGTH_PENALTIES) == j else pytest.mark.slow)
        for i, limit in enumerate(BOUNDS)
        for j, kind in enumerate(LENGTH_PENALTIES)
    ],
)
def test_a_large_beam_finds_the_best_translation_of_a_transformer(kind: str, limit: Limits) -> None:
    model, source = tiny(8, seed=3), sources(3, 5, 8)

    def log_prob(row: list[int], target: tuple[int, ...]) -> float:
        target_in = torch.tensor([[2, *target]])
        log_probs = model(torch.tensor([row]), target_in).log_softmax(-1)
        return float(log_probs[0, range(len(target) + 1), [*target, 3]].sum())

    with torch.inference_mode():
        found = beam_search(
            ModelNextToken(model), source, [limit] * 3, beam=70, n_best=4, length_penalty=kind, alpha=1.0
        )
        for row, hypotheses in zip(rows_of(source), found, strict=True):
            same(hypotheses, exhaustive(log_prob, row, 8, limit, kind, 1.0)[:4])


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    beam=st.integers(1, 6),
    n_best=st.integers(1, 6),
    kind=KINDS,
    alpha=ALPHAS,
    sharp=st.sampled_from([0.3, 2.0, 6.0]),
)
def test_stopping_early_loses_nothing(
    seed: int, beam: int, n_best: int, kind: str, alpha: float, sharp: float
) -> None:
    source, limits = sources(3, 4, 12, seed), [Limits(9), Limits(6, 2), Limits(12)]
    early, late = Toy(12, seed, sharp=sharp), Toy(12, seed, sharp=sharp)
    options = {"beam": beam, "n_best": min(n_best, beam), "length_penalty": kind, "alpha": alpha}
    assert beam_search(early, source, limits, **options) == beam_search(
        late, source, limits, stop_early=False, **options
    )
    assert early.steps <= late.steps


def test_search_stops_as_soon_as_nothing_better_can_come() -> None:
    class Certain(Toy):
        """Ends after two tokens with probability 0.98."""

        def next(self, source, prefix):
            p = torch.full((self.vocabulary,), 0.02 / (self.vocabulary - 1), dtype=torch.float64)
            p[3 if len(prefix) >= 2 else 4] = 0.98
            return p.log()

    for kind, steps in (("none", 3), ("wu", 3)):
        toy = Certain(9)
        beam_search(toy, sources(2, 3), [Limits(30)] * 2, beam=3, length_penalty=kind, alpha=0.5)
        assert toy.steps == steps


def test_finished_sentences_leave_the_batch() -> None:
    source = sources(16, 4)
    limits = [Limits(2)] * 14 + [Limits(20, 20)] * 2
    toy = Toy(9)
    beam_search(toy, source, limits, beam=2)
    assert toy.rows <= 16 + 2 * 32 + 18 * 4


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, kind=KINDS, alpha=ALPHAS, limit=LIMITS, sharp=st.sampled_from([0.0, 1.0, 4.0]))
def test_a_beam_of_one_is_greedy(seed: int, kind: str, alpha: float, limit: Limits, sharp: float) -> None:
    toy, source, limits = Toy(V, seed, sharp=sharp), sources(3, 4, V, seed), [limit, Limits(8), Limits(3, 2)]
    options = {"length_penalty": kind, "alpha": alpha}
    assert beam_search(toy, source, limits, beam=1, **options) == greedy_search(
        toy, source, limits, **options
    )


def test_a_beam_of_one_is_greedy_on_a_transformer() -> None:
    model, source = ModelNextToken(tiny(seed=5)), sources(6, 5)
    with torch.inference_mode():
        assert beam_search(model, source, [Limits(8)] * 6, beam=1) == greedy_search(
            model, source, [Limits(8)] * 6
        )


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, kind=KINDS)
def test_the_n_best_are_sorted_and_distinct(seed: int, kind: str) -> None:
    toy, source = Toy(V, seed), sources(2, 4, V, seed)
    for hypotheses in beam_search(toy, source, [Limits(5)] * 2, beam=5, n_best=5, length_penalty=kind):
        assert len(hypotheses) == 5
        assert len({h.tokens for h in hypotheses}) == 5
        scores = [h.score for h in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_there_are_no_more_hypotheses_than_exist() -> None:
    (found,) = beam_search(Toy(6), sources(1, 3, 6), [Limits(2)], beam=20, n_best=20)
    assert len(found) == 1 + 2 + 4


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, order=st.permutations(range(5)), kind=KINDS)
def test_neither_batch_nor_order_changes_what_is_found(seed: int, order: list[int], kind: str) -> None:
    toy, source = Toy(V, seed), sources(5, 4, V, seed)
    limits = [Limits(2 + i, i % 2, (4,) * (i % 3)) for i in range(5)]
    options = {"beam": 3, "n_best": 2, "length_penalty": kind}
    together = beam_search(toy, source, limits, **options)
    shuffled = beam_search(toy, source[list(order)], [limits[i] for i in order], **options)
    assert [together[i] for i in order] == shuffled
    assert together == [beam_search(toy, source[i : i + 1], [limits[i]], **options)[0] for i in range(5)]


def test_of_equal_hypotheses_the_lower_token_wins() -> None:
    uniform = Toy(8, sharp=0.0)
    (found,) = beam_search(uniform, sources(1, 3, 8), [Limits(2, 2)], beam=4, n_best=4)
    assert [h.tokens for h in found] == [(4, 4), (4, 5), (4, 6), (4, 7)]
    assert greedy_search(uniform, sources(1, 3, 8), [Limits(2, 2)])[0][0].tokens == (4, 4)


def test_at_the_longest_length_eos_follows_at_its_true_probability() -> None:
    class Endless(Toy):
        def next(self, source, prefix):
            p = torch.full((self.vocabulary,), 0.01 / (self.vocabulary - 1), dtype=torch.float64)
            p[5] = 0.99
            return p.log()

    for search in (lambda *a: beam_search(*a, beam=3), greedy_search):
        ((best, *_),) = search(Endless(8), sources(1, 3), [Limits(4, 4)])
        assert best.tokens == (5, 5, 5, 5)
        assert math.isclose(best.log_probability, 4 * math.log(0.99) + math.log(0.01 / 7))


def test_pad_bos_and_unk_are_never_chosen() -> None:
    class Lover(Toy):
        """Gives almost everything to what may not be written."""

        def next(self, source, prefix):
            p = torch.full((self.vocabulary,), 1e-6, dtype=torch.float64)
            p[:3] = 1 / 3
            return p.log().log_softmax(0)

    for search in (lambda *a: beam_search(*a, beam=4, n_best=4), greedy_search):
        for hypotheses in search(Lover(8), sources(2, 3), [Limits(4)] * 2):
            assert all(token >= 4 for h in hypotheses for token in h.tokens)


def test_where_nothing_may_be_written_nothing_is_found() -> None:
    everything = Toy(8, forbidden=[3, 4, 5, 6, 7])
    without_end = Toy(8, forbidden=[3])
    for toy in (everything, without_end):
        assert beam_search(toy, sources(2, 3), [Limits(3)] * 2, beam=3) == [[], []]
        assert greedy_search(toy, sources(2, 3), [Limits(3)] * 2) == [[], []]


def test_no_sentences_give_no_hypotheses() -> None:
    empty = torch.zeros(0, 3, dtype=torch.int64)
    assert beam_search(Toy(8), empty, [], beam=3) == []
    assert greedy_search(Toy(8), empty, []) == []


def test_not_a_number_is_refused() -> None:
    class Diverged(Toy):
        def next(self, source, prefix):
            return torch.full((self.vocabulary,), torch.nan, dtype=torch.float64)

    for search in (lambda *a: beam_search(*a, beam=3), greedy_search):
        with pytest.raises(CheckpointError, match="not numbers"):
            search(Diverged(8), sources(1, 3), [Limits(3)])


@pytest.mark.parametrize("vocabulary", [4, 5, 6])
def test_a_beam_wider_than_the_vocabulary_works(vocabulary: int) -> None:
    toy = Toy(vocabulary)
    (found,) = beam_search(toy, torch.tensor([[3]]), [Limits(2)], beam=50, n_best=50)
    same(found, exhaustive(toy.log_prob, [3], vocabulary, Limits(2), "none", 1.0))

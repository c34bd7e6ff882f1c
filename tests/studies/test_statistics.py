"""Intervals, tests and curves against closed forms, published quantiles and enumeration."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.core.errors import DataError
from transformer.studies.bootstrap import paired_bootstrap
from transformer.studies.statistics import (
    holm,
    mean_of,
    paired,
    reached_at_once,
    sensitivity,
    sign_test,
    split_chance,
    t_inside,
    t_quantile,
    updates_to,
    wilson,
)

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


@pytest.mark.parametrize(
    ("freedom", "level", "published"),
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.3027),
        (3, 0.95, 3.1824),
        (4, 0.95, 2.7764),
        (9, 0.95, 2.2622),
        (30, 0.95, 2.0423),
        (120, 0.95, 1.9799),
        (1, 0.99, 63.6567),
        (2, 0.99, 9.9248),
        (10, 0.90, 1.8125),
    ],
)
def test_t_quantiles_are_the_published_ones(freedom: int, level: float, published: float) -> None:
    assert t_quantile(freedom, level) == pytest.approx(published, abs=6e-5)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 4.0, 50.0])
def test_one_and_two_degrees_of_freedom_have_their_closed_forms(t: float) -> None:
    assert t_inside(t, 1) == pytest.approx(2 / math.pi * math.atan(t))
    assert t_inside(t, 2) == pytest.approx(t / math.sqrt(2 + t * t))


@pytest.mark.parametrize("freedom", [3, 4, 7, 8])
def test_the_distribution_is_the_integral_of_its_density(freedom: int) -> None:
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    steps, end = 4000, 2.5
    middles = ((i + 0.5) * end / steps for i in range(steps))
    area = sum(scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2) for x in middles) * end / steps
    assert t_inside(end, freedom) == pytest.approx(2 * area, abs=1e-6)


def test_the_interval_of_three_seeds_is_written_out() -> None:
    mean = mean_of([1.0, 2.0, 6.0])
    assert mean is not None
    assert (mean.mean, mean.deviation, mean.count) == (3.0, pytest.approx(math.sqrt(7)), 3)
    assert mean.half == pytest.approx(4.30265 * math.sqrt(7 / 3), rel=1e-5)


def test_one_seed_has_no_interval_and_none_has_no_mean() -> None:
    one = mean_of([2.5])
    assert one is not None
    assert (one.mean, one.low, one.high, one.half) == (2.5, None, None, None)
    assert mean_of([]) is None


@given(st.lists(numbers, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_seeds_does_not_change_a_bit(values: list[float], draw: random.Random) -> None:
    shuffled = draw.sample(values, len(values))
    assert mean_of(values) == mean_of(shuffled)
    first = dict(enumerate(values))
    second = {seed: value / 2 for seed, value in first.items()}
    reordered = dict(draw.sample(list(first.items()), len(first)))
    assert paired(first, second) == paired(reordered, second)


def test_the_paired_test_of_two_seeds_is_that_of_cauchy() -> None:
    found = paired({1: 3.0, 2: 5.0}, {1: 2.0, 2: 1.0})  # differences 1 and 4: t = 2.5 / 1.5
    assert found is not None
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(2.5 / 1.5))
    assert found.effect == pytest.approx(2.5 / math.sqrt(4.5))


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired({1: 3.0, 2: 5.0, 7: 90.0}, {1: 2.0, 2: 1.0, 9: -50.0})
    assert found is not None
    assert found.difference.count == 2
    assert paired({1: 1.0}, {2: 1.0}) is None


@given(st.lists(numbers, min_size=1, max_size=5))
def test_identical_arms_never_differ(values: list[float]) -> None:
    arm = dict(enumerate(values))
    found = paired(arm, dict(arm))
    assert found is not None
    assert found.identical
    assert found.p == (None if len(values) == 1 else 1.0)


@pytest.mark.parametrize("shift", [0.1, -1 / 3, 1e-3])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e-320])
def test_differences_that_are_all_alike_are_left_to_the_sign_test(shift: float, size: float) -> None:
    """Rounding leaves deviations of about 1e-17, of which a t test makes p = 1e-16."""
    values = [size * v for v in (2.0, 2.7, 3.1, 2.3, 2.9, 3.3)]
    for count in (3, 6):
        arm = dict(enumerate(values[:count]))
        found = paired({seed: v + size * shift for seed, v in arm.items()}, arm)
        assert found is not None
        assert found.steady
        if size > 1e-300:
            assert found.p == sign_test(count, 0) == 2 / 2.0**count
        assert (found.difference.low, found.difference.high, found.effect) == (None, None, None)


def test_differences_that_are_rounding_are_none() -> None:
    found = paired({1: 0.1 + 0.2, 2: 0.7, 3: 1.0}, {1: 0.3, 2: 0.7, 3: 1.0})
    assert found is not None
    assert found.identical


@pytest.mark.parametrize("count", range(1, 8))
def test_the_sign_test_is_the_share_of_coin_sequences_as_uneven(count: int) -> None:
    flips = [sum(flip) for flip in product((0, 1), repeat=count)]
    for wins in range(count + 1):
        uneven = [heads for heads in flips if abs(2 * heads - count) >= abs(2 * wins - count)]
        assert sign_test(wins, count - wins) == pytest.approx(len(uneven) / len(flips))


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_a_clean_split_is_never_likelier_than_its_bound(seeds: int) -> None:
    chances = [2 * (q / 100) ** seeds * (1 - q / 100) ** seeds for q in range(101)]
    assert max(chances) == pytest.approx(split_chance(seeds))


@pytest.mark.parametrize("spread", [(0.0, 1.0), (0.1, 0.9), (0.3, 0.5, 0.7)])
def test_it_is_a_bound_too_where_seeds_are_not_alike(spread: tuple[float, ...]) -> None:
    """Given each seed's own rate, of both runs; whether the seeds draw theirs together or apart."""
    apart = 2 * (sum(q * (1 - q) for q in spread) / len(spread)) ** 3
    together = 2 * sum((q * (1 - q)) ** 3 for q in spread) / len(spread)
    assert max(apart, together) <= split_chance(3)


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("events", "count"), [(1, 3), (2, 5), (4, 9), (0, 3), (3, 3)])
def test_wilsons_bounds_lie_z_standard_errors_from_the_rate(events: int, count: int) -> None:
    low, high = wilson(events, count)
    assert 0 <= low <= events / count <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            error = math.sqrt(bound * (1 - bound) / count)
            assert abs(events / count - bound) / error == pytest.approx(1.959964, rel=1e-5)


def test_no_runs_say_nothing_of_a_rate() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_sensitivity_is_the_mean_height_over_the_log_rates() -> None:
    assert sensitivity({1e-4: 3.0, 1e-3: 2.0, 1e-2: 4.0}, 9.0) == pytest.approx((0.5 + 1.0) / 2)
    assert sensitivity({1e-4: 2.0, 1e-1: 2.0}, 9.0) == 0.0
    assert sensitivity({1e-3: 2.0}, 9.0) is None


def test_a_diverged_rate_counts_as_the_loss_at_initialisation() -> None:
    diverged = sensitivity({1e-4: 3.0, 1e-3: 2.0, 1e-2: None}, 9.0)
    assert diverged == sensitivity({1e-4: 3.0, 1e-3: 2.0, 1e-2: 1e9}, 9.0)
    assert diverged == pytest.approx((0.5 + 3.5) / 2)


def test_the_spacing_of_rates_weighs_them() -> None:
    """A rate squeezed in between two others adds little where the curve stays straight."""
    plain = sensitivity({1e-4: 3.0, 1e-2: 1.0}, 9.0)
    assert sensitivity({1e-4: 3.0, 1e-3: 2.0, 1e-2: 1.0}, 9.0) == pytest.approx(plain)


def test_updates_to_a_target_lie_between_validations() -> None:
    curve = [(100, 5.0), (200, 4.0), (300, 3.0)]
    assert updates_to(curve, 3.25) == pytest.approx(275)
    assert updates_to(list(reversed(curve)), 4.0) == pytest.approx(200)
    assert updates_to(curve, 2.9) is None
    assert updates_to(curve, 6.0) == 100
    assert updates_to([], 1.0) is None
    assert [reached_at_once(curve, target) for target in (2.9, 3.25, 4.0, 6.0)] == [False, False, False, True]


def test_a_validation_that_was_not_finite_is_no_point_to_draw_from() -> None:
    curve = [(100, 5.0), (200, math.nan), (300, 3.0)]
    assert updates_to(curve, 4.0) == 300
    assert reached_at_once(curve, 4.0), "where between it was is not known"


REFERENCES = [
    f"the {noun} sees a {other} today" for noun in ("cat", "dog", "man") for other in ("hat", "cup")
] * 4
WORSE = [line.replace("sees a", "is") for line in REFERENCES]


def test_translations_that_are_alike_do_not_differ_significantly() -> None:
    assert [each.p for each in paired_bootstrap(WORSE, WORSE, REFERENCES, samples=100)] == [1.0, 1.0]


def test_a_text_that_is_worse_in_every_sentence_is_told_apart() -> None:
    bleu, chrf = paired_bootstrap(REFERENCES, WORSE, REFERENCES, samples=200)
    assert (bleu.metric, chrf.metric) == ("BLEU", "chrF2")
    assert bleu.first == pytest.approx(100)
    assert bleu.difference == pytest.approx(bleu.second - 100)
    assert bleu.p == pytest.approx(1 / 201)
    assert "bs:200" in bleu.signature


def test_texts_of_other_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="line by line"):
        paired_bootstrap(["a"], ["a", "b"], ["a", "b"])
    with pytest.raises(DataError, match="nothing to compare"):
        paired_bootstrap([], [], [])

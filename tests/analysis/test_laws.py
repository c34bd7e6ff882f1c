"""Laws of growth: with the layers of one model, and with the depth of models."""

from __future__ import annotations

import math

import pytest

from transformer.analysis.laws import law_of_depth, law_of_layers

DEPTHS = [2, 4, 8, 16]


def test_laws_of_layers_are_told_apart() -> None:
    linear, exponential = [1.5 + 0.9 * l for l in range(7)], [1.5 * 1.8**l for l in range(7)]  # noqa: E741
    found = law_of_layers([linear])
    assert (found.kind, found.rate) == ("linear", pytest.approx(0.9))
    found = law_of_layers([exponential, exponential])
    assert (found.kind, found.rate) == ("exponential", pytest.approx(1.8))
    assert law_of_layers([[1.5, 1.0, 1.01, 0.99, 1.0]]).kind == "constant"
    assert law_of_layers([[1.0, 1.0, 1.2, 1.1, 1.4]]).kind == "either"
    assert law_of_layers([[1.0, math.inf, 2.0]]).kind == "unclear"
    shrunk = law_of_layers([[4.0, 2.0, 1.0, 0.5, 0.25]])
    assert shrunk.kind == "exponential"
    assert "shrinks from 2 after layer 1 to 0.25 after layer 4; it looks exponential" in shrunk.words


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("factor", [1.0, 2.0], ids=["steady", "growing"])
def test_fewer_than_four_layers_tell_no_law(layers: int, factor: float) -> None:
    found = law_of_layers([[1.5 * factor**l for l in range(layers + 1)]] * 2)  # noqa: E741
    assert (found.kind, found.rate) == ("unclear", None)
    assert "fewer than 4 layers tell no law" in found.words
    assert "keeps" not in found.words


def test_growth_that_a_line_with_uneven_layers_can_have_is_not_called_exponential() -> None:
    """From layer 1 to layer L a line from 0 or above grows L times at most."""
    uneven = [1.5, 2.2, 2.8, 3.7, 4.7, 6.2]  # of five layers; the nearer to an exponential curve
    assert uneven[-1] / uneven[1] < 5
    found = law_of_layers([uneven])
    assert found.kind == "either"
    assert "not told apart" in found.words
    steep = [1.5 * 1.6**l for l in range(6)]  # noqa: E741
    assert law_of_layers([steep]).kind == "exponential"
    assert law_of_layers([steep, uneven]).kind == "either"


def test_a_law_of_layers_is_told_where_every_seed_is_nearer_to_it() -> None:
    linear, exponential = [1.5 + 90.0 * l for l in range(7)], [1.5 * 1.2**l for l in range(7)]  # noqa: E741
    assert law_of_layers([linear, linear]).kind == "linear"
    assert law_of_layers([linear, exponential]).kind == "either"  # the mean is almost a line


def test_laws_of_depth_are_told_apart() -> None:
    line = law_of_depth(DEPTHS, [[3.0 * n for n in DEPTHS], [4.0 * n for n in DEPTHS]])
    assert line is not None
    assert line.kind == "N"
    assert line.linear == pytest.approx(1)
    assert line.powers == pytest.approx([1, 1])
    log = law_of_depth(DEPTHS, [[1 + 2 * math.log(n) for n in DEPTHS]])
    assert log is not None
    assert log.kind == "log N"
    assert log.logarithmic == pytest.approx(1)


def test_a_law_is_told_where_it_is_clearly_the_better_and_so_in_every_seed() -> None:
    def kind(*by_seed: list[float]) -> str | None:
        law = law_of_depth(DEPTHS, by_seed)
        return law and law.kind

    assert kind([n**0.5 for n in DEPTHS]) == "either"
    straight, curved = [10.0 * n for n in DEPTHS], [1 + math.log(n) for n in DEPTHS]
    assert kind(straight, straight) == "N"
    assert kind(straight, curved) == "either"  # the mean is almost a line
    assert kind([5.0, 5.2, 5.1, 5.3]) == "constant"


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_where_a_value_is_0_or_not_finite_there_is_no_law(value: float) -> None:
    law = law_of_depth(DEPTHS, [[1.0, 2.0, 3.0, 4.0], [1.0, value, 3.0, 4.0]])
    assert law is not None
    assert (law.kind, law.powers, law.linear) == ("no law", [], None)


def test_few_depths_have_a_power_and_no_law_and_one_has_neither() -> None:
    law = law_of_depth([2, 4, 8], [[1.0, 2.0, 4.0]])
    assert law is not None
    assert (law.kind, law.powers) == ("too few depths", pytest.approx([1]))
    assert law_of_depth([2], [[1.0]]) is None

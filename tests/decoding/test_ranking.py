"""The largest of a row, ties included, against a stable sort."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from transformer.core.errors import CheckpointError
from transformer.decoding.ranking import best_sums, first_largest, largest, possible

ROWS = st.integers(1, 40).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([-torch.inf, -2.0, -1.0, 0.0]), min_size=n, max_size=n),
        min_size=1,
        max_size=4,
    )
)


@given(rows=ROWS, k=st.integers(1, 40))
def test_of_equal_values_the_first_come_first(rows: list[list[float]], k: int) -> None:
    values = torch.tensor(rows)
    k = min(k, values.shape[1])
    top, indices = largest(values, k)
    expected, order = values.sort(dim=1, descending=True, stable=True)
    assert torch.equal(top, expected[:, :k])
    finite = top > -torch.inf
    assert torch.equal(indices[finite], order[:, :k][finite])
    assert torch.equal(values.gather(1, indices), top)


@given(rows=ROWS)
def test_the_first_largest_is_the_largest_of_one(rows: list[list[float]]) -> None:
    values = torch.tensor(rows)
    top, index = first_largest(values)
    expected, order = values.sort(dim=1, descending=True, stable=True)
    assert torch.equal(top, expected[:, 0])
    assert torch.equal(index, order[:, 0])


@pytest.mark.parametrize("width", [64, 640, 1500, 8000])
@pytest.mark.parametrize("levels", [3, 40, 100_000])
def test_wide_rows_are_ranked_in_blocks_as_by_a_stable_sort(width: int, levels: int) -> None:
    draws = torch.Generator().manual_seed(width)
    values = torch.randint(-levels, 0, (7, width), generator=draws).float()
    values[0, 2:] = -torch.inf
    for k in (1, 2, 5, 9):
        top, indices = largest(values, k)
        expected, order = values.sort(dim=1, descending=True, stable=True)
        assert torch.equal(top, expected[:, :k])
        finite = top > -torch.inf
        assert torch.equal(indices[finite], order[:, :k][finite])
    for row in (0, 6):
        values[row] = -torch.inf
    top, index = first_largest(values)
    expected, order = values.sort(dim=1, descending=True, stable=True)
    assert torch.equal(top, expected[:, 0])
    assert torch.equal(index, order[:, 0])
    assert possible(values).tolist() == [False, *[True] * 5, False]


@pytest.mark.parametrize("width", [40, 4000, 4001])
@pytest.mark.parametrize("search", [first_largest, possible])
def test_one_number_that_is_none_is_enough(search: Callable[[Tensor], object], width: int) -> None:
    values = torch.zeros(3, width)
    values[1] = -torch.inf
    search(values)
    values[2, -1] = torch.nan
    with pytest.raises(CheckpointError, match="not numbers"):
        search(values)


def test_not_a_number_is_found_in_wide_rows() -> None:
    values = torch.zeros(2, 4000)
    values[1, 3998] = torch.nan
    with pytest.raises(CheckpointError, match="not numbers"):
        largest(values, 5)


@pytest.mark.parametrize("width", [1, 3, 64, 1279, 1280, 1500, 8000])
@pytest.mark.parametrize("levels", [3, 100_000])
def test_the_best_sums_of_a_sentence_are_those_of_a_stable_sort_of_all(width: int, levels: int) -> None:
    """Of equal ones the first row's, then the first column's; rows and columns are of the table always."""
    draws = torch.Generator().manual_seed(width)
    for groups, rows, k in ((1, 1, 1), (3, 1, 5), (2, 5, 5), (4, 3, 2)):
        values = torch.randint(-levels, 0, (groups * rows, width), generator=draws).float()
        values[torch.rand(values.shape, generator=draws) < 0.5] = -torch.inf
        values[0] = -torch.inf
        addends = torch.randint(-3, 0, (groups, rows), generator=draws).double()
        addends[-1, -1] = -torch.inf
        sums, origins, columns = best_sums(values, addends, k)
        table = (addends.view(-1, 1) + values.double()).view(groups, -1)
        expected, order = table.sort(dim=1, descending=True, stable=True)
        assert sums.shape == (groups, min(k, rows * min(k, width)))
        assert torch.equal(sums, expected[:, : sums.shape[1]])
        first = torch.arange(0, groups * rows, rows)[:, None]
        finite = sums.isfinite()
        found = (origins - first) * width + columns
        assert torch.equal(found[finite], order[:, : sums.shape[1]][finite])
        assert int(origins.min()) >= 0 <= int(columns.min())
        assert int(origins.max()) < groups * rows
        assert int(columns.max()) < width


def test_sums_that_are_no_numbers_are_found() -> None:
    for width in (10, 4001):
        values = torch.zeros(4, width)
        values[3, -1] = torch.nan
        with pytest.raises(CheckpointError, match="not numbers"):
            best_sums(values, torch.zeros(2, 2, dtype=torch.float64), 2)

"""The largest of a row, ties included, against a stable sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformer.core.errors import CheckpointError
from transformer.decoding.ranking import first_largest, largest

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


def test_not_a_number_is_found_in_wide_rows() -> None:
    values = torch.zeros(2, 4000)
    values[1, 3998] = torch.nan
    with pytest.raises(CheckpointError, match="not numbers"):
        largest(values, 5)

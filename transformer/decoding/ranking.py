"""The largest of a row, with ties decided: topk leaves open which of two equals it returns."""

from __future__ import annotations

from torch import Tensor

from ..core.errors import CheckpointError

NOT_NUMBERS = "the model's probabilities are not numbers; its training has diverged"


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (R, N), descending, of equal ones the first: values and indices (R, k).

    A row's answer depends on that row alone, on every device. Raises CheckpointError on NaN: topk holds it
    for the largest of all, and search would follow it.
    """
    assert 1 <= k <= values.shape[1]
    more = min(k + 1, values.shape[1])
    top, indices = values.topk(more, dim=1)
    if bool(top[:, 0].isnan().any()):
        raise CheckpointError(NOT_NUMBERS)
    if more > k:
        # A tie across the k-th place: topk chose among equals as it liked.
        tied = (top[:, k - 1] == top[:, k]) & top[:, k].isfinite()
        top, indices = top[:, :k], indices[:, :k]
        if bool(tied.any()):
            rows = tied.nonzero().squeeze(1)
            ordered, order = values[rows].sort(dim=1, descending=True, stable=True)
            top[rows], indices[rows] = ordered[:, :k], order[:, :k]
    if k > 1 and bool((top[:, 1:] == top[:, :-1]).any()):
        indices, order = indices.sort(dim=1)
        top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
        indices = indices.gather(1, order)
    return top, indices


def first_largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """`largest` of k = 1 without its column: values (R,) and indices (R,)."""
    top, indices = values.max(dim=1)  # documented to return the first of equals
    if bool(top.isnan().any()):
        raise CheckpointError(NOT_NUMBERS)
    return top, indices

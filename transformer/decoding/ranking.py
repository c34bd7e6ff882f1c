"""The largest of a row, with ties decided: topk leaves open which of two equals it returns."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import CheckpointError

NOT_NUMBERS = "the model's probabilities are not numbers; its training has diverged"

_BLOCK = 64  # columns; short enough to be searched, long enough that there are few of them


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (R, N), descending, of equal ones the first: values and indices (R, k).

    A row's answer depends on that row alone, on every device. Raises CheckpointError on NaN: topk holds it
    for the largest of all, and search would follow it.
    """
    assert 1 <= k <= values.shape[1]
    more = min(k + 1, values.shape[1])
    top, indices = _topk(values, more)
    if bool(top[:, 0].isnan().any()):
        raise CheckpointError(NOT_NUMBERS)
    if more > k:
        # A tie across the k-th place: topk chose among equals as it liked.
        tied = (top[:, k - 1] == top[:, k]) & top[:, k].isfinite()
        top, indices = top[:, :k], indices[:, :k]
        if bool(tied.any()):
            rows = tied.nonzero().squeeze(1)
            top[rows], indices[rows] = _stable(values[rows], k)
    if k > 1 and bool((top[:, 1:] == top[:, :-1]).any()):
        indices, order = indices.sort(dim=1)
        top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
        indices = indices.gather(1, order)
    return top, indices


def _topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`values.topk(k)`, NaN first, of equal values any.

    In two stages on a CPU, where topk goes through a row number by number and a maximum does not: the k
    largest lie in the k blocks whose maxima are largest.
    """
    if values.device.type != "cpu" or values.shape[1] // _BLOCK < 4 * k:
        return values.topk(k, dim=1)
    columns, candidates = _candidates(values, _maxima(values).topk(k, dim=1)[1])
    top, place = candidates.topk(k, dim=1)
    return top, columns.gather(1, place)


def _stable(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest, of equal ones the first, from the blocks that hold them.

    Of blocks with equal maxima the first go first too: what precedes them all precedes what is in others.
    """
    blocks = values.shape[1] // _BLOCK
    if blocks <= k:
        top, indices = values.sort(dim=1, descending=True, stable=True)
        return top[:, :k], indices[:, :k]
    first = _maxima(values).sort(dim=1, descending=True, stable=True)[1][:, :k]
    columns, candidates = _candidates(values, first.sort(dim=1)[0])
    top, place = candidates.sort(dim=1, descending=True, stable=True)
    return top[:, :k], columns.gather(1, place[:, :k])


def _maxima(values: Tensor) -> Tensor:
    """(R, N) -> (R, N // block): the largest of each block."""
    blocks = values.shape[1] // _BLOCK
    return values[:, : blocks * _BLOCK].reshape(len(values), blocks, _BLOCK).amax(2)


def _candidates(values: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of blocks (R, k), and of the columns after the last block: columns (R, C) and their values (R, C)."""
    rows, width = len(values), values.shape[1]
    inside = (blocks[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=values.device)).flatten(1)
    rest = torch.arange(width // _BLOCK * _BLOCK, width, device=values.device).expand(rows, -1)
    columns = torch.cat((inside, rest), 1)
    return columns, values.gather(1, columns)


def first_largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """`largest` of k = 1 without its column: values (R,) and indices (R,)."""
    top, indices = values.max(dim=1)  # documented to return the first of equals
    if bool(top.isnan().any()):
        raise CheckpointError(NOT_NUMBERS)
    return top, indices

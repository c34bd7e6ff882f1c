"""The largest of a row or of a sentence, with ties decided: topk leaves open which of two equals it returns.

On a CPU topk goes through a row number by number, and a maximum does not. So a wide row is ranked in blocks:
the k largest lie in the k blocks whose maxima are largest, of blocks with equal maxima the first, since what
leads each of these blocks comes before all that is in others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import CheckpointError
from ..kernels import operators

NOT_NUMBERS = "the model's probabilities are not numbers; its training has diverged"

_BLOCK = 64  # columns; short enough to be searched, long enough that there are few of them
_PAYS = 16  # for the largest alone there have to be as many blocks as for so many


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (R, N), descending, of equal ones the first: values and indices (R, k).

    A row's answer depends on that row alone, on every device. Raises CheckpointError on NaN: topk holds it
    for the largest of all, and search would follow it.
    """
    assert 1 <= k <= values.shape[1]
    if not _in_blocks(values, k):
        return _ranked(values, k)
    blocks = _ranked(_maxima(values), k)[1].sort(1)[0]
    columns = _columns(blocks)
    top, place = _ranked(_picked(values, columns), k)
    return top, columns.gather(1, place)


def best_sums(values: Tensor, addends: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of values (B x W, N), each row with its addend (B, W) in float64: the k largest sums of each group of W
    rows, descending, of equal ones the first row's, then the first column's.

    Sums (B, k), fewer where there are not k, their rows among all (B, k) and columns (B, k). Where a sum is
    not finite, row and column are any. CheckpointError on NaN.
    """
    groups, width = addends.shape
    size = values.shape[1]
    first = torch.arange(0, groups * width, width, device=values.device)[:, None]
    if not _in_blocks(values, k):
        top, columns = largest(values, min(k, size))
        sums, index = largest((addends.view(-1, 1) + top).view(groups, -1), min(k, width * top.shape[1]))
        return sums, first + index // top.shape[1], columns.reshape(groups, -1).gather(1, index)
    if operators.has("best_sums") and values.dtype == torch.float32 and values.is_contiguous():
        if (best := operators.best_sums(values, addends, k)) is None:
            raise CheckpointError(NOT_NUMBERS)
        return best
    maxima = _maxima(values)
    each = maxima.shape[1]
    found = _ranked((addends.view(-1, 1) + maxima).view(groups, -1), k)[1].sort(1)[0]
    rows, columns = found // each, _columns(found % each)
    picked = _picked(values, columns.view(-1, _BLOCK), (first + rows).view(-1, 1)).view(groups, k, _BLOCK)
    sums, index = _ranked((picked + addends.gather(1, rows)[:, :, None]).flatten(1), k)
    columns = columns.gather(1, index).clamp_(max=size - 1)
    return sums, (first + rows).gather(1, index // _BLOCK), columns


def _in_blocks(values: Tensor, k: int) -> bool:
    return values.device.type == "cpu" and values.shape[1] // _BLOCK >= 4 * k


def _ranked(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`largest` of rows that topk goes through as they are."""
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


def _maxima(values: Tensor) -> Tensor:
    """(R, N) -> (R, blocks): the largest of each block, the last of which may be shorter."""
    rows, size = values.shape
    whole = size // _BLOCK * _BLOCK
    maxima = values[:, :whole].reshape(rows, -1, _BLOCK).amax(2)
    return maxima if whole == size else torch.cat((maxima, values[:, whole:].amax(1, keepdim=True)), 1)


def _columns(blocks: Tensor) -> Tensor:
    """Of blocks (R, k) in order: their columns (R, k x block)."""
    return (blocks[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=blocks.device)).flatten(1)


def _picked(values: Tensor, columns: Tensor, rows: Tensor | None = None) -> Tensor:
    """Values (R, N) at columns (R, C), or of `rows` (R', 1) at columns (R', C); -inf beyond the last."""
    size = values.shape[1]
    inside = columns if size % _BLOCK == 0 else columns.clamp(max=size - 1)
    picked = values.gather(1, inside) if rows is None else values.reshape(-1)[rows * size + inside]
    return picked if size % _BLOCK == 0 else picked.masked_fill_(columns >= size, -torch.inf)


def first_largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """`largest` of k = 1 without its column: values (R,) and indices (R,)."""
    if _in_blocks(values, _PAYS):
        top, block = _maxima(values).max(dim=1)
        columns = _columns(block[:, None])
        indices = columns.gather(1, _picked(values, columns).max(dim=1, keepdim=True)[1]).squeeze(1)
    else:
        top, indices = values.max(dim=1)  # documented to return the first of equals
    if bool(top.isnan().any()):
        raise CheckpointError(NOT_NUMBERS)
    return top, indices


def possible(values: Tensor) -> Tensor:
    """(R, N) -> (R,): has a row anything above -inf? Raises CheckpointError on NaN."""
    best = values.amax(1)
    found = best > -torch.inf  # a NaN is not
    if not bool(found.all()) and bool(best.isnan().any()):
        raise CheckpointError(NOT_NUMBERS)
    return found

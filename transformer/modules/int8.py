"""Matrix products in 8-bit integers, for inference on a CPU.

Each row of x and each row of W is rounded to whole numbers by a scale of its own: x to 8 bits, W to 8 or 7,
as the processor multiplies them exactly (`ways`). Sums of their products are exact integers, which the two
rows' scales make numbers again. A row's result depends on no other row. Source: Dettmers et al. 2022, arXiv
2208.07339, section 2.1 (vector-wise scales).
"""

from __future__ import annotations

import math
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..kernels import operators
from .products import has_onednn, has_tiles

_LARGEST = 127
_TERMS = (2**31 - 1) // _LARGEST**2  # of a sum that fits into 32 bits whatever the numbers: 133,144
_EXACT = 2**24 // _LARGEST**2  # of a sum that float32 holds exactly, in any order: 1,040
_TRIES, _TRIAL = 1000, 0.2  # of products that are timed, and seconds for these

# Whole numbers (R, K), int8, float32 or in a way's format -> float32 (R, N).
Scaled = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """Exact products of whole numbers from -127 to 127 with W's, which are from -largest to largest.

    `scaled(W, s)`, of W (N, K) and the scales (N,) of its rows: X (R, K) -> X W^T s (R, N) in float32. X may
    be in its format: int8, with `zero` 128 uint8 of which that is to be taken away, with None float32.
    """

    largest: int
    scaled: Callable[[Tensor, Tensor], Scaled]
    zero: int | None = None


def int8_product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Of W (out, in) and b (out), as they are now: X (..., in) -> X W^T + b (..., out) in float32.

    Not finite where a row of x is not. A row of x may be as large as float32 goes: infinite are numbers that
    float32 does not hold, and perhaps those of a row of W with magnitudes above 1e31, as its scale is
    multiplied by first.
    """
    way = way_for(weight.shape[1])
    whole, of_columns = rounded(weight.detach(), way.largest)
    outputs = len(whole)
    bias = None if bias is None else bias.detach().clone()
    scaled = way.scaled(whole, of_columns.squeeze(1))

    def product(x: Tensor) -> Tensor:
        rows, of_rows = _rounded_for(way, x.reshape(-1, x.shape[-1]))
        made = scaled(rows)
        if bias is None:
            made *= of_rows
        else:
            torch.addcmul(bias, made, of_rows, out=made)
        return made.view(*x.shape[:-1], outputs)

    return product


def way_for(terms: int) -> Way:
    """For sums of so many: the first of `ways`, else float32's, at its speed."""
    return ways()[0] if ways() and terms <= _TERMS else Way(_LARGEST, _by_float32)


def _by_onednn(whole: Tensor, scales: Tensor) -> Scaled:
    """One pass makes the sums and scales them; W is ordered once for the kernels that want it so."""
    multiply = _ordered_for_onednn(whole, scales)
    return lambda rows: multiply(rows.to(torch.int8), 0)


def _by_onednn_unsigned(whole: Tensor, scales: Tensor) -> Scaled:
    """The same for x + 128, in 8 bits without sign, from which the kernel takes what that adds."""
    multiply = _ordered_for_onednn(whole, scales)

    def product(rows: Tensor) -> Tensor:
        if rows.dtype != torch.uint8:
            rows = rows.to(torch.int8).view(torch.uint8) ^ 128  # flips the highest bit
        return multiply(rows, 128)

    return product


def _ordered_for_onednn(whole: Tensor, scales: Tensor) -> Callable[[Tensor, int], Tensor]:
    """X in 8 bits (R, K), z -> (X - z) W^T s (R, N)."""
    packed = torch.ops.onednn.qlinear_prepack(whole.to(torch.int8), None)
    settings = packed, scales, torch.zeros(len(whole), dtype=torch.int32), None, 1.0, 0, torch.float32
    return lambda x, zero: torch.ops.onednn.qlinear_pointwise(x, 1.0, zero, *settings, "none", [], "")


def _by_float32(whole: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """Some of K at a time, where their sums are exact; all of them are added in float64 and rounded once."""
    columns = whole.float().T.contiguous()
    if len(columns) <= _EXACT:
        return lambda rows: (rows.float() @ columns).mul_(scales)
    parts = torch.split(columns, _EXACT)

    def product(rows: Tensor) -> Tensor:
        pairs = zip(torch.split(rows.float(), _EXACT, 1), parts, strict=True)
        sums = torch.stack([some @ part for some, part in pairs]).sum(0, dtype=torch.float64)
        return sums.float().mul_(scales)

    return product


def rounded(x: Tensor, largest: int = _LARGEST) -> tuple[Tensor, Tensor]:
    """X (R, N) -> whole numbers (R, N) in its format and the scales (R, 1) that they are to be multiplied by.

    The largest magnitude of a row is `largest`. No scale is below the smallest normal number: of rows below
    1.5e-36 it is less.
    """
    tiny = torch.finfo(torch.float32).tiny
    scales = x.abs().amax(-1, keepdim=True).clamp_min_(tiny * largest).div_(largest)
    return (x * scales.reciprocal()).round_(), scales


def _rounded_for(way: Way, x: Tensor) -> tuple[Tensor, Tensor]:
    """`rounded`; during a search in C, in a way's own format."""
    if way.zero is None or x.dtype != torch.float32 or not operators.has("rounded"):
        return rounded(x)
    return operators.rounded(x, way.zero)


@cache
def ways() -> tuple[Way, ...]:
    """Those of oneDNN on x86 whose sums are exact here, the best first.

    Products of 8-bit integers (VNNI, AMX) are exact. With AVX2 each sum of two products is cut at 16 bits, so
    W has 7 bits: 2 x 255 x 64 is below 2^15. For x with a sign oneDNN's kernels are fast with AMX alone. What
    is equally exact makes the same numbers, so that the clock may choose, and nothing else.
    """
    if not has_onednn():
        return ()
    signed = [Way(_LARGEST, _by_onednn, 0)] if has_tiles() else []
    unsigned = (Way(largest, _by_onednn_unsigned, 128) for largest in (_LARGEST, 64))
    exact = filter(_is_exact, (*signed, *unsigned))
    return tuple(sorted(exact, key=lambda way: (-way.largest, _seconds(way))))


def _seconds(way: Way) -> float:
    """Of a product with few rows, at best; of so many, since others may have the cores for a while."""
    rows = torch.ones(4, 256, dtype=torch.uint8 if way.zero else torch.int8)
    product = way.scaled(torch.ones(256, 256), torch.ones(256))
    timer = timeit.Timer(lambda: product(rows))
    end, best = time.perf_counter() + _TRIAL, math.inf
    for _ in range(_TRIES):
        best = min(best, timer.timeit(1))
        if time.perf_counter() > end:
            break
    return best


def _is_exact(way: Way) -> bool:
    rows = torch.full((32, 96), float(_LARGEST))
    whole = torch.full((32, 96), float(way.largest))
    whole[::2] *= -1
    try:
        made = way.scaled(whole, torch.full((32,), 0.5))(rows)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return made.dtype == torch.float32 and torch.equal(made, rows @ whole.T / 2)

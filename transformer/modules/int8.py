"""Matrix products in 8-bit integers, for inference on a CPU.

Each row of x and each row of W is rounded to whole numbers from -127 to 127, its largest magnitude being 127;
products and sums of those are exact integers, which the two rows' scales make numbers again. A row's result
depends on no other row. Source: Dettmers et al. 2022, arXiv 2208.07339, section 2.1 (vector-wise scales).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_LARGEST = 127
_TERMS = (2**31 - 1) // _LARGEST**2  # of a sum that fits into 32 bits whatever the numbers: 133,144
_EXACT = 2**24 // _LARGEST**2  # of a sum that float32 holds exactly, in any order: 1,040


def int8_product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Of W (out, in) and b (out), as they are now: X (..., in) -> X W^T + b (..., out) in float32.

    Not finite where a row of x is not. A row of x may be as large as float32 goes: infinite are numbers that
    float32 does not hold, and perhaps those of a row of W with magnitudes above 1e31, as its scale is
    multiplied by first.
    """
    whole, of_columns = rounded(weight.detach())
    outputs = len(whole)
    bias = None if bias is None else bias.detach().clone()
    scaled = scaled_product(whole, of_columns.squeeze(1))

    def product(x: Tensor) -> Tensor:
        rows, of_rows = rounded(x.reshape(-1, x.shape[-1]))
        made = scaled(rows)
        if bias is None:
            made *= of_rows
        else:
            torch.addcmul(bias, made, of_rows, out=made)
        return made.view(*x.shape[:-1], outputs)

    return product


def scaled_product(whole: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """Whole numbers (R, K) -> float32 (R, N): products with W (N, K), times the scales (N,) of its rows.

    Both may be int8 or float32. Sums are exact: by the processor's products of 8-bit integers where torch has
    them, else in float32, at its speed.
    """
    suited = has_scaling() and whole.shape[1] <= _TERMS
    return (_by_onednn if suited else _by_float32)(whole, scales)


def _by_onednn(whole: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """One pass makes the sums and scales them; W is ordered for the kernel once."""
    packed = torch.ops.onednn.qlinear_prepack(whole.to(torch.int8), None)
    settings = packed, scales, torch.zeros(len(whole), dtype=torch.int32), None, 1.0, 0, torch.float32
    return lambda rows: torch.ops.onednn.qlinear_pointwise(
        rows.to(torch.int8), 1.0, 0, *settings, "none", [], ""
    )


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


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """X (R, N) -> whole numbers (R, N) in its format and the scales (R, 1) that they are to be multiplied by.

    No scale is below the smallest normal number: of rows below 1.5e-36 the largest magnitude is not 127.
    """
    tiny = torch.finfo(torch.float32).tiny
    scales = x.abs().amax(-1, keepdim=True).clamp_min_(tiny * _LARGEST).div_(_LARGEST)
    return (x * scales.reciprocal()).round_(), scales


@cache
def has_scaling() -> bool:
    """Has this torch exact products of 8-bit integers here, which scale their sums?

    Asked by the largest numbers there are: with AVX2 sums of two products are cut at 16 bits.
    """
    ones = torch.full((32, 96), float(_LARGEST))
    try:
        made = _by_onednn(-ones, torch.full((32,), 0.5))(ones)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return made.dtype == torch.float32 and bool((made == -96 * _LARGEST**2 / 2).all())

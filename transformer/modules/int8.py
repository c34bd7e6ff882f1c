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


def int8_product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Of W (out, in) and b (out), as they are now: X (..., in) -> X W^T + b (..., out) in float32.

    Not finite where a row of x is not. A row of x may be as large as float32 goes: infinite are numbers that
    float32 does not hold, and perhaps those of a row of W with magnitudes above 1e31, as its scale is
    multiplied by first.
    """
    whole, of_columns = rounded(weight.detach())
    outputs = len(whole)
    bias = None if bias is None else bias.detach().clone()
    scaled = (_by_onednn if has_scaling() and whole.shape[1] <= _TERMS else _by_torch)(
        whole, of_columns.squeeze(1)
    )

    def product(x: Tensor) -> Tensor:
        rows, of_rows = rounded(x.reshape(-1, x.shape[-1]))
        made = scaled(rows)
        if bias is None:
            made *= of_rows
        else:
            torch.addcmul(bias, made, of_rows, out=made)
        return made.view(*x.shape[:-1], outputs)

    return product


def _by_onednn(whole: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """Int8 (R, K) -> float32 (R, N), by int8 W (N, K), ordered for the kernel once, and its scales (N,).

    One pass makes the sums and scales them.
    """
    packed = torch.ops.onednn.qlinear_prepack(whole, None)
    settings = packed, scales, torch.zeros(len(whole), dtype=torch.int32), None, 1.0, 0, torch.float32
    return lambda rows: torch.ops.onednn.qlinear_pointwise(rows, 1.0, 0, *settings, "none", [], "")


def _by_torch(whole: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """The same where oneDNN has no such product."""
    return lambda rows: _sums(rows, whole.T).mul_(scales)


def _sums(rows: Tensor, columns: Tensor) -> Tensor:
    """Sums (R, N) in float32, rounded once, of int8 (R, K) and (K, N); 32 bits hold some of K at a time."""
    if rows.shape[1] <= _TERMS:
        return _whole_product(rows, columns).float()
    parts = zip(torch.split(rows, _TERMS, 1), torch.split(columns, _TERMS), strict=True)
    return torch.stack([_whole_product(*part) for part in parts]).sum(0).float()  # of int32: in int64


def _whole_product(rows: Tensor, columns: Tensor) -> Tensor:
    """Whole numbers (R, N) of int8 (R, K) and (K, N). torch's product is wrong on a CPU where K is 1."""
    return rows.int() * columns.int() if rows.shape[1] == 1 else torch._int_mm(rows, columns)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """X (R, N) -> int8 (R, N) and the scales (R, 1) that they are to be multiplied by.

    No scale is below the smallest normal number: of rows below 1.5e-36 the largest magnitude is not 127.
    """
    tiny = torch.finfo(torch.float32).tiny
    scales = x.abs().amax(-1, keepdim=True).clamp_min_(tiny * _LARGEST).div_(_LARGEST)
    return (x * scales.reciprocal()).round_().to(torch.int8), scales


@cache
def has_scaling() -> bool:
    """Has this torch oneDNN's product that scales its sums? Asked by the largest numbers there are."""
    ones = torch.full((32, 96), _LARGEST, dtype=torch.int8)
    try:
        made = _by_onednn(-ones, torch.full((32,), 0.5))(ones)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return made.dtype == torch.float32 and bool((made == -96 * _LARGEST**2 / 2).all())


@cache
def has_int8() -> bool:
    """Has this torch an exact product of 8-bit integers here? Asked by the largest numbers there are."""
    ones = torch.full((32, 96), _LARGEST, dtype=torch.int8)
    try:
        made = torch._int_mm(ones, -ones.T)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return bool((made == -96 * _LARGEST**2).all())

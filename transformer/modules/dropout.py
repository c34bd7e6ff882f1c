"""Dropout that does not cost more than the matrix products beside it.

On a CPU torch draws one double per element, which takes longer than the layer the mask is for.
16 random bits an element decide as well: p is rounded to k / 65536, and the scale is that of the
rounded p, so the expectation is exact. A p that this would round to 0 or to 1 is left to torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 1 << 16


class _Drop(torch.autograd.Function):
    """keep * x / (1 - p): the mask (one byte an element) is all that backward keeps.

    The mask is 0 and 1 in whole numbers, by clamping and subtracting: torch compares, and converts from bool,
    an element at a time on a CPU, which takes several times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
        bits = words.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
        least = levels - _LEVELS // 2  # the least that is kept
        keep = bits.clamp_(least - 1, least).sub_(least - 1)
        ctx.save_for_backward(keep.to(torch.uint8))
        ctx.scale = _LEVELS / (_LEVELS - levels)
        return keep.to(x.dtype).mul_(x).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return keep.to(gradient.dtype).mul_(gradient).mul_(ctx.scale), None


class Dropout(nn.Module):
    """Zero each element with probability p and scale the rest by 1 / (1 - p); identity in evaluation.

    Shapes: any -> same. Source: Srivastava et al. 2014, section 4 (inverted form).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        assert 0 <= p < 1
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        levels = round(self.p * _LEVELS)
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < levels < _LEVELS:
            return F.dropout(x, self.p)
        dropped: Tensor = _Drop.apply(x, levels)  # type: ignore[no-untyped-call]
        return dropped

    def extra_repr(self) -> str:
        return f"p={self.p}"

"""Dropout that does not cost more than the matrix products beside it.

On a CPU torch draws one double per element, which takes longer than the layer the mask is for. Here a random
byte decides with the probability k / 256 below p, and what p has more is dropped at random places: where the
places of Poisson's process with the mean -n log(1 - q) fall, each of n elements is hit with probability q,
independently of all others. So elements are dropped with probability p exactly, each by itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def kept(shape: torch.Size, p: float) -> Tensor:
    """1 with probability 1 - p, else 0, int8, on the CPU; 0 < p < 1.

    By clamping and subtracting: torch compares an element at a time on a CPU, which takes several times as
    long.
    """
    count, level = shape.numel(), int(p * 256)
    if level:
        words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.int8)[:count]  # from -128
        keep.clamp_(level - 129, level - 128).sub_(level - 129)
    else:
        keep = torch.ones(count, dtype=torch.int8)
    stay = (1 - p) / (1 - level / 256) - 1  # minus the probability that is left
    if stay < 0:
        hits = torch.poisson(torch.tensor(-count * math.log1p(stay), dtype=torch.float64))
        keep.index_fill_(0, torch.randint(max(count, 1), (int(hits),)), 0)
    return keep.view(shape)


class _Drop(torch.autograd.Function):
    """keep * x / (1 - p): the mask (one byte an element) is all that backward keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        keep = kept(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p)
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
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        dropped: Tensor = _Drop.apply(x, self.p)  # type: ignore[no-untyped-call]
        return dropped

    def extra_repr(self) -> str:
        return f"p={self.p}"

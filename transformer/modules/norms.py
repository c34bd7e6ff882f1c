"""Which norm: one class each, built as `Norm(dim, eps)` and read as its paper's equation.

Statistics are taken over the last dimension, the D numbers of one token, so padding and the future
cannot enter, and in float32 at least, also for half-precision input; the result has the input's type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.registry import Registry

NORMS: Registry[type[Norm]] = Registry("norm")
NormFactory = Callable[[], nn.Module]


class Norm(nn.Module):
    """y (..., D) of x (..., D), built as `Norm(dim, eps)`."""

    normalises: ClassVar[bool] = True  # False for a stand-in: it is not counted as a norm


def at_least_float32(x: Tensor) -> Tensor:
    """bf16 and half to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.half) else x


@NORMS.register(
    "layer",
    title="LayerNorm",
    equation="g * (x - mean(x)) / sqrt(var(x) + eps) + b",
    paper="Ba, Kiros, Hinton 2016, arXiv 1607.06450, eq. 4",
)
class LayerNorm(Norm):
    """y = g (x - mean) / sqrt(var + eps) + b, with the biased variance and eps inside the root.

    Shapes: (..., D) -> (..., D). Parameters: g (D) starts at 1, b (D) at 0.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.layer_norm(wide, weight.shape, weight, bias, self.eps).to(x.dtype)


@NORMS.register(
    "layer_simple",
    title="LayerNorm-simple",
    equation="(x - mean(x)) / sqrt(var(x) + eps)",
    paper="Xu et al. 2019, arXiv 1911.07013, section 3.1",
)
class LayerNormSimple(Norm):
    """y = (x - mean) / sqrt(var + eps): LayerNorm without gain and bias. Shapes: (..., D) -> (..., D)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(at_least_float32(x), (self.dim,), eps=self.eps).to(x.dtype)


@NORMS.register(
    "rms",
    title="RMSNorm",
    equation="g * x / sqrt(mean(x^2) + eps)",
    paper="Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4",
    note="eps stands inside the root, as in most later code; the authors' own releases differ.",
)
class RMSNorm(Norm):
    """y = g x / sqrt(mean(x^2) + eps). Shapes: (..., D) -> (..., D). Parameter: g (D) starts at 1."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        return F.rms_norm(wide, self.weight.shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)


@NORMS.register(
    "none",
    title="No norm",
    equation="x",
    note="The arm that shows what the norm is for; deep stacks may diverge.",
)
class NoNorm(Norm):
    """y = x."""

    normalises = False

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x

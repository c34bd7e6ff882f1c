"""Norms whose statistics are of one token: padding and the future cannot enter.

Each reads as its paper's equation. Those that differ in the backward pass are in gradient.py, functions
without statistics in pointwise.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.configuration import Count, Float
from ...core.signature import Doc
from ..folded import FoldedNorm
from .base import NORMS, Norm, at_least_float32


@NORMS.register(
    "layer",
    title="LayerNorm",
    equation="g * (x - mean(x)) / sqrt(var(x) + eps) + b",
    paper="Ba, Kiros, Hinton 2016, arXiv 1607.06450",
    note="The variance is biased and eps stands inside the root, as in torch.",
    peers="every toolkit that was looked at; in the Annotated Transformer and AdaNorm's release with an "
    "unbiased deviation plus eps",
    cost="mean and variance of each token; 2 D parameters",
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

    def folded(self) -> FoldedNorm:
        return FoldedNorm(True, self.weight, self.bias, self.eps)


@NORMS.register(
    "layer_simple",
    title="LayerNorm-simple",
    equation="(x - mean(x)) / sqrt(var(x) + eps)",
    paper="Xu et al. 2019, arXiv 1911.07013",
    peers="AdaNorm's release",
    cost="mean and variance of each token; no parameters",
)
class LayerNormSimple(Norm):
    """y = (x - mean) / sqrt(var + eps): LayerNorm without gain and bias. Shapes: (..., D) -> (..., D)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(at_least_float32(x), (self.dim,), eps=self.eps).to(x.dtype)

    def folded(self) -> FoldedNorm:
        return FoldedNorm(True, torch.ones(self.dim), torch.zeros(self.dim), self.eps)


@NORMS.register(
    "rms",
    title="RMSNorm",
    equation="g * x / sqrt(mean(x^2) + eps)",
    paper="Zhang and Sennrich 2019, arXiv 1910.07467",
    note="eps stands inside the root, as in most later code; the authors' own releases differ.",
    peers="Eole, OpenNMT-py, Marian, x-transformers, Hugging Face (T5)",
    cost="mean square of each token; D parameters",
)
class RMSNorm(Norm):
    """y = g x / sqrt(mean(x^2) + eps). Shapes: (..., D) -> (..., D). Parameter: g (D) starts at 1.

    LayerNorm of centred vectors. A shift of x is not taken away: only LayerNorm is blind to it.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        return F.rms_norm(wide, self.weight.shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)

    def folded(self) -> FoldedNorm:
        return FoldedNorm(False, self.weight, None, self.eps)


@NORMS.register(
    "prms",
    title="pRMSNorm",
    equation="g * x / sqrt(mean(x[:k]^2) + eps), k = ceil(p D)",
    paper="Zhang and Sennrich 2019, arXiv 1910.07467",
    note="Wants wide vectors: a mean square of few channels is noise, and their outputs are not bounded.",
    cost="mean square of the first p D channels of each token; D parameters",
)
class PartialRMSNorm(Norm):
    """y = g x / sqrt(mean(x_1^2 ... x_k^2) + eps), k = ceil(p D): RMSNorm by its first channels.

    ::

                    channels
        a token     a a . . . . . .     the mean square is of the a; all are divided by its root
        the next    b b . . . . . .

    Shapes: (..., D) -> (..., D). Parameter: g (D) starts at 1. Source: Zhang and Sennrich 2019, with
    p = 6.25 %. All channels are divided, those that were not asked too.
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        *,
        p: Annotated[
            Float, Field(gt=0, le=1), Doc("share of the channels whose mean square is taken")
        ] = 0.0625,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.asked = math.ceil(round(p * dim, 9))  # 0.07 * 100 is a little more than 7
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        mean_square = wide[..., : self.asked].square().mean(-1, keepdim=True)
        return (self.weight * wide / (mean_square + self.eps).sqrt()).to(x.dtype)

    def folded(self) -> FoldedNorm | None:
        return FoldedNorm(False, self.weight, None, self.eps) if self.asked == len(self.weight) else None


@NORMS.register(
    "scale",
    title="ScaleNorm",
    equation="g * x / max(||x||, eps)",
    paper="Nguyen and Salazar 2019, arXiv 1910.05895",
    note="eps is the least norm here, not added to a mean square.",
    peers="x-transformers, transformers_without_tears",
    cost="norm of each token; 1 parameter",
)
class ScaleNorm(Norm):
    """y = g x / max(||x||, eps): onto a sphere of learned radius.

    Shapes: (..., D) -> (..., D). Parameter: one scalar g, starting at sqrt(D): outputs of unit mean square.
    From 1, which is often met, they would be sqrt(D) times too small. RMSNorm with every gain g / sqrt(D) is
    the same function. Below eps the divisor is a constant, so x = 0 has a finite gradient.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.tensor(math.sqrt(dim)))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * F.normalize(at_least_float32(x), dim=-1, eps=self.eps)).to(x.dtype)

    def folded(self) -> FoldedNorm:
        """With root mean square ||x|| / sqrt(D); `eps` only bounds vectors shorter than itself."""
        return FoldedNorm(False, (self.weight / math.sqrt(self.dim)).expand(self.dim), None, None)


@NORMS.register(
    "group",
    title="GroupNorm of each token",
    equation="g * (x_G - mean(x_G)) / sqrt(var(x_G) + eps) + b, for each group of channels x_G",
    paper="Wu and He 2018, arXiv 1803.08494",
    note="Over one token: nn.GroupNorm on (B, C, T) takes the sentence, with its padding and the future.",
    peers="a file in the PowerNorm authors' fork of fairseq, which its flags do not offer",
    cost="mean and variance of each group of each token; 2 D parameters",
)
class GroupNorm(Norm):
    """y = g (x - mean_G) / sqrt(var_G + eps) + b: LayerNorm within each of G groups of D/G channels.

    ::

                    channels
        a token     a a b b c c d d     equal letters share a mean and a variance: 4 groups
        the next    e e f f g g h h

    Shapes: (..., D) -> (..., D). Parameters: g (D) starts at 1, b (D) at 0. One group is LayerNorm.
    """

    width_option = "groups"

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        *,
        groups: Annotated[Count, Doc("groups of neighbouring channels; the width is a multiple")] = 4,
    ) -> None:
        super().__init__()
        if reason := self.check(dim, groups=groups):
            raise ValueError(reason)
        self.groups, self.width, self.eps = groups, dim // groups, eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    @classmethod
    def check(cls, dim: int, **options: Any) -> str | None:
        groups = options["groups"]
        if dim % groups:
            return f"{groups} groups do not divide the width {dim}"
        return "a group of one channel is always 0" if dim == groups else None

    def forward(self, x: Tensor) -> Tensor:
        parts = at_least_float32(x).reshape(*x.shape[:-1], self.groups, self.width)
        return (self.weight * F.layer_norm(parts, (self.width,), eps=self.eps).flatten(-2) + self.bias).to(
            x.dtype
        )

    def folded(self) -> FoldedNorm | None:
        return FoldedNorm(True, self.weight, self.bias, self.eps) if self.groups == 1 else None

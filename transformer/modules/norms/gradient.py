"""LayerNorm-simple with a changed backward pass: what its derivatives are for."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.configuration import NonNegative, Positive
from ...core.signature import Doc
from ..folded import FoldedNorm
from .base import NORMS, Norm, at_least_float32


@NORMS.register(
    "detach",
    title="DetachNorm",
    equation="(x - sg(mean(x))) / sg(sqrt(var(x) + eps)), sg: no gradient",
    paper="Xu et al. 2019, arXiv 1911.07013",
    note="Values of LayerNorm-simple. An arm to learn from; without the derivatives deep stacks may diverge.",
    peers="AdaNorm's release",
    cost="mean and variance of each token; no parameters",
)
class DetachNorm(Norm):
    """y = (x - sg(mean)) / sg(sigma), sigma = sqrt(var + eps) biased; sg(.) carries no gradient.

    Forward as LayerNorm-simple, backward dL/dx = g / sigma with g = dL/dy. What is missing there, mean(g)
    and y mean(g y), re-centres the gradient (through the mean) and shrinks it (through the deviation);
    `detach` takes away one of the two alone. Shapes: (..., D) -> (..., D). No parameters.
    Source: Xu et al. 2019. Closed forms hold for the biased deviation only.
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        *,
        detach: Annotated[
            Literal["both", "mean", "deviation"], Doc("statistic that carries no gradient")
        ] = "both",
    ) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.detach_mean, self.detach_deviation = detach != "deviation", detach != "mean"

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        mean = wide.mean(-1, keepdim=True)
        deviation = (wide.var(-1, correction=0, keepdim=True) + self.eps).sqrt()
        mean = mean.detach() if self.detach_mean else mean
        deviation = deviation.detach() if self.detach_deviation else deviation
        return ((wide - mean) / deviation).to(x.dtype)

    def folded(self) -> FoldedNorm:
        """What carries no gradient has its value."""
        return FoldedNorm(True, torch.ones(self.dim), torch.zeros(self.dim), self.eps)


@NORMS.register(
    "ada",
    title="AdaNorm",
    equation="sg(C (1 - k y)) * y, y = (x - mean(x)) / sqrt(var(x) + eps), sg: no gradient",
    paper="Xu et al. 2019, arXiv 1911.07013",
    note="The authors' release is another function, with the unbiased deviation and eps outside the root, "
    "and its flag reaches only the two norms at the top: its runs compare with none of ours.",
    peers="AdaNorm's release",
    cost="mean and variance of each token; no parameters",
)
class AdaNorm(Norm):
    """z = sg(C (1 - k y)) y, y = (x - mean) / sqrt(var + eps); to the gradient the factor is a constant.

    So dL/dx is LayerNorm-simple's for the gradient C (1 - k y) dL/dz. The factor has mean C over a token and
    z has mean -k C: large positive y are held back. Shapes: (..., D) -> (..., D). No parameters.

    k = 1/10 is the authors'. They leave C to the user; their release has 2 as the code's default and in a
    script, and 1 in the README's command. Here it is 1, which keeps LayerNorm's scale: an arm that differs
    from `layer_simple` in one thing, and logits that begin with unit variance. Source: Xu et al. 2019.
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        *,
        C: Annotated[Positive, Doc("scale of the factor; the authors have used 1 and 2")] = 1.0,
        k: Annotated[NonNegative, Doc("how much a large value is held back")] = 0.1,
    ) -> None:
        super().__init__()
        self.dim, self.eps, self.C, self.k = dim, eps, C, k

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(at_least_float32(x), (self.dim,), eps=self.eps)
        return ((self.C * (1 - self.k * y)).detach() * y).to(x.dtype)

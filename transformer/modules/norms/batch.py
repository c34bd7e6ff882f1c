"""BatchNorm over all real tokens of a batch, and the sums over ranks that batch statistics need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor, nn

from ...core.configuration import Probability
from ...core.signature import Doc
from .base import NORMS, TokensNorm

Add: TypeAlias = Callable[[Tensor], Tensor]  # x -> the sum of x over all ranks, a new tensor

_adds: list[Add] = []  # of the innermost `added_over_ranks`, last


@contextmanager
def added_over_ranks(add: Add) -> Iterator[None]:
    """A context in which batch statistics, forward and backward, are of the batch of all ranks.

    It is for a training run's own passes: whatever else runs a model sees its own batch only.
    """
    _adds.append(add)
    try:
        yield
    finally:
        _adds.pop()


class _OverRanks(torch.autograd.Function):
    """The sum over ranks; what a rank puts in moves every rank's loss, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, add: Add) -> Tensor:
        ctx.add = add
        return add(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.add(gradient), None


def over_ranks(x: Tensor) -> Tensor:
    """The sum of x over all ranks of a distributed run, differentiable; else x itself."""
    if not _adds:
        return x
    total: Tensor = _OverRanks.apply(x, _adds[-1])  # type: ignore[no-untyped-call]
    return total


def token_mean(x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D) of x (B, L, D), zero at padding, over the real tokens of all ranks, and their number n ().

    Sums are added over ranks, not means: ranks have different numbers of tokens.
    """
    sums = over_ranks(torch.cat([x.sum((0, 1)), real.sum()[None]]))
    return sums[:-1] / sums[-1].clamp(min=1), sums[-1]


@NORMS.register(
    "batch",
    title="BatchNorm",
    equation="g * (x - mean_bt(x)) / sqrt(var_bt(x) + eps) + b, over a batch's tokens",
    paper="Ioffe and Szegedy 2015, arXiv 1502.03167",
    note="Encoder only. Running statistics in evaluation. With gradient accumulation the statistics are of "
    "each micro-batch.",
    cross_attention="ours, as a norm of images in an encoder; no decoder",
    peers="the PowerNorm authors' fork of fairseq",
    cost="mean and variance over the batch, two small sums over ranks; a multiply and an add in evaluation",
)
class BatchNorm(TokensNorm):
    """y = g (x - mean) / sqrt(var + eps) + b over the n real tokens of the batch (of all ranks).

    The biased variance norms; n / (n - 1) of it goes into the running one. In evaluation, and where a batch
    has one token or none, the running statistics norm, and stay as they are.

    Shapes: (B, L, D) -> (B, L, D). Parameters: g (D) starts at 1, b (D) at 0. Buffers: running mean (D), from
    0, and variance (D), from 1: running <- (1 - momentum) running + momentum batch.
    The usual mistakes: statistics that count padding, or mean the ranks' means; batch statistics in a beam
    search, whose rows are copies of each other.
    """

    span = "batch"
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        *,
        momentum: Annotated[Probability, Doc("share of the batch in the running statistics")] = 0.1,
    ) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide, real = self.weighed(x)
        mean, variance = self.running_mean.to(wide.dtype), self.running_var.to(wide.dtype)
        if self.training:
            mean, variance = self._of_batch(wide, real)
        normed = (wide - mean) / (variance + self.eps).sqrt()
        return ((self.weight.to(wide.dtype) * normed + self.bias.to(wide.dtype)) * real).to(x.dtype)

    def _of_batch(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the batch where it has any, which the running ones follow."""
        # The mean first, then the squares around it: mean(x^2) - mean(x)^2 loses small variances.
        mean, count = token_mean(x, real)
        variance, _ = token_mean(((x - mean) * real).square(), real)
        enough = count > 1
        with torch.no_grad():
            share = self.momentum * enough.to(count.dtype)
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean += share * (mean - self.running_mean)
            self.running_var += share * (unbiased - self.running_var)
        mean = torch.where(enough, mean, self.running_mean.to(x.dtype))
        return mean, torch.where(enough, variance, self.running_var.to(x.dtype))

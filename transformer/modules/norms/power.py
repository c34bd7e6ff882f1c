"""PowerNorm: batch normalisation by a running second moment, with a backward of its own."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ...core.configuration import Count, CountOrZero, Probability
from ...core.signature import Doc
from .base import NORMS, TokensNorm
from .batch import over_ranks, token_mean


@torch.library.custom_op("prepost_transformer::running_quotient", mutates_args=())
def _quotient(x: Tensor, psi: Tensor, nu: Tensor, gamma: Tensor, count: Tensor, rate: float) -> Tensor:
    """z^ = z / psi of z = x, with the approximate gradient: g~ / psi, g~ = g' - nu z^ for g' = dL/dz^.

    psi follows other batches, so what the quotient rule would take off g' is not known: nu, a running mean
    of g' z^, stands for it. Backward moves nu, in place, once its old value is used. An operator of its own
    and not an autograd function: torch.compile takes it as it is, and never looks into this backward.
    """
    return x / psi


@_quotient.register_fake
def _(x: Tensor, psi: Tensor, nu: Tensor, gamma: Tensor, count: Tensor, rate: float) -> Tensor:
    return torch.empty_like(x)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, psi, ctx.nu, gamma, count, ctx.rate = inputs  # nu is not saved: another backward may move it first
    ctx.save_for_backward(output, psi, gamma, count)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    normed, psi, gamma, count = ctx.saved_tensors
    nu = ctx.nu
    result = (gradient - nu.to(psi.dtype) * normed) / psi
    with torch.no_grad():
        lambda_ = over_ranks((gradient * normed).sum((0, 1))) / count.clamp(min=1)
        nu += ctx.rate * (lambda_ - nu * gamma)
    return result, None, None, None, None, None


_quotient.register_autograd(_gradient, setup_context=_remember)


@NORMS.register(
    "power",
    title="PowerNorm",
    equation="g * z / psi + b, z = x / rms(x) in each group, psi^2 a running mean of z^2 over batches",
    paper="Shen et al. 2020, arXiv 2003.07845",
    note="Encoder only, as the authors use it; their groups are the heads, ours by default one group. Its "
    "gradient is the authors' approximation, not the derivative. The backward equations are the paper's "
    "as we know them: its text was not at hand, and the release differs from them. With gradient "
    "accumulation each micro-batch moves the running values.",
    cross_attention="as the authors do: in the encoder; their decoders keep LayerNorm",
    peers="the authors' fork of fairseq",
    cost="one mean forward and one backward over the batch, a sum over ranks in each",
)
class PowerNorm(TokensNorm):
    """y = g z / psi + b for each channel; z is x with each token's groups of channels at a mean square of 1.

    Over the n real tokens of the batch (of all ranks), psi_B^2 = mean(z^2). The first `warmup` batches are
    divided by psi_B, later ones by the running psi as the batches before have left it (eps stands inside the
    root, psi = sqrt(psi^2 + eps)), and each then moves it:

        psi^2 <- a psi^2 + (1 - a) psi_B^2.

    Backward, for g' = g dL/dy and z^ = z / psi (also during warm-up):

        dL/dz = (g' - nu z^) / psi,
        nu    <- nu (1 - (1 - a) Gamma) + (1 - a) Lambda,   Gamma = mean(z^ z^), Lambda = mean(g' z^),

    and from z to x the derivative of the scaling.

    Shapes: (B, L, D) -> (B, L, D). Parameters: g (D) starts at 1, b (D) at 0. Buffers: psi2 (D) from 1, nu
    (D) from 0, the number of batches seen. `a` is `decay`. In evaluation psi is the running one; a batch
    without tokens changes nothing.

    The authors' release keeps nu divided by 1 - a, divides by psi_B in backward also where forward has
    divided by psi, and takes a plain average of psi_B^2 during warm-up; here it is as above.
    The usual mistake: nu has the size of the loss's gradient, so a loss scale that changes puts it wrong.
    """

    span = "batch"
    width_option = "groups"
    psi2: Tensor
    nu: Tensor
    batches: Tensor

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        *,
        groups: Annotated[Count, Doc("channel groups that are scaled by themselves; the heads' number")] = 1,
        warmup: Annotated[CountOrZero, Doc("batches divided by their own second moment")] = 1000,
        decay: Annotated[Probability, Doc("a: share of the past in psi^2 and in nu")] = 0.9,
    ) -> None:
        super().__init__()
        if reason := self.check(dim, groups=groups):
            raise ValueError(reason)
        self.eps, self.groups, self.warmup, self.decay = eps, groups, warmup, decay
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("psi2", torch.ones(dim))
        self.register_buffer("nu", torch.zeros(dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @classmethod
    def check(cls, dim: int, **options: Any) -> str | None:
        groups = options["groups"]
        if dim % groups:
            return f"{groups} groups do not divide the width {dim}"
        return "of a group of one channel only the sign is left" if dim == groups else None

    def forward(self, x: Tensor) -> Tensor:
        wide, real = self.weighed(x)
        scaled = self._group_scaled(wide)
        normed = (
            self._of_batch(scaled, real) if self.training else scaled / self._psi(self.psi2.to(wide.dtype))
        )
        return ((self.weight.to(wide.dtype) * normed + self.bias.to(wide.dtype)) * real).to(x.dtype)

    def _group_scaled(self, x: Tensor) -> Tensor:
        """Divide each group of a token's channels by sqrt(mean(x^2) + eps)."""
        grouped = x.view(*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
        return (grouped / (grouped.square().mean(-1, keepdim=True) + self.eps).sqrt()).flatten(-2)

    def _psi(self, square: Tensor) -> Tensor:
        return (square + self.eps).sqrt()

    def _of_batch(self, x: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            square, count = token_mean(x.square(), real)
            used = torch.where(self.batches < self.warmup, square, self.psi2.to(square.dtype))
            share = (1 - self.decay) * (count > 0).to(count.dtype)
            self.psi2 += share * (square - self.psi2)
            self.batches += count > 0
            psi = self._psi(used)
            gamma = square / psi.square()  # mean(x^ x^)
        return _quotient(x, psi, self.nu, gamma, count, 1 - self.decay)  # type: ignore[no-any-return]

"""The position-wise feed-forward sublayer and its activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.registry import Registry
from .branch import Gains, Inner
from .dropout import Dropout
from .norms import NormFactory
from .products import Linear


class Activation:
    """`build(F)` makes the function of a hidden layer F wide; `gated` ones take two projections of x."""

    def __init__(self, build: Callable[[int], Callable[..., Tensor]], gated: bool = False) -> None:
        self.build, self.gated = build, gated


class ThresholdedLinearUnit(nn.Module):
    """max(h, tau): ReLU with a learned floor for each channel.

    Shapes: (..., F) -> (..., F). Parameter: tau (F) starts at 0, where it is ReLU.
    Source: Singh and Krishnan 2020.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.maximum(hidden, self.threshold.to(hidden.dtype))


def swiglu(hidden: Tensor, gate: Tensor) -> Tensor:
    """silu(gate) * hidden."""
    return F.silu(gate) * hidden


ACTIVATIONS: Registry[Activation] = Registry("activation")
ACTIVATIONS.register("relu", title="ReLU", equation="max(0, h)", paper="Vaswani et al. 2017, eq. 2")(
    Activation(lambda width: F.relu)
)
ACTIVATIONS.register(
    "gelu", title="GELU", equation="h Phi(h)", paper="Hendrycks and Gimpel 2016, arXiv 1606.08415"
)(Activation(lambda width: F.gelu))
ACTIVATIONS.register(
    "swiglu",
    title="SwiGLU",
    equation="silu(g) * h, with g = x W_g",
    paper="Shazeer 2020, arXiv 2002.05202, eq. 6",
    note="A third matrix of d_model x d_ff; for an equal parameter count take two thirds of d_ff.",
)(Activation(lambda width: swiglu, gated=True))
ACTIVATIONS.register(
    "tlu",
    title="TLU",
    equation="max(h, tau), tau learned for each channel",
    paper="Singh and Krishnan 2020, arXiv 1911.09737",
    note="Made for Filter Response Normalization, which does not centre: the floor need not be 0.",
)(Activation(ThresholdedLinearUnit))


class FeedForward(nn.Module):
    """act(x W1 + b1) W2 + b2, or with a gate (act(x Wg + bg) * (x W1 + b1)) W2 + b2.

    Shapes: (B, L, D) -> (B, L, D) through (B, L, F). Source: Vaswani et al. 2017, eq. 2.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        dropout: float = 0.0,
        *,
        inner: Inner | None = None,
        make_norm: NormFactory | None = None,
    ) -> None:
        super().__init__()
        inner = inner or Inner()
        chosen = ACTIVATIONS[activation]
        self.hidden = Linear(d_model, d_ff, bias=inner.bias)
        self.gate = Linear(d_model, d_ff, bias=inner.bias) if chosen.gated else None
        self.activation = chosen.build(d_ff)
        self.inner_norm = make_norm(d_ff) if make_norm and inner.norm else None
        self.dropout = Dropout(dropout)
        self.output = Linear(d_ff, d_model, bias=inner.bias)
        self.shift = nn.Parameter(torch.zeros(2)) if inner.shift else None  # before and after the activation

    def initial_gains(self, gains: Gains) -> list[tuple[nn.Linear, float]]:
        """Each matrix with its gain."""
        gate = [] if self.gate is None else [(self.gate, gains.gate)]
        return [(self.hidden, gains.beta), *gate, (self.output, gains.last)]

    def forward(self, x: Tensor) -> Tensor:
        inputs = [self.hidden(x)] if self.gate is None else [self.hidden(x), self.gate(x)]
        if self.shift is not None:
            inputs = [each + self.shift[0].to(each.dtype) for each in inputs]
        hidden = self.activation(*inputs)
        hidden = hidden if self.inner_norm is None else self.inner_norm(hidden)
        hidden = hidden if self.shift is None else hidden + self.shift[1].to(hidden.dtype)
        return self.output(self.dropout(hidden)).to(x.dtype)  # type: ignore[no-any-return]

"""The position-wise feed-forward sublayer and its activations."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from ..core.registry import Registry
from .dropout import Dropout


class Activation:
    """A function of the hidden layer; `gated` ones take two projections of the input."""

    def __init__(self, function: Callable[..., Tensor], gated: bool = False) -> None:
        self.function, self.gated = function, gated


def swiglu(hidden: Tensor, gate: Tensor) -> Tensor:
    """silu(gate) * hidden."""
    return F.silu(gate) * hidden


ACTIVATIONS: Registry[Activation] = Registry("activation")
ACTIVATIONS.register("relu", title="ReLU", equation="max(0, h)", paper="Vaswani et al. 2017, eq. 2")(
    Activation(F.relu)
)
ACTIVATIONS.register(
    "gelu", title="GELU", equation="h Phi(h)", paper="Hendrycks and Gimpel 2016, arXiv 1606.08415"
)(Activation(F.gelu))
ACTIVATIONS.register(
    "swiglu",
    title="SwiGLU",
    equation="silu(g) * h, with g = x W_g",
    paper="Shazeer 2020, arXiv 2002.05202, eq. 6",
    note="A third matrix of d_model x d_ff; for an equal parameter count take two thirds of d_ff.",
)(Activation(swiglu, gated=True))


class FeedForward(nn.Module):
    """act(x W1 + b1) W2 + b2, or with a gate (act(x Wg + bg) * (x W1 + b1)) W2 + b2.

    Shapes: (B, L, D) -> (B, L, D) through (B, L, F). Source: Vaswani et al. 2017, eq. 2.
    """

    def __init__(self, d_model: int, d_ff: int, activation: str = "relu", dropout: float = 0.0) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.hidden = nn.Linear(d_model, d_ff)
        self.gate = nn.Linear(d_model, d_ff) if self.activation.gated else None
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(d_ff, d_model)

    def value_path(self) -> list[nn.Linear]:
        """The matrices between the branch's input and output that a placement's beta scales."""
        return [self.hidden, self.output]

    def forward(self, x: Tensor) -> Tensor:
        inputs = (self.hidden(x),) if self.gate is None else (self.hidden(x), self.gate(x))
        return self.output(self.dropout(self.activation.function(*inputs))).to(x.dtype)  # type: ignore[no-any-return]

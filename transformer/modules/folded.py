"""What remains of a site or a norm once its factors are folded into the matrices and gains around it.

An engine that serves models knows few wirings. A placement says by `folded` which of them it is, and a norm
whether it is LayerNorm or RMSNorm: next to the equations, where it can be read off.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor, nn


class Wiring(Enum):
    """The equations that are served."""

    POST = "LN(x + f(x))"
    PRE = "x + f(LN(x))"
    SANDWICH = "x + LN2(f(LN1(x)))"


@dataclass(frozen=True)
class Folded:
    """A site on a stream of one tensor, with what there is to fold: numbers, or vectors (D).

    ::

        POST       LN(residual * x + output * f(x))
        PRE        x + output * f(input * LN(x))
        SANDWICH   x + LN2(f(LN1(x)))

    `norms` in the order in which they are executed. A factor that is not drawn is 1.
    """

    wiring: Wiring
    norms: tuple[nn.Module, ...]
    residual: Tensor | float = 1.0
    input: Tensor | float = 1.0
    output: Tensor | float = 1.0


@dataclass(frozen=True)
class FoldedNorm:
    """gain * (x - mean) / sqrt(var + eps) + bias where `centred`, else gain * x / sqrt(mean(x^2) + eps).

    gain (D), bias (D) or None. `eps` None: the formula has none, and any small number will do.
    """

    centred: bool
    gain: Tensor
    bias: Tensor | None
    eps: float | None

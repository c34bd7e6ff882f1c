"""Where the norm sits, and what is added to what.

One `Placement` wraps one sublayer (the *branch*) of one layer; its `forward` is the paper's equation.
The *stream* is what flows up a stack: usually one tensor x (B, T, D), sometimes a tuple of them.

        open          site 0          site 1                close
    x ---------> s -----[f]-----> s -----[f]-----> ... s ----------> y

The branch is a function of the stream alone. Memory, masks and caches are in its closure, where no
placement can touch them: cross-attention's memory is normed exactly when the encoder's `close` does it.

To add a placement, write its class here with the decorator and its oracle in tests/placements/oracles.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, final

from torch import Tensor, nn

from ..core.registry import Registry
from .dropout import Dropout
from .norms import NormFactory

PLACEMENTS: Registry[type[Placement]] = Registry("placement")

# A tensor (B, T, D) or a tuple of them: each placement says which by its own signature.
Stream: TypeAlias = Any
Branch: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """Where a residual connection sits: decoder, layer 3 of 6, slot 1 of 3 (layer and slot count from 0)."""

    stack: Literal["encoder", "decoder"]
    layer: int
    slot: int
    slots: int
    encoder_layers: int
    decoder_layers: int


@dataclass(frozen=True)
class Gains:
    """`alpha` scales the residual; `beta` the initial weights on the branch's value path."""

    alpha: float = 1.0
    beta: float = 1.0


class Placement(nn.Module, ABC):
    """One residual connection: stream, branch -> stream.

    A concrete placement is final. It states which norms each site owns (`norms`, attribute names),
    whether the stack ends in one more (`final_norm`), how an embedding becomes a stream (`open`), how a
    stream becomes the stack's output (`close`; `norm` is the identity without `final_norm`) and its
    gains (`gains_at`). Depth-dependent factors are computed once, here: `forward` reads no layer index.
    """

    norms: ClassVar[tuple[str, ...]] = ("norm",)
    final_norm: ClassVar[bool] = False
    closing: ClassVar[str] = "x"  # the stack's output as an equation; {LN} stands for the final norm
    norm: nn.Module

    def __init__(self, site: Site, make_norm: NormFactory, dropout: float) -> None:
        super().__init__()
        for name in self.norms:
            self.add_module(name, make_norm())
        self.dropout = Dropout(dropout)
        self.site = site
        self.gains = self.gains_at(site)
        self.alpha = self.gains.alpha

    @staticmethod
    def open(x: Tensor) -> Stream:
        return x

    @staticmethod
    def close(stream: Stream, norm: nn.Module) -> Tensor:
        closed: Tensor = norm(stream)
        return closed

    @staticmethod
    def gains_at(site: Site) -> Gains:
        return Gains()

    @abstractmethod
    def forward(self, stream: Stream, branch: Branch) -> Stream: ...


@PLACEMENTS.register(
    "post",
    title="Post-LN",
    equation="LN(x + f(x))",
    paper="Vaswani et al. 2017, arXiv 1706.03762, section 3.1",
)
@final
class PostLN(Placement):
    """LN(x + f(x)).

    ::

        x --+--[ f ]--(+)--[LN]-->
            '----------^

    The residual is the normed value, and the stack ends as its last site does: no further norm.
    """

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.norm(x + self.dropout(branch(x)))  # type: ignore[no-any-return]


@PLACEMENTS.register(
    "pre", title="Pre-LN", equation="x + f(LN(x))", paper="Xiong et al. 2020, arXiv 2002.04745, table 1"
)
@final
class PreLN(Placement):
    """x + f(LN(x)), and one norm at the top of the stack.

    ::

        x --+--[LN]--[ f ]--(+)-->     ...     --[LN]--> at the top
            '----------------^

    Cross-attention norms its query only: the memory left the encoder through the encoder's final norm.
    """

    final_norm = True
    closing = "LN(x)"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.dropout(branch(self.norm(x)))  # type: ignore[no-any-return]


@PLACEMENTS.register(
    "deepnorm",
    title="DeepNorm",
    equation="LN(alpha x + f(x))",
    paper="Wang et al. 2022, arXiv 2203.00555, section 3",
    note="alpha and beta depend on both depths; beta scales value, output and feed-forward weights.",
)
@final
class DeepNorm(Placement):
    """LN(alpha x + f(x)), the branch's weights starting beta times smaller.

    ::

        x --+--[ f ]------(+)--[LN]-->
            '--[* alpha]---^

    With N encoder and M decoder layers: encoder alpha = 0.81 (N^4 M)^(1/16), beta = 0.87 (N^4 M)^(-1/16);
    decoder alpha = (3M)^(1/4), beta = (12M)^(-1/4).
    """

    @staticmethod
    def gains_at(site: Site) -> Gains:
        n, m = site.encoder_layers, site.decoder_layers
        if site.stack == "encoder":
            return Gains(alpha=0.81 * (n**4 * m) ** (1 / 16), beta=0.87 * (n**4 * m) ** (-1 / 16))
        return Gains(alpha=(3 * m) ** (1 / 4), beta=(12 * m) ** (-1 / 4))

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.norm(self.alpha * x + self.dropout(branch(x)))  # type: ignore[no-any-return]


@PLACEMENTS.register(
    "resi_dual",
    title="ResiDual",
    equation="x: LN(x + f(x));  d: d + f(x)",
    paper="Xie et al. 2023, arXiv 2304.14802, section 3",
    note="Encoder and decoder each carry a dual stream of their own.",
)
@final
class ResiDual(Placement):
    """Two streams: x is Post-LN, d sums the branches untouched and is normed once, at the top.

    ::

        d ------------(+)------------->  ...  --[LN]--(+)-->
                       |                               |
        x --+--[ f ]---+---(+)--[LN]-->  ...  ---------'
            '---------------^
    """

    final_norm = True
    closing = "x + LN(d)"

    @staticmethod
    def open(x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    @staticmethod
    def close(stream: tuple[Tensor, Tensor], norm: nn.Module) -> Tensor:
        x, dual = stream
        return x + norm(dual)  # type: ignore[no-any-return]

    def forward(self, stream: tuple[Tensor, Tensor], branch: Branch) -> tuple[Tensor, Tensor]:
        x, dual = stream
        update = self.dropout(branch(x))
        return self.norm(x + update), dual + update

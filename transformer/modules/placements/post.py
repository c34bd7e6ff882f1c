"""The norm after the addition: the stream passes through it, and keeps its scale."""

from __future__ import annotations

from typing import Annotated, final

from pydantic import Field
from torch import Tensor, nn

from ...core.configuration import Count
from ...core.signature import Doc
from ..branch import Gains
from ..folded import Folded, Wiring
from ..norms import NormFactory
from .base import PLACEMENTS, Branch, Placement, Site


@PLACEMENTS.register(
    "post",
    title="Post-LN",
    equation="LN(x + f(x))",
    paper="Vaswani et al. 2017, arXiv 1706.03762",
    cross_attention="as the authors do",
    peers="JoeyNMT, fairseq (default), Eole (encoder), Sockeye, Marian (default), x-transformers, "
    "Hugging Face (by model class), torch.nn.Transformer (default), Tensor2Tensor; torchscale; "
    "transformers_without_tears",
    cost="one norm a sublayer",
)
@final
class PostLN(Placement):
    """LN(x + f(x)).

    ::

        x --+--[ f ]--(+)--[LN]-->
            '----------^

    Initial gains: all 1. Cross-attention reads the memory as the encoder's last norm left it.

    What people get wrong: the residual is the normed value, not the sum before the norm; and a further norm
    at the top (torch.nn.Transformer has one) would norm twice.
    """

    needs_rescaling = True

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.norm(x + self.dropout(branch(x)))  # type: ignore[no-any-return]

    def folded(self) -> Folded:
        return Folded(Wiring.POST, (self.norm,))


@PLACEMENTS.register(
    "b2t",
    title="B2T connection",
    equation="LN(x + f(x));  last sublayer of a layer: LN(b + x + f(x)), with b the layer's input",
    paper="Takase et al. 2022, arXiv 2206.00330",
    note="The release also multiplies every initial matrix by layers^(-1/2): placement_options.rescale.",
    cross_attention="as the authors do",
    peers="b2t_connection (the authors' fork of fairseq)",
    cost="as Post-LN, and one addition a layer",
)
@final
class B2T(Placement):
    """LN(x + f(x)), and the layer's input b skips all norms of its layer but the last: LN(b + x + f(x)).

    ::

              .------------------ b, bottom to top -----------------.
              |                                                     v
        x ----+--+--[SA]--(+)--[LN]--+--[CA]--(+)--[LN]--+--[FFN]--(+)--[LN]-->
                 '---------^         '---------^         '----------^
                                     decoder only

    Encoder: y = LN(x + SA(x)), out = LN(x + y + FFN(y)). Decoder: y = LN(x + SA(x)), z = LN(y + CA(y)),
    out = LN(x + z + FFN(z)). The stream is (x, b); a layer's first site sets b. No norm at the top.

    Initial gains: all 1. `rescale` follows the authors' release, which multiplies every weight matrix of a
    layer by (number of layers of its stack)^(-1/2) as soon as the connection is switched on.

    What people get wrong: b is added before the last norm, not after it; in the decoder it skips
    cross-attention too. Numbers of the release contain its smaller weights.
    """

    needs_rescaling = True

    def __init__(
        self,
        site: Site,
        make_norm: NormFactory,
        dropout: float,
        *,
        rescale: Annotated[
            bool, Doc("start with all matrices times layers^(-1/2), as the release does")
        ] = False,
    ) -> None:
        super().__init__(site, make_norm, dropout)
        if rescale:
            gain = site.layers**-0.5
            self.gains = Gains(beta=gain, query_key=gain, gate=gain)

    def equation(self) -> str:
        return "LN(b + x + f(x)), b the layer's input" if self.site.closes_layer else "LN(x + f(x))"

    def open(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    def close(self, stream: tuple[Tensor, Tensor], norm: nn.Module) -> Tensor:
        return norm(stream[0])  # type: ignore[no-any-return]

    def forward(self, stream: tuple[Tensor, Tensor], branch: Branch) -> tuple[Tensor, Tensor]:
        x, bottom = stream
        bottom = x if self.site.opens_layer else bottom
        y = x + self.dropout(branch(x))
        return self.norm(bottom + y if self.site.closes_layer else y), bottom


@PLACEMENTS.register(
    "rskip",
    title="Recursive skip",
    equation="y_1 = LN(x + f(x)), y_k = LN(x + y_(k-1));  y_times",
    paper="Liu et al. 2020, arXiv 2105.07205",
    note="times = 1 is Post-LN. The branch runs once; only addition and norm are repeated. Written after "
    "descriptions of the paper, which do not tell whether the norms of a site share parameters: "
    "placement_options.shared.",
    cross_attention="as the authors do",
    cost="`times` norms a sublayer",
)
@final
class RecursiveSkip(Placement):
    """y_1 = LN(x + f(x)), then y_k = LN(x + y_(k-1)) up to k = `times`.

    ::

        x --+--[ f ]--(+)--[LN_1]--(+)--[LN_2]-->
            |----------^            ^
            '-----------------------'               times = 2

    Each round weighs the residual more against the branch, and the norm takes the scale back. `times` = 1 is
    Post-LN. The norms of a site have parameters of their own unless `shared`. Initial gains: all 1.
    Cross-attention: x is the stream, as everywhere; the memory is normed already.

    What people get wrong: f is evaluated once. A recursion over LN(x + f(y)) is another model, and costs
    `times` branches.
    """

    norms = ()
    needs_rescaling = True
    norm: nn.ModuleList

    def __init__(
        self,
        site: Site,
        make_norm: NormFactory,
        dropout: float,
        *,
        times: Annotated[Count, Field(le=100), Doc("how often the residual is added")] = 2,
        shared: Annotated[bool, Doc("do the norms of a site share their parameters?")] = False,
    ) -> None:
        super().__init__(site, make_norm, dropout)
        first, *others = (make_norm() for _ in range(times))
        for other in others if shared else ():
            for name, parameter in first.named_parameters():
                other.register_parameter(name, parameter)
        self.norm = nn.ModuleList([first, *others])

    def equation(self) -> str:
        times = len(self.norm)
        again = f"y_{times}, with y_1 = LN(x + f(x)) and y_k = LN(x + y_(k-1))"
        return "LN(x + f(x))" if times == 1 else again

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        y = self.dropout(branch(x))
        for norm in self.norm:
            y = norm(x + y)
        return y  # type: ignore[no-any-return]

    def folded(self) -> Folded | None:
        return Folded(Wiring.POST, (self.norm[0],)) if len(self.norm) == 1 else None

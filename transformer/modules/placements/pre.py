"""The norm in front of the branch: the stream itself passes through none, and grows."""

from __future__ import annotations

import math
from typing import Annotated, final

import torch
from pydantic import Field
from torch import Tensor, nn

from ...core.configuration import NonNegative, Positive
from ...core.signature import Doc
from ..folded import Folded, Wiring
from ..norms import NormFactory
from .base import PLACEMENTS, Branch, Placement, Site


@PLACEMENTS.register(
    "pre",
    title="Pre-LN",
    equation="x + f(LN(x))",
    paper="Xiong et al. 2020, arXiv 2002.04745, table 1",
    cross_attention="as the authors do: the query is normed, the memory is not normed again",
    peers="every toolkit that was looked at; the only placement in OpenNMT-py and the Annotated Transformer, "
    "the default of Sockeye and x-transformers",
    cost="one norm a sublayer, one at the top of each stack",
)
@final
class PreLN(Placement):
    """x + f(LN(x)), and one norm at the top of the stack.

    ::

        x --+--[LN]--[ f ]--(+)-->     ...     --[LN]--> at the top
            '----------------^

    Cross-attention norms its query only: the memory left the encoder through the encoder's final norm.
    An encoder-decoder has two final norms. Without the encoder's it trains nevertheless, and worse: the
    memory's scale then grows with the encoder's depth.
    """

    final_norm = True
    closing = "LN(x)"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.dropout(branch(self.norm(x)))  # type: ignore[no-any-return]

    def folded(self) -> Folded:
        return Folded(Wiring.PRE, (self.norm,))


@PLACEMENTS.register(
    "layerscale",
    title="LayerScale",
    equation="x + gamma * f(LN(x))",
    paper="Touvron et al. 2021, arXiv 2103.17239",
    note="gamma starts at 0.1 in stacks of up to 18 layers, 1e-5 up to 24, 1e-6 above: these bounds are our "
    "choice, after CaiT's rule of smaller values for deeper stacks.",
    cross_attention="ours: a gamma of its own",
    peers="x-transformers",
    cost="as pre, and D numbers a sublayer",
)
@final
class LayerScale(Placement):
    """x + gamma * f(LN(x)), gamma (D) learned, one for each branch and small at the start.

    ::

        x --+--[LN]--[ f ]--[* gamma]--(+)-->     ...     --[LN]--> at the top
            '---------------------------^

    gamma starts at `init`; by default at 0.1 in stacks of up to 18 layers, 1e-5 up to 24, 1e-6 above (our
    choice, after CaiT's rule of smaller values for deeper stacks): each layer begins near the identity. The
    authors' networks are encoders of images; cross-attention with a gamma of its own is ours. gamma is a
    vector, not a scalar (ReZero's is one), it is not zero at the start, and it does not decay. It can be
    folded into the branch's last matrix, which makes the model a Pre-LN one.
    """

    final_norm = True
    closing = "LN(x)"

    def __init__(
        self,
        site: Site,
        make_norm: NormFactory,
        dropout: float,
        *,
        init: Annotated[
            Positive | None, Doc("where gamma starts (default: by the depth of the stack)")
        ] = None,
    ) -> None:
        super().__init__(site, make_norm, dropout)
        by_depth = 0.1 if site.layers <= 18 else 1e-5 if site.layers <= 24 else 1e-6
        self.init = by_depth if init is None else init
        self.gamma = nn.Parameter(torch.full((site.width,), self.init))

    def equation(self) -> str:
        return f"x + gamma * f(LN(x)), gamma from {self.init:g} on"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.gamma * self.dropout(branch(self.norm(x)))  # type: ignore[no-any-return]

    def folded(self) -> Folded:
        return Folded(Wiring.PRE, (self.norm,), output=self.gamma)


@PLACEMENTS.register(
    "lns",
    title="LayerNorm Scaling",
    equation="x + f(LN(x) / sqrt(l))",
    paper="Sun et al. 2025, arXiv 2502.05795",
    note="l counts the layers of the stack from 1; the final norm is not scaled.",
    cross_attention="ours: the query's norm is scaled, the memory is not",
    peers="the authors' LayerNorm-Scaling",
    cost="as pre",
)
@final
class LayerNormScaling(Placement):
    """x + f(LN(x) / sqrt(l)): in layer l of a stack, from 1, each branch reads a smaller normed value.

    ::

        x --+--[LN]--[/ sqrt(l)]--[ f ]--(+)-->     ...     --[LN]--> at the top
            '-----------------------------^

    All sublayers of a layer have the same l, encoder and decoder count for themselves, and the final norm is
    not scaled. The authors' models are decoders alone; in cross-attention we scale the query and leave the
    memory as it is. Initial weights that shrink with the depth besides undo the benefit: ours do not.
    """

    final_norm = True
    closing = "LN(x)"

    def __init__(self, site: Site, make_norm: NormFactory, dropout: float) -> None:
        super().__init__(site, make_norm, dropout)
        self.root = math.sqrt(site.layer + 1)

    def equation(self) -> str:
        return f"x + f(LN(x) / sqrt({self.site.layer + 1}))"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.dropout(branch(self.norm(x) / self.root))  # type: ignore[no-any-return]

    def folded(self) -> Folded:
        return Folded(Wiring.PRE, (self.norm,), input=1 / self.root)


@PLACEMENTS.register(
    "mix",
    title="Mix-LN",
    equation="LN(x + f(x)) in the first layers, x + f(LN(x)) in the others",
    paper="Li et al. 2024, arXiv 2412.13795",
    note="The first floor(share L) of a stack's L layers are Post-LN: none below 4 layers by default.",
    cross_attention="ours: as in the layer's other sublayers, counted in the decoder",
    peers="the authors' MixLN",
    cost="as pre",
)
@final
class MixLN(Placement):
    """The first floor(share L) layers of a stack are Post-LN, the others Pre-LN, and a norm ends it.

    ::

        l <= share L    x --+--[ f ]--(+)--[LN]-->
                            '----------^

        above           x --+--[LN]--[ f ]--(+)-->     ...     --[LN]--> at the top
                            '----------------^

    The authors' share is 0.25: 3 of 12 layers. Encoder and decoder each have their own L; this and
    cross-attention are ours, the authors' models are decoders alone. The floor leaves a stack of 3 layers
    without any Post-LN layer. The final norm stays when all layers are Post-LN.
    """

    final_norm = True
    needs_rescaling = True
    closing = "LN(x)"

    def __init__(
        self,
        site: Site,
        make_norm: NormFactory,
        dropout: float,
        *,
        share: Annotated[NonNegative, Field(le=1), Doc("share of the layers that are Post-LN")] = 0.25,
    ) -> None:
        super().__init__(site, make_norm, dropout)
        # In binary 0.29 * 100 is a little below 29.
        self.is_post = site.layer < math.floor(share * site.layers + 1e-9)

    def equation(self) -> str:
        return "LN(x + f(x))" if self.is_post else "x + f(LN(x))"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        if self.is_post:
            return self.norm(x + self.dropout(branch(x)))  # type: ignore[no-any-return]
        return x + self.dropout(branch(self.norm(x)))  # type: ignore[no-any-return]

    def folded(self) -> Folded:
        return Folded(Wiring.POST if self.is_post else Wiring.PRE, (self.norm,))

"""The norm after the addition of a scaled residual: LN(alpha x + f(x)), alpha fixed or learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, final

import torch
from torch import Tensor, nn

from ...core.configuration import Positive
from ...core.signature import Doc
from ..branch import Gains
from ..folded import Folded, Wiring
from ..norms import Norm, NormFactory
from .base import PLACEMENTS, Branch, Placement, Site, Stack


@PLACEMENTS.register(
    "deepnorm",
    title="DeepNorm",
    equation="LN(alpha x + f(x))",
    paper="Wang et al. 2022, arXiv 2203.00555",
    note="alpha and beta depend on both depths; beta scales value, output and feed-forward weights. The "
    "authors draw these Xavier-normal; ours are uniform, of equal variance.",
    cross_attention="as the authors do",
    peers="torchscale (the authors'), JoeyNMT (initializer xavier_normal), Transformer-Clinic, xformers; "
    "x-transformers scales the residual by a constant",
    cost="as Post-LN, and one product a sublayer",
)
@final
class DeepNorm(Placement):
    """LN(alpha x + f(x)), the branch's weights starting beta times smaller.

    ::

        x --+--[ f ]------(+)--[LN]-->
            '--[* alpha]---^

    With N encoder and M decoder layers: encoder alpha = 0.81 (N^4 M)^(1/16), beta = 0.87 (N^4 M)^(-1/16);
    decoder alpha = (3M)^(1/4), beta = (12M)^(-1/4), in cross-attention too.

    Initial gains: beta for value, output and both feed-forward matrices; 1 for query and key.

    What people get wrong: these are the constants of an encoder-decoder; a stack alone has others
    ((2N)^(1/4), (8N)^(-1/4)). beta is below 1: its exponent is negative.
    """

    needs_rescaling = True

    @staticmethod
    def gains_at(site: Site) -> Gains:
        n, m = site.encoder_layers, site.decoder_layers
        if site.stack == "encoder":
            return Gains(alpha=0.81 * (n**4 * m) ** (1 / 16), beta=0.87 * (n**4 * m) ** (-1 / 16))
        return Gains(alpha=(3 * m) ** (1 / 4), beta=(12 * m) ** (-1 / 4))

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.norm(self.alpha * x + self.dropout(branch(x)))  # type: ignore[no-any-return]

    def folded(self) -> Folded:
        return Folded(Wiring.POST, (self.norm,), residual=self.alpha)


# Initial omega by the number n of sublayers of the stack, named after the growth of the output's change.
_OMEGA: dict[str, Callable[[int], float]] = {
    "log": lambda n: math.sqrt((n + 1) / math.log(n + 1) - 1),
    "constant": math.sqrt,
    "linear": lambda n: 1.0,
    "profiled": lambda n: 1.0,  # until `calibrate`
}


@PLACEMENTS.register(
    "admin",
    title="Admin",
    equation="LN(omega x + f(x))",
    paper="Liu et al. 2020, arXiv 2004.08249",
    note="omega is learned, one number for each channel. placement_options.omega: profiled is the paper's "
    "start; log, constant and linear are the closed forms of admin-torch.",
    cross_attention="as the authors do",
    peers="Transformer-Clinic and admin-torch (the authors')",
    cost="as Post-LN, and one product a sublayer; profiled: one forward pass before training",
)
@final
class Admin(Placement):
    """LN(omega x + f(x)), omega a learned vector (D).

    ::

        x --+--[ f ]------(+)--[LN]-->
            '--[* omega]---^

    All channels of omega start from one number. With n sublayers in the stack (2N or 3M): `log`
    sqrt((n + 1) / ln(n + 1) - 1), `constant` sqrt(n), `linear` 1, after how the output's change grows with n.
    `profiled` is the authors': one batch in training mode with omega = 1, then omega_1 = 1 and

        omega_(i+1) = sqrt(Var x_0 + Var f_1 + ... + Var f_i),    x_0 what enters the stretch of Admin layers,

    the encoder's and the decoder's sublayers counted apart, in order of execution. Their code goes from site
    to site, omega_(i+1)^2 = Var(omega_i x_(i-1)) + Var f_i; that is the same sum, as what leaves a norm has
    variance 1. The embedding has another one, about 1.4. They count padding too; here only real tokens count.

    Initial gains: all 1. Cross-attention is a sublayer among the decoder's three.

    What people get wrong: Var f is the branch's after its dropout, of all numbers of the batch together
    but padding's, and it is taken once, before training. After training omega can be folded into the norm
    before.
    """

    needs_rescaling = True

    def __init__(
        self,
        site: Site,
        make_norm: NormFactory,
        dropout: float,
        *,
        omega: Annotated[
            Literal["log", "constant", "linear", "profiled"], Doc("what the residual's weight starts from")
        ] = "log",
    ) -> None:
        super().__init__(site, make_norm, dropout)
        self.calibrated = omega == "profiled"
        self.omega = nn.Parameter(torch.full((site.width,), _OMEGA[omega](site.layers * site.slots)))

    @torch.no_grad()
    def calibrate(self, stream: float, branches: Sequence[float]) -> None:
        self.omega.fill_(math.sqrt(stream + sum(branches)) if branches else 1.0)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.norm(self.omega * x + self.dropout(branch(x)))  # type: ignore[no-any-return]

    def folded(self) -> Folded:
        return Folded(Wiring.POST, (self.norm,), residual=self.omega)


@PLACEMENTS.register(
    "keel",
    title="KEEL",
    equation="LN(alpha x + f(LN_in(x)))",
    paper="Chen and Wei 2026, arXiv 2601.19895",
    note="alpha is the number of sublayers of the stack, 1 in its first layer; the stack's first sublayer "
    "has no norm after the addition.",
    cross_attention="ours, as any sublayer (the paper's models are decoders alone): alpha counts it",
    cost="two norms a sublayer",
)
@final
class Keel(Placement):
    """LN(alpha x + f(LN_in(x))): Post-LN with a strong residual, and Pre-LN's norm on the branch's input.

    ::

        x --+--[LN_in]--[ f ]--(+)--[LN]-->
            '---[* alpha]-------^

    alpha is the number of sublayers of the stack, 2N or 3M, unless the option says another. The first layer
    has alpha = 1 at all its sites, and the stack's first site is x + f(LN_in(x)), without the outer norm.
    The stack ends in its last site's outer norm: none is added at the top, and the memory is a normed one.

    Initial gains: all 1. The paper's norm is an RMSNorm. In a decoder, cross-attention norms its query only.

    What people get wrong: alpha without the inner norm is DeepNorm without beta, and drowns the branch.
    """

    norms = ("norm_in", "norm")
    needs_rescaling = True
    norm_in: nn.Module

    def __init__(
        self,
        site: Site,
        make_norm: NormFactory,
        dropout: float,
        *,
        alpha: Annotated[
            Positive | None,
            Doc("scale of the residual above the first layer (default: the stack's sublayers)"),
        ] = None,
    ) -> None:
        super().__init__(site, make_norm, dropout)
        if alpha is not None and site.layer > 0:
            self.gains = Gains(alpha=alpha)

    def equation(self) -> str:
        y = f"{'' if self.alpha == 1 else 'alpha '}x + f(LN_in(x))"
        return f"LN({y})" if self.site.index else y

    @classmethod
    def norms_at(cls, site: Site) -> tuple[str, ...]:
        return ("norm_in",) if site.index == 0 else cls.norms

    @staticmethod
    def gains_at(site: Site) -> Gains:
        return Gains(alpha=1.0 if site.layer == 0 else site.layers * site.slots)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        y = self.alpha * x + self.dropout(branch(self.norm_in(x)))
        return self.norm(y) if self.site.index else y  # type: ignore[no-any-return]


@PLACEMENTS.register(
    "xskip",
    title="Expanded skip",
    equation="LN(lam x + f(x))",
    paper="Liu et al. 2020, arXiv 2105.07205",
    note="lam is fixed. norm: none is the paper's arm without LN, whose gradients grow as lam^sublayers.",
    cross_attention="as the authors do",
    cost="as Post-LN, and one product a sublayer",
)
@final
class ExpandedSkip(Placement):
    """LN(lam x + f(x)), lam a fixed number.

    ::

        x --+--[ f ]----(+)--[LN]-->
            '--[* lam]---^

    lam (`scale`) is 2 by default, at every site; 1 is Post-LN. Initial gains: all 1. Cross-attention as the
    others.

    With norm `none` it is the arm that shows the trouble: lam x + f(x), whose stream and gradient grow
    (lam > 1) or fade (lam < 1) with the depth. What people get wrong: lam is not learned; that is Admin.
    """

    needs_rescaling = True

    def __init__(
        self,
        site: Site,
        make_norm: NormFactory,
        dropout: float,
        *,
        scale: Annotated[Positive, Doc("factor of the residual")] = 2.0,
    ) -> None:
        super().__init__(site, make_norm, dropout)
        self.gains = Gains(alpha=scale)

    def equation(self) -> str:
        return f"LN({self.alpha:g} x + f(x))"

    @classmethod
    def refuses(cls, norm: type[Norm], stack: Stack) -> str | None:
        return super().refuses(norm, stack) if norm.normalises else None

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.norm(self.alpha * x + self.dropout(branch(x)))  # type: ignore[no-any-return]

    def folded(self) -> Folded:
        return Folded(Wiring.POST, (self.norm,), residual=self.alpha)

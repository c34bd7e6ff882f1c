"""A norm behind the branch, before the addition: what a branch adds has the norm's scale."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from ..folded import Folded, Wiring
from .base import PLACEMENTS, Branch, Placement


@PLACEMENTS.register(
    "sandwich",
    title="Sandwich-LN",
    equation="x + LN2(f(LN1(x)))",
    paper="Ding et al. 2021 (CogView), arXiv 2105.13290",
    cross_attention="ours: as in self-attention; the memory is not normed again",
    peers="x-transformers; Sockeye and Marian in their strings; Eole in Gemma's form",
    cost="two norms a sublayer, one at the top of each stack",
)
@final
class SandwichLN(Placement):
    """x + LN2(f(LN1(x))): a norm on the branch's input and one on its output.

    ::

        x --+--[LN1]--[ f ]--[LN2]--(+)-->     ...     --[LN]--> at the top
            '------------------------^

    The second norm acts on the branch alone: it stands before the addition and before the dropout. The
    authors divide by max|x| / 8 in front of each norm, which only keeps fp16 from overflowing; here
    statistics are float32. Their model is a decoder alone: cross-attention is ours.
    """

    norms = ("norm_in", "norm_out")
    final_norm = True
    closing = "LN(x)"
    norm_in: nn.Module
    norm_out: nn.Module

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.dropout(self.norm_out(branch(self.norm_in(x))))  # type: ignore[no-any-return]

    def folded(self) -> Folded:
        return Folded(Wiring.SANDWICH, (self.norm_in, self.norm_out))


@PLACEMENTS.register(
    "peri",
    title="Peri-LN",
    equation="x + LN2(f(LN1(x))), with x = LN(embedding) at the start",
    paper="Kim et al. 2025, arXiv 2502.02732",
    note="The authors norm with `rms`; the second norm needs its gain.",
    cross_attention="ours: as in self-attention; the memory is not normed again",
    peers="Gemma's form in Eole and Hugging Face, without the norm after the embedding",
    cost="as sandwich, and one norm after each embedding",
)
@final
class PeriLN(Placement):
    """x + LN2(f(LN1(x))), and norms at both ends of the stack.

    ::

        embedding --[LN]--> x --+--[LN1]--[ f ]--[LN2]--(+)-->   ...   --[LN]--> at the top
                                '------------------------^

    Sandwich-LN's wiring with a norm after the embedding: each sublayer adds about the same variance, so the
    stream's grows linearly. The second norm's gain has to be learned: a norm without gain fixes what every
    branch may add. The authors' models are decoders alone: cross-attention is ours.
    """

    norms = ("norm_in", "norm_out")
    final_norm = True
    embedding_norm = True
    closing = "LN(x)"
    norm_in: nn.Module
    norm_out: nn.Module

    def equation(self) -> str:
        return "x + LN2(f(LN1(x)))"  # the norm after the embedding may be switched off

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.dropout(self.norm_out(branch(self.norm_in(x))))  # type: ignore[no-any-return]

    def folded(self) -> Folded:
        return Folded(Wiring.SANDWICH, (self.norm_in, self.norm_out))


@PLACEMENTS.register(
    "res_post",
    title="Res-post-norm",
    equation="x + LN(f(x))",
    paper="Liu et al. 2021 (Swin v2), arXiv 2111.09883; OLMo 2, arXiv 2501.00656",
    note="OLMo 2 norms queries and keys besides, as far as we know over their full width; our qk_norm norms "
    "each head by itself.",
    cross_attention="ours: the output is normed; query and memory are not",
    cost="as pre",
)
@final
class ResPostNorm(Placement):
    """x + LN(f(x)): the branch reads the stream as it is, and what it adds is normed.

    ::

        x --+--[ f ]--[LN]--(+)-->     ...     --[LN]--> at the top
            '----------------^

    It is not Post-LN: the norm stands before the addition, and the stream grows as in Pre-LN. No norm stands
    between the stream and the attention's logits, which grow with it; hence OLMo 2's norms on queries and
    keys. The authors' models are encoders or decoders alone: cross-attention is ours.
    """

    final_norm = True
    closing = "LN(x)"

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.dropout(self.norm(branch(x)))  # type: ignore[no-any-return]

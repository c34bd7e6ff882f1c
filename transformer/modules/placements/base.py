"""Where the norm sits, and what is added to what.

One `Placement` wraps one sublayer (the *branch*) of one layer; its `forward` is the paper's equation.
The *stream* is what flows up a stack: usually one tensor x (B, T, D), sometimes a tuple of them.

        open          site 0          site 1                close
    x ---------> s -----[f]-----> s -----[f]-----> ... s ----------> y

The branch is a function of the stream alone. Memory, masks and caches are in its closure, where no
placement can touch them: cross-attention's memory is normed exactly when the encoder's `close` does it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor, nn

from ...core.registry import Registry
from ..branch import Gains, Inner
from ..dropout import Dropout
from ..folded import Folded
from ..norms import Norm, NormFactory, Tokens

PLACEMENTS: Registry[type[Placement]] = Registry("placement")

# A tensor (B, T, D) or a tuple of them: each placement says which by its own signature.
Stream: TypeAlias = Any
Branch: TypeAlias = Callable[[Tensor], Tensor]
Stack: TypeAlias = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Site:
    """Where a residual connection sits: decoder, layer 3 of 6, slot 1 of 3 (layer and slot count from 0)."""

    stack: Stack
    layer: int
    slot: int
    slots: int
    encoder_layers: int
    decoder_layers: int
    width: int  # D of the stream

    @property
    def layers(self) -> int:
        """Depth of its stack: N in the encoder, M in the decoder."""
        return self.encoder_layers if self.stack == "encoder" else self.decoder_layers

    @property
    def index(self) -> int:
        """Number of the sublayer in its stack, from 0: 2 a layer in the encoder, 3 in the decoder."""
        return self.layer * self.slots + self.slot

    @property
    def opens_layer(self) -> bool:
        return self.slot == 0

    @property
    def closes_layer(self) -> bool:
        return self.slot == self.slots - 1

    @property
    def is_cross_attention(self) -> bool:
        return self.slots == 3 and self.slot == 1

    @property
    def is_attention(self) -> bool:
        return not self.closes_layer


class Placement(nn.Module, ABC):
    """One residual connection: stream, branch -> stream.

    A concrete placement is final; its options are the constructor's keyword-only parameters. It states which
    norms each site owns (`norms`, attribute names), whether the stack ends in one more (`final_norm`), how an
    embedding becomes a stream (`open`), how a stream becomes the stack's output (`close`; `norm` is the
    identity without `final_norm`), its gains (`gains_at`) and what it puts inside the branch (`inner_at`).
    Depth-dependent factors are computed once, in the constructor: `forward` reads no layer index.
    """

    norms: ClassVar[tuple[str, ...]] = ("norm",)
    final_norm: ClassVar[bool] = False
    embedding_norm: ClassVar[bool] = False  # does a norm follow the embedding, before the stack?
    closing: ClassVar[str] = "x"  # the stack's output as an equation
    needs_rescaling: ClassVar[bool] = False  # would the stream explode or vanish without a norm's scale?
    token_norms_only: ClassVar[bool] = False  # are its norms asked for other things than the stream?
    calibrated: bool = False  # does `calibrate` set initial values?
    norm: nn.Module

    def __init__(self, site: Site, make_norm: NormFactory, dropout: float) -> None:
        super().__init__()
        for name in self.norms_at(site):
            self.add_module(name, make_norm())
        self.dropout = Dropout(dropout)
        self.site = site
        self.gains = self.gains_at(site)
        self.inner = self.inner_at(site)

    @property
    def alpha(self) -> float:
        """The scale of the residual."""
        return self.gains.alpha

    def equation(self) -> str | None:
        """What this site computes, f its branch; None where the registered equation says it."""
        return None

    def folded(self) -> Folded | None:
        """This site, in evaluation, as one of the wirings that are served; None where it is none of them.

        Whoever answers keeps `open`, `close` and `climb` as they are here, and nothing inside the branch.
        """
        return None

    @classmethod
    def norms_at(cls, site: Site) -> tuple[str, ...]:
        """Names of the norms that this site owns."""
        return cls.norms

    @staticmethod
    def gains_at(site: Site) -> Gains:
        return Gains()

    @staticmethod
    def inner_at(site: Site) -> Inner:
        """What the branch holds inside: norms, scales."""
        return Inner()

    @staticmethod
    def embedding_gain(stack: Stack, layers: int) -> float:
        """Gain of the initial embeddings of a stack of this depth."""
        return 1.0

    @classmethod
    def refuses(cls, norm: type[Norm], stack: Stack) -> str | None:
        """Why this placement and this norm make no sense together in this stack; None where they do."""
        if reason := cls.excludes(norm):
            return reason
        if cls.needs_rescaling and not norm.rescales:
            return "the stream passes through this norm, and it does not bring it back to its scale"
        return None

    @classmethod
    def excludes(cls, norm: type[Norm]) -> str | None:
        """Why they cannot even be built together; None where they can."""
        if cls.token_norms_only and norm.span != "token":
            return "it norms more than the stream, and this norm's statistics span tokens"
        return None

    def open(self, x: Tensor) -> Stream:
        """Embedding (B, T, D) -> stream. Called on the first site of a stack."""
        return x

    def close(self, stream: Stream, norm: nn.Module) -> Tensor:
        """Stream -> (B, T, D). Called on the last site of a stack."""
        closed: Tensor = norm(stream)
        return closed

    @staticmethod
    def climb(stream: Stream, connections: Iterable[tuple[Placement, Branch]], tokens: Tokens) -> Stream:
        """Run the connections of a stack in order."""
        for placement, branch in connections:
            stream = placement(stream, branch)
        return stream

    def calibrate(self, stream: float, branches: Sequence[float]) -> None:
        """Set initial values by variances on one batch.

        Of the stream where this site's stretch of layers begins, and of the branches of the stretch's earlier
        sites.
        """

    @abstractmethod
    def forward(self, stream: Stream, branch: Branch) -> Stream: ...

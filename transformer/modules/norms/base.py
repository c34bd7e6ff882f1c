"""What every norm is: a function of x (..., D) built as `Norm(dim, eps, **options)`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ...core.registry import Registry
from ..folded import FoldedNorm

NORMS: Registry[type[Norm]] = Registry("norm")


class NormFactory(Protocol):
    """Makes the norm that a site was configured with, `dim` numbers wide (default: the stream's width)."""

    def __call__(self, dim: int | None = None) -> nn.Module: ...


class Norm(nn.Module):
    """y (..., D) of x (..., D), built as `Norm(dim, eps)`; options are keyword-only parameters.

    Statistics are taken in float32 at least, also for half-precision input; the result has the input's type.
    """

    normalises: ClassVar[bool] = True  # False for a stand-in: it is not counted as a norm
    rescales: ClassVar[bool] = True  # does the output's scale forget the input's?
    # What the statistics run over: one token, the tokens of a sentence, or all tokens of a batch.
    span: ClassVar[Literal["token", "sentence", "batch"]] = "token"

    width_option: ClassVar[str] = ""  # the option that decides which widths are possible

    @classmethod
    def unfit(cls, stack: str) -> str | None:
        """Why this norm does not belong into a stack; None where it does."""
        if cls.span == "batch" and stack == "decoder":
            return "in training its statistics tell a token of those that follow"
        return None

    @classmethod
    def check(cls, dim: int, **options: Any) -> str | None:
        """Why a norm of this width cannot be had with these, all its options; None where it can."""
        return None

    def folded(self) -> FoldedNorm | None:
        """This norm as a LayerNorm or an RMSNorm, in evaluation; None where it is neither."""
        return None


class NormCache(Protocol):
    """What causal norms remember between decoding steps: one tensor (R, ...) for each place."""

    def get(self, place: int) -> Tensor | None: ...
    def put(self, place: int, state: Tensor) -> None: ...


class Tokens:
    """What a pass tells the norms whose statistics span tokens. One for each stack, which sets it.

    So a model whose norms span tokens runs one pass at a time: threads that share it would share this too.

    `real` (B, L) is False at padding; `causal` says that column t may only know columns 0..t; `past` counts
    the columns that earlier decoding steps have seen and `cache` holds what the norms kept of them.
    """

    def __init__(self, causal: bool) -> None:
        self.causal, self.places = causal, 0
        self.real: Tensor | None = None
        self.cache: NormCache | None = None
        self.past = 0

    def enrol(self) -> int:
        """A place of its own in the cache for each norm."""
        self.places += 1
        return self.places - 1

    def set(self, real: Tensor | None, cache: NormCache | None = None, past: int = 0) -> None:
        self.real, self.cache, self.past = real, cache, past

    @contextmanager
    def during(self, real: Tensor | None, cache: NormCache | None = None, past: int = 0) -> Iterator[None]:
        """The context of one pass."""
        self.set(real, cache, past)
        try:
            yield
        finally:
            self.set(None)


class TokensNorm(Norm):
    """A norm whose statistics span tokens: x (B, L, D), and what `tokens` says of the pass.

    Used by itself, outside of a stack, it takes all tokens for real and none for the future.
    """

    span: ClassVar[Literal["token", "sentence", "batch"]] = "sentence"

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.place = Tokens(causal=False), 0

    def join(self, tokens: Tokens) -> None:
        """Become a norm of the stack that `tokens` belongs to."""
        self.tokens, self.place = tokens, tokens.enrol()

    def weighed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For x (B, L, D): x with zeros at padding, and (B, L, 1) what each token counts, 1 or 0.

        Zeros and not whatever stands there: nothing that padding holds, not even a NaN, gets into a sum.
        """
        wide, real = at_least_float32(x), self.tokens.real
        if real is None:
            return wide, wide.new_ones(*x.shape[:2], 1)
        return wide.masked_fill(~real[..., None], 0.0), real[..., None].to(wide.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """bf16 and half to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.half) else x

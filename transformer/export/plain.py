"""The Transformer that engines know, as float64 arrays: three wirings, two norms, no factors.

Arrays are numpy's. B, S, T and D as everywhere; N rows of a position table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..modules.folded import Wiring

Array: TypeAlias = NDArray[np.float64]


@dataclass
class PlainNorm:
    """LayerNorm where `centred`, else RMSNorm; gain (D), bias (D) or None."""

    centred: bool
    gain: Array
    bias: Array | None

    def multiply(self, factor: Array) -> None:
        """The product factor * norm(x), as a norm."""
        self.gain = self.gain * factor
        self.bias = None if self.bias is None else self.bias * factor


@dataclass
class Linear:
    """W x + b: weight (out, in), bias (out)."""

    weight: Array
    bias: Array

    def multiply(self, factor: Array) -> None:
        """The product factor * (W x + b)."""
        self.weight = self.weight * factor[:, None]
        self.bias = self.bias * factor

    def divide_input(self, factor: Array) -> None:
        """W (x / factor) + b."""
        self.weight = self.weight / factor


@dataclass
class PlainAttention:
    """softmax(q k / sqrt(K)) v W_O."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    of_memory: bool  # are keys and values the memory's?

    @property
    def readers(self) -> list[Linear]:
        """The matrices that read the stream."""
        return [self.query] if self.of_memory else [self.query, self.key, self.value]


@dataclass
class PlainFeedForward:
    """W2 act(W1 x), or W2 (act(Wg x) * W1 x); `activation` is relu, gelu or swish."""

    hidden: Linear
    gate: Linear | None
    output: Linear
    activation: str

    @property
    def readers(self) -> list[Linear]:
        return [self.hidden] if self.gate is None else [self.hidden, self.gate]


@dataclass
class PlainSite:
    """One residual connection; its wiring is the stack's."""

    norms: list[PlainNorm]
    branch: PlainAttention | PlainFeedForward


@dataclass
class PlainStack:
    """table[token] + positions[t], normed or not; the layers; the norm at the top, or none."""

    wiring: Wiring
    table: Array  # (V, D)
    positions: Array  # (N, D)
    embedding_norm: PlainNorm | None
    layers: list[list[PlainSite]]
    final_norm: PlainNorm | None

    @property
    def sites(self) -> list[PlainSite]:
        return [site for layer in self.layers for site in layer]

    def multiply_bottom(self, factor: Array) -> None:
        """The product factor * x, x what enters the first site."""
        if self.embedding_norm is not None:
            self.embedding_norm.multiply(factor)
        else:
            self.table, self.positions = self.table * factor, self.positions * factor


@dataclass
class PlainTransformer:
    """output (V, D) makes logits of what the decoder gives; `eps` is in every norm."""

    encoder: PlainStack
    decoder: PlainStack
    output: Array
    heads: int
    eps: float

"""Sublayers wired into the stream by a placement; no arithmetic of its own.

S source length, T target length, B batch, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ..modules.attention import LayerCache, MultiHeadAttention
from ..modules.feedforward import FeedForward
from ..modules.norms import NORMS
from ..modules.placements import PLACEMENTS, Placement, Site, Stream
from .config import ModelConfig, Stack

Sublayer = MultiHeadAttention | FeedForward


class _Layer(nn.Module):
    """What both kinds of layer build: sublayers, and the residual connection around each."""

    def __init__(self, config: ModelConfig, stack: Stack, layer: int, slots: int) -> None:
        super().__init__()
        self._config, self._stack, self._layer, self._slots = config, stack, layer, slots

    def _residual(self, slot: int) -> Placement:
        config = self._config
        site = Site(self._stack, self._layer, slot, self._slots, config.encoder_layers, config.decoder_layers)
        norm = NORMS[config.norm_of(self._stack)]
        placement = PLACEMENTS[config.placement_of(self._stack)]
        return placement(site, lambda: norm(config.d_model, config.norm_eps), config.dropout)

    def _attention(self) -> MultiHeadAttention:
        return MultiHeadAttention(self._config.d_model, self._config.heads, self._config.attention_dropout)

    def _feedforward(self) -> FeedForward:
        c = self._config
        return FeedForward(c.d_model, c.d_ff, c.activation, c.activation_dropout)


class EncoderLayer(_Layer):
    """Self-attention and feed-forward. stream, mask (B, 1, 1, S) -> stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, "encoder", layer, slots=2)
        self.self_attention, self.self_residual = self._attention(), self._residual(0)
        self.feedforward, self.feedforward_residual = self._feedforward(), self._residual(1)

    def forward(self, stream: Stream, mask: Tensor) -> Stream:
        stream = self.self_residual(stream, lambda x: self.self_attention(x, mask=mask))
        return self.feedforward_residual(stream, self.feedforward)

    def sites(self) -> Iterator[tuple[Placement, Sublayer]]:
        yield self.self_residual, self.self_attention
        yield self.feedforward_residual, self.feedforward


class DecoderLayer(_Layer):
    """Self-attention, cross-attention over memory (B, S, D), feed-forward. stream -> stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, "decoder", layer, slots=3)
        self.self_attention, self.self_residual = self._attention(), self._residual(0)
        self.cross_attention, self.cross_residual = self._attention(), self._residual(1)
        self.feedforward, self.feedforward_residual = self._feedforward(), self._residual(2)

    def forward(
        self,
        stream: Stream,
        memory: Tensor,
        source_mask: Tensor,
        target_mask: Tensor | None,
        causal: bool,
        cache: LayerCache | None,
    ) -> Stream:
        own, cross = (cache.self_attention, cache.cross_attention) if cache else (None, None)
        stream = self.self_residual(
            stream, lambda x: self.self_attention(x, mask=target_mask, causal=causal, cache=own)
        )
        stream = self.cross_residual(
            stream, lambda x: self.cross_attention(x, memory, source_mask, cache=cross)
        )
        return self.feedforward_residual(stream, self.feedforward)

    def sites(self) -> Iterator[tuple[Placement, Sublayer]]:
        yield self.self_residual, self.self_attention
        yield self.cross_residual, self.cross_attention
        yield self.feedforward_residual, self.feedforward

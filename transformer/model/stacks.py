"""A stack opens the stream, runs its layers and closes it; the placement decides how it ends."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ..modules.attention import DecoderCache
from ..modules.masks import causal_mask
from ..modules.norms import NORMS
from ..modules.placements import PLACEMENTS, Placement
from .config import ModelConfig, Stack
from .layers import DecoderLayer, EncoderLayer, Sublayer


def _final_norm(config: ModelConfig, stack: Stack) -> nn.Module:
    """The norm at the top, where the placement has one; the only reader of `final_norm`."""
    if not PLACEMENTS[config.placement_of(stack)].final_norm:
        return nn.Identity()
    return NORMS[config.norm_of(stack)](config.d_model, config.norm_eps)


class Encoder(nn.Module):
    """x (B, S, D), mask (B, 1, 1, S) -> memory (B, S, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.placement = PLACEMENTS[config.placement_of("encoder")]
        self.layers = nn.ModuleList(EncoderLayer(config, i) for i in range(config.encoder_layers))
        self.final_norm = _final_norm(config, "encoder")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        stream = self.placement.open(x)
        for layer in self.layers:
            stream = layer(stream, mask)
        return self.placement.close(stream, self.final_norm)

    def sites(self) -> Iterator[tuple[Placement, Sublayer]]:
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            yield from layer.sites()


class Decoder(nn.Module):
    """x (B, T, D), memory (B, S, D) -> (B, T, D). Column t sees columns 0..t and the cache's past."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.placement = PLACEMENTS[config.placement_of("decoder")]
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.decoder_layers))
        self.final_norm = _final_norm(config, "decoder")

    def forward(
        self, x: Tensor, memory: Tensor, source_mask: Tensor, cache: DecoderCache | None = None, past: int = 0
    ) -> Tensor:
        length = x.shape[1]
        causal = past == 0 and length > 1
        target_mask = causal_mask(length, past, x.device) if past and length > 1 else None
        stream = self.placement.open(x)
        for i, layer in enumerate(self.layers):
            kept = cache.layers[i] if cache else None
            stream = layer(stream, memory, source_mask, target_mask, causal, kept)
        return self.placement.close(stream, self.final_norm)

    def sites(self) -> Iterator[tuple[Placement, Sublayer]]:
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            yield from layer.sites()

"""A stack opens the stream, runs its layers and closes it; the placement decides how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..modules.attention import DecoderCache
from ..modules.checkpointing import recomputed
from ..modules.dropout import Dropout
from ..modules.masks import causal_mask
from ..modules.placements import Placement, Stack
from ..modules.placements.base import Stream
from .config import ModelConfig
from .layers import Connection, DecoderLayer, EncoderLayer
from .parts import Parts, Sublayer

_PLAIN = nn.Identity()
Connections: TypeAlias = Callable[[int], Iterable[Connection]]  # of a layer, counted from 0


class _Stack(nn.Module):
    """Layers, what the embedding goes through before them, and the norm above them.

    `tokens` tells norms that span tokens what a pass is about. With `checkpointed` the backward pass makes
    the activations of each layer again, but where the placement sees to that itself.
    """

    layers: nn.ModuleList

    def __init__(self, config: ModelConfig, stack: Stack) -> None:
        super().__init__()
        parts = Parts(config, stack)
        layer = EncoderLayer if stack == "encoder" else DecoderLayer
        self.embedding_norm = parts.embedding_norm()
        self.dropout = Dropout(
            config.dropout if config.embedding_dropout is None else config.embedding_dropout
        )
        self.layers = nn.ModuleList(layer(parts, i) for i in range(config.layers_of(stack)))
        self.final_norm = parts.final_norm()
        self.tokens = parts.tokens
        self.checkpointed = False
        by_placement = groupby(range(len(self.layers)), lambda i: config.placement_of(stack, i))
        self.stretches = [list(group) for _, group in by_placement]  # of layers with one placement

    def climb(self, x: Tensor, connections: Connections) -> Tensor:
        """Open, run and close each stretch of layers of one placement; the last one ends in the final norm.

        A stretch hands the next one its stream as `close` makes it without a norm. x is an embedding.
        """
        x = self.dropout(self.embedding_norm(x))
        for stretch in self.stretches:
            first, last = self.residuals(stretch[0])[0], self.residuals(stretch[-1])[-1]
            stream = first.open(x)
            if self.checkpointed and torch.is_grad_enabled() and first.climb is Placement.climb:
                for i in stretch:
                    run = partial(self._climb_layer, connections=connections, layer=i)
                    stream = recomputed(run, stream, self.tokens)
            else:
                wired = (connection for i in stretch for connection in connections(i))
                stream = first.climb(stream, wired, self.tokens)
            x = last.close(stream, self.final_norm if stretch is self.stretches[-1] else _PLAIN)
        return x if self.stretches else self.final_norm(x)

    def _climb_layer(self, stream: Stream, connections: Connections, layer: int) -> Stream:
        return Placement.climb(stream, connections(layer), self.tokens)

    def residuals(self, layer: int) -> list[Placement]:
        """The residual connections of a layer, in order of execution."""
        return [residual for residual, _ in self.layers[layer].sites()]  # type: ignore[operator]

    def sites(self) -> Iterator[tuple[Placement, Sublayer]]:
        for layer in self.layers:
            yield from layer.sites()  # type: ignore[operator]


class Encoder(_Stack):
    """x (B, S, D), mask (B, 1, 1, S) -> memory (B, S, D). `real` (B, S) is False at padding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, "encoder")

    def forward(self, x: Tensor, mask: Tensor, real: Tensor | None = None) -> Tensor:
        with self.tokens.during(mask[:, 0, 0] if real is None else real):
            return self.climb(x, lambda i: self.layers[i].connections(mask))  # type: ignore[operator]


class Decoder(_Stack):
    """x (B, T, D), memory (B, S, D) -> (B, T, D). Column t sees columns 0..t and the cache's past.

    With `attention_window` N its self-attention sees columns t - N + 1..t, so that a cache holds N of them.
    Source: Chelba et al. 2020, arXiv 2001.04589. An n-gram model in the strict sense predicts from n - 1
    tokens, which is N = n - 1 here: column t is the token before the one predicted. Of M layers the upper
    ones see through the lower: M (N - 1) + 1 columns in all.
    `real` (B, T) is False at padding.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, "decoder")
        self.window = config.attention_window

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        source_mask: Tensor,
        cache: DecoderCache | None = None,
        past: int = 0,
        real: Tensor | None = None,
    ) -> Tensor:
        length = x.shape[1]
        # Not `past == 0 and length > 1`: compiled with a length that varies, that would be no Python bool.
        causal = True if past == 0 and length > 1 else False  # noqa: SIM210
        target_mask = None
        if self.window is not None and past + length > self.window:
            causal, held = False, min(past, self.window)  # columns of the past that a cache holds
            target_mask = causal_mask(length, held, x.device, self.window) if length > 1 else None
        elif past and length > 1:
            target_mask = causal_mask(length, past, x.device)

        def connections(i: int) -> Iterator[Connection]:
            kept = cache.layers[i] if cache else None
            return self.layers[i].connections(memory, source_mask, target_mask, causal, kept)  # type: ignore

        with self.tokens.during(real, cache.norms if cache else None, past):
            return self.climb(x, connections)

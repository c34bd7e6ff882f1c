"""Multi-head attention over scaled_dot_product_attention, and what a decoding cache must offer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dropout import Dropout
from .masks import causal_mask

KeysValues = tuple[Tensor, Tensor]


class Cache(Protocol):
    """Keys and values (B, H, L, K) of one attention module, kept between decoding steps.

    Self-attention's cache calls `project` for the new columns and returns old and new together;
    cross-attention's calls it once, and from then on returns what it kept.
    """

    def extend(self, project: Callable[[], KeysValues]) -> KeysValues: ...


class LayerCache(Protocol):
    """The two caches of one decoder layer."""

    @property
    def self_attention(self) -> Cache: ...
    @property
    def cross_attention(self) -> Cache: ...


class DecoderCache(Protocol):
    """The caches of a decoder; `length` counts the target columns they hold already."""

    @property
    def length(self) -> int: ...
    @property
    def layers(self) -> Sequence[LayerCache]: ...


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, dropout: Dropout
) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V. (B, H, T, K), (B, H, S, K) twice -> (B, H, T, K).

    torch's kernel, but for bf16 gradients on a CPU: there the backward of the fused kernel takes several
    times as long as the plain products do (benchmarks/attention.py), so they are written out.
    """
    dropping = dropout.training and dropout.p > 0
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not query.requires_grad:
        probability = dropout.p if dropping else 0.0
        return F.scaled_dot_product_attention(query, keys, values, mask, probability, is_causal=causal)
    if causal:
        mask = causal_mask(query.shape[2], device=query.device)
    scores = (query @ keys.mT).float() * query.shape[-1] ** -0.5  # (B, H, T, S)
    if mask is not None:  # the smallest number, not -inf: a row that may attend to nothing stays finite
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights: Tensor = dropout(scores.softmax(-1))
    return weights.to(values.dtype) @ values


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(K)) V, in H heads, then the output projection.

    Source: Vaswani et al. 2017, section 3.2. Queries come from x (B, T, D); keys and values from
    memory (B, S, D), or from x itself when memory is None. Output (B, T, D).
    """

    def __init__(self, d_model: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        assert d_model % heads == 0
        self.heads, self.dropout = heads, Dropout(dropout)
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, d_model)

    def value_path(self) -> list[nn.Linear]:
        """The matrices between the branch's input and output that a placement's beta scales."""
        return [self.value, self.output]

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
    ) -> Tensor:
        """`mask` (B or 1, 1, T or 1, S), True = may attend. `causal` masks the future of a self-attention."""
        if memory is None:
            query, key, value = self._together((self.query, self.key, self.value), x)
            keys, values = cache.extend(lambda: (key, value)) if cache else (key, value)
        else:
            (query,) = self._together((self.query,), x)

            def project() -> KeysValues:
                key, value = self._together((self.key, self.value), memory)
                return key, value

            keys, values = cache.extend(project) if cache else project()
        attended = attend(query, keys, values, mask, causal, self.dropout)
        return self.output(attended.transpose(1, 2).flatten(2)).to(x.dtype)  # type: ignore[no-any-return]

    def _together(self, projections: tuple[nn.Linear, ...], x: Tensor) -> list[Tensor]:
        """Several projections of one input as one product: (B, L, D) -> (B, H, L, K) for each."""
        if len(projections) == 1:
            joined = projections[0](x)
        else:
            weight = torch.cat([p.weight for p in projections])
            bias = torch.cat([p.bias for p in projections])
            joined = F.linear(x, weight, bias)
        width = x.shape[-1] // self.heads
        split = joined.view(*x.shape[:2], len(projections), self.heads, width)  # (B, L, 3, H, K)
        return [part.transpose(1, 2) for part in split.unbind(2)]

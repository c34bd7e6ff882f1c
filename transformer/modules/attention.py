"""Multi-head attention over scaled_dot_product_attention, and what a decoding cache must offer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import operators
from .branch import Gains, Inner
from .dropout import Dropout
from .masks import causal_mask
from .norms import NormCache, NormFactory, at_least_float32
from .packed import PackedProducts
from .products import Linear, has_wide_vectors, linear
from .qk_norm import QKNorms

KeysValues = tuple[Tensor, Tensor]

_FEW_SCORES = 2048  # of a head: up to so many torch's kernel is not faster; beyond, it saves their memory
_VECTOR = 16  # float32 numbers in a vector of AVX-512


class Cache(Protocol):
    """Keys and values (B, H, L, K) of one attention module, kept between decoding steps.

    Self-attention's cache calls `project` for the new columns and returns old and new together;
    cross-attention's calls it once, and from then on returns what it kept: of rows, or of sentences that
    have equally many rows each, in order.
    """

    @property
    def held(self) -> Tensor | None:
        """True for those of self-attention's last `extend` that a row may see (B, 1, W, L); None: all."""
        ...

    def extend(self, project: Callable[[], KeysValues]) -> KeysValues: ...


class LayerCache(Protocol):
    """The two caches of one decoder layer."""

    @property
    def self_attention(self) -> Cache: ...
    @property
    def cross_attention(self) -> Cache: ...


class DecoderCache(Protocol):
    """The caches of a decoder; `length` counts the target columns they have seen already."""

    @property
    def length(self) -> int: ...
    @property
    def layers(self) -> Sequence[LayerCache]: ...
    @property
    def norms(self) -> NormCache: ...


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, dropout: Dropout
) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V. (B, H, T, K), (B, H, S, K) twice -> (B, H, T, K).

    torch's kernel, or written out where that is faster, in C during a search. `causal` is of T = S and goes
    without a mask. What a row gets that may attend to nothing is not defined.
    """
    assert not (causal and mask is not None)
    if not _faster_written_out(query, keys):
        probability = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(query, keys, values, mask, probability, is_causal=causal)
    if not (causal or dropout.training) and operators.can_attend(query, keys, values, mask):
        return operators.attend(query, keys, values, mask)
    if causal:
        mask = causal_mask(query.shape[2], device=query.device)
    scores = at_least_float32(query @ keys.mT).mul_(query.shape[-1] ** -0.5)  # (B, H, T, S)
    if mask is not None:  # the smallest number, not -inf: a row that may attend to nothing stays finite
        least = torch.finfo(scores.dtype).min
        scores += scores.new_zeros(mask.shape).masked_fill_(~mask, least)
    weights: Tensor = dropout(softmax(scores))
    return weights.to(values.dtype) @ values


def _faster_written_out(query: Tensor, keys: Tensor) -> bool:
    """On a CPU: few scores a head, and all of bf16 training (benchmarks/attention.py).

    The backward of torch's kernel takes several times as long in bf16.
    """
    if query.device.type != "cpu":
        return False
    if query.dtype == torch.bfloat16 and query.requires_grad:
        return True
    return not torch.compiler.is_compiling() and query.shape[2] * keys.shape[2] <= _FEW_SCORES


def softmax(scores: Tensor) -> Tensor:
    """`scores.softmax(-1)`, with AVX-512 rows shorter than a vector made one by -inf.

    torch's kernel goes through shorter rows number by number, which takes several times as long there; with
    AVX2, whose vectors are half as long, nothing is gained (benchmarks/levers.py).
    """
    missing = 0 if torch.compiler.is_compiling() else _VECTOR - scores.shape[-1]
    if missing <= 0 or scores.device.type != "cpu" or not has_wide_vectors():
        return scores.softmax(-1)
    return F.pad(scores, (0, missing), value=-torch.inf).softmax(-1)[..., :-missing]


def _by_sentence(query: Tensor, sentences: int) -> Tensor:
    """Rows (R, H, 1, K) that share the keys of `sentences` attend together, as columns: (B, H, R / B, K)."""
    if len(query) == sentences:
        return query
    heads, width = query.shape[1], query.shape[3]
    return query.transpose(1, 2).reshape(sentences, -1, heads, width).transpose(1, 2)


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(K)) V, in H heads, then the output projection.

    Source: Vaswani et al. 2017, section 3.2. Queries come from x (B, T, D); keys and values from
    memory (B, S, D), or from x itself when memory is None. Output (B, T, D). `inner` and `qk_norms` put norms
    on each head's queries, keys and values (K), a scale on each head and a norm on the joined heads (D).
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        dropout: float = 0.0,
        *,
        inner: Inner | None = None,
        make_norm: NormFactory | None = None,
        qk_norms: QKNorms = (None, None),
    ) -> None:
        super().__init__()
        assert d_model % heads == 0
        self.heads, self.dropout = heads, Dropout(dropout)
        inner = inner or Inner()
        self.query = Linear(d_model, d_model, bias=inner.bias)
        self.key = Linear(d_model, d_model, bias=inner.bias)
        self.value = Linear(d_model, d_model, bias=inner.bias)
        self.output = Linear(d_model, d_model, bias=inner.bias)
        width = d_model // heads
        self.query_norm = make_norm(width) if make_norm and inner.query else qk_norms[0]
        self.key_norm = make_norm(width) if make_norm and inner.key else qk_norms[1]
        self.value_norm = make_norm(width) if make_norm and inner.value else None
        self.inner_norm = make_norm() if make_norm and inner.norm else None
        self.head_scale = nn.Parameter(torch.ones(heads)) if inner.head_scale else None
        self.shift = nn.Parameter(torch.zeros(())) if inner.shift else None
        self.packed: PackedProducts | None = None  # in a model made for inference

    def initial_gains(self, gains: Gains) -> list[tuple[nn.Linear, float]]:
        """Each matrix with its gain: a placement's beta scales the path of the values."""
        query_key = [(matrix, gains.query_key) for matrix in (self.query, self.key)]
        return [*query_key, (self.value, gains.beta), (self.output, gains.last)]

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
            keys, values = self._keep(cache, lambda: self._normed(key, value))
            mask = cache.held if mask is None and cache is not None else mask
        else:
            (query,) = self._together((self.query,), x)
            keys, values = self._keep(
                cache, lambda: self._normed(*self._together((self.key, self.value), memory))
            )
        query = query if self.query_norm is None else self.query_norm(query)
        query = _by_sentence(query, len(keys))
        attended = attend(query, keys, values, mask, causal, self.dropout)  # (B, H, T, K)
        if self.head_scale is not None:
            attended = attended * self.head_scale[:, None, None].to(attended.dtype)
        joined = attended.transpose(1, 2).reshape(x.shape)  # (B, T, D)
        joined = joined if self.inner_norm is None else self.inner_norm(joined)
        joined = joined if self.shift is None else joined + self.shift.to(joined.dtype)
        return self.output(joined).to(x.dtype)  # type: ignore[no-any-return]

    def _keep(self, cache: Cache | None, project: Callable[[], KeysValues]) -> KeysValues:
        return cache.extend(project) if cache else project()

    def _normed(self, key: Tensor, value: Tensor) -> KeysValues:
        """Keys are normed before they are cached."""
        key = key if self.key_norm is None else self.key_norm(key)
        return key, value if self.value_norm is None else self.value_norm(value)

    def _together(self, projections: tuple[nn.Linear, ...], x: Tensor) -> list[Tensor]:
        """Several projections of one input as one product: (B, L, D) -> (B, H, L, K) for each."""
        if self.packed is not None:
            joined = self.packed.of(projections)(x).to(x.dtype)
        elif len(projections) == 1:
            joined = projections[0](x)
        else:
            weight = torch.cat([p.weight for p in projections])
            has_bias = projections[0].bias is not None
            joined = linear(x, weight, torch.cat([p.bias for p in projections]) if has_bias else None)
        width = x.shape[-1] // self.heads
        split = joined.view(*x.shape[:2], len(projections), self.heads, width)  # (B, L, 3, H, K)
        return [part.transpose(1, 2) for part in split.unbind(2)]

"""What is searched over: anything that gives the next token's log-probabilities.

Greedy search, beam search and sampling know this interface and nothing of Transformers, so that a toy
distribution, one model and an ensemble are searched by the same code.

R rows (hypotheses), B sentences, S source length, T target length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..core.errors import CheckpointError
from ..kernels import operators
from ..model.transformer import Transformer
from ..modules.masks import padding_mask
from .cache import DecoderCache


class Continuation(Protocol):
    """Hypotheses under way. It begins with one row per sentence, in order, and no column."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens (R,), the first of which are BOS -> log-probabilities (R, V) of what follows.

        The result belongs to the caller, who may write into it, until the next step.
        """
        ...

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was: reorders, repeats and drops rows."""
        ...


class NextToken(Protocol):
    """A conditional language model p(target | source), one token at a time."""

    @property
    def vocabulary(self) -> int: ...

    def start(self, source: Tensor) -> Continuation:
        """Source ids (B, S), right-padded -> a continuation of B rows."""
        ...

    def token_log_probs(self, source: Tensor, target_in: Tensor, target_out: Tensor) -> Tensor:
        """Log p(target_out[t] | source, target_in[..t]): (B, S), (B, T), (B, T) -> (B, T).

        What stands at padding columns is meaningless.
        """
        ...


class ModelNextToken:
    """A Transformer as NextToken: the source is encoded once, the steps are cached.

    `incremental=False` decodes the whole prefix at each step instead: slow, and the cache's oracle.
    """

    def __init__(self, model: Transformer, incremental: bool = True) -> None:
        self.model, self.incremental = model, incremental

    @property
    def vocabulary(self) -> int:
        return self.model.target_vocab

    def start(self, source: Tensor) -> Continuation:
        return (_Cached if self.incremental else _Uncached)(self.model, source)

    def token_log_probs(self, source: Tensor, target_in: Tensor, target_out: Tensor) -> Tensor:
        hidden = self.model.hidden(source, target_in)
        # One sentence at a time: (T, V) in memory, not (B, T, V).
        rows = [
            _log_softmax(self.model.project(h)).gather(1, out[:, None]).squeeze(1)
            for h, out in zip(hidden, target_out, strict=True)
        ]
        return torch.stack(rows)


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 at least: bf16 cannot tell probabilities apart. In C, which may write over the logits."""
    if operators.has("log_softmax") and logits.dtype != torch.float64:
        return operators.log_softmax_(logits.float().contiguous())
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


class _Cached:
    """Each step decodes one column."""

    def __init__(self, model: Transformer, source: Tensor) -> None:
        self.model, self.memory = model, model.encode(source)
        self.mask = padding_mask(source)
        config = model.config
        self.cache = DecoderCache(config.decoder_layers, len(source), source.device, config.attention_window)
        self.row_mask = self.mask

    def step(self, tokens: Tensor) -> Tensor:
        # Memory has a row per sentence: the cache reads it once, and serves rows from then on.
        hidden = self.model.decode(tokens[:, None], self.memory, self.row_mask, self.cache)
        return _log_softmax(self.model.project(hidden.squeeze(1)))

    def select(self, rows: Tensor) -> None:
        if (kept := self.cache.select(rows)) is not None:
            self.mask, self.memory = self.mask.index_select(0, kept), self.memory.index_select(0, kept)
        self.row_mask = self.cache.as_attended(self.mask)


class _Uncached:
    """Each step decodes all columns again."""

    def __init__(self, model: Transformer, source: Tensor) -> None:
        self.model, self.memory, self.mask = model, model.encode(source), padding_mask(source)
        self.prefix = source.new_empty(len(source), 0)

    def step(self, tokens: Tensor) -> Tensor:
        self.prefix = torch.cat([self.prefix, tokens[:, None]], dim=1)
        hidden = self.model.decode(self.prefix, self.memory, self.mask)
        return _log_softmax(self.model.project(hidden[:, -1]))

    def select(self, rows: Tensor) -> None:
        self.prefix = self.prefix.index_select(0, rows)
        self.memory, self.mask = self.memory.index_select(0, rows), self.mask.index_select(0, rows)


class Ensemble:
    """p = (p_1 + ... + p_n) / n, computed as log-sum-exp of the members' log-probabilities.

    Raises CheckpointError when the members' target vocabularies differ in size.
    """

    def __init__(self, members: Sequence[NextToken]) -> None:
        assert members
        sizes = [member.vocabulary for member in members]
        if len(set(sizes)) > 1:
            raise CheckpointError(
                f"models of an ensemble need one target vocabulary; theirs have {', '.join(map(str, sizes))}"
                " entries. Train them with the same tokenizer"
            )
        self.members = list(members)

    @property
    def vocabulary(self) -> int:
        return self.members[0].vocabulary

    def start(self, source: Tensor) -> Continuation:
        return _Together([member.start(source) for member in self.members])

    def token_log_probs(self, source: Tensor, target_in: Tensor, target_out: Tensor) -> Tensor:
        return _mean([m.token_log_probs(source, target_in, target_out) for m in self.members])


class _Together:
    def __init__(self, continuations: list[Continuation]) -> None:
        self.continuations = continuations

    def step(self, tokens: Tensor) -> Tensor:
        return _mean([continuation.step(tokens) for continuation in self.continuations])

    def select(self, rows: Tensor) -> None:
        for continuation in self.continuations:
            continuation.select(rows)


def _mean(log_probs: list[Tensor]) -> Tensor:
    """Log of the mean probability. Rounding must not lift a certain token above log 1 = 0."""
    if len(log_probs) == 1:
        return log_probs[0]
    joined = torch.stack(log_probs).logsumexp(0) - math.log(len(log_probs))
    return joined.clamp_(max=0.0)

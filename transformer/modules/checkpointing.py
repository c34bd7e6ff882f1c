"""Activation checkpointing: what a layer computes is forgotten, and made again when its gradients are."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.checkpoint import checkpoint

from .norms.base import Tokens
from .placements.base import Stream


def recomputed(run: Callable[[Stream], Stream], stream: Stream, tokens: Tokens) -> Stream:
    """`run(stream)`; of all that lies between, only `stream` is kept for the backward pass.

    The backward pass runs it once more, with the same random numbers and precision and what `tokens` says
    now, so that the gradients are the same to the bit. What `run` counts beside its result it counts twice.
    Source: Chen et al. 2016, arXiv 1604.06174.
    """
    real, past = tokens.real, tokens.past

    def again(stream: Stream) -> Stream:
        now = tokens.real, tokens.cache, tokens.past
        tokens.set(real, None, past)
        try:
            return run(stream)
        finally:
            tokens.set(*now)

    made: Stream = checkpoint(again, stream, use_reentrant=False)
    return made

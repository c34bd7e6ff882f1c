"""What Xiong et al. 2020 derive for a model at initialisation, in the dimensions of a real one.

Mean squares are per dimension. r = d_ff / d_model; a is the share of a value's variance that the average of
attention keeps: 1 where all tokens are alike, 1/n where n of them are independent. Matrices are Xavier with
gain 1, the activation is ReLU, biases are 0 and nothing is dropped. Then for a branch that reads unit mean
square,

    feed-forward   hidden: d 2/(d + d_ff) = 2/(1+r), half of it after ReLU; output: d_ff 2/(d + d_ff) times
                   that: v_ff = 2r / (1+r)^2
    attention      values: d 2/(2d) = 1, a of it after averaging, 1 times that after the output: v_att = a

Post-LN's last norm reads 1 + v_ff at every depth (lemma 2). Pre-LN's reads x0 + l c after l layers, where x0
is the embedding's mean square and c = v_att + v_ff in an encoder, 2 v_att + v_ff in a decoder. In the decoder
the gradient of the last feed-forward's W2 passes that norm alone and is divided by the root of what it reads
(theorem 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch

from ..model.config import ModelConfig
from ..model.pairing import norm_needs
from ..modules.norms import NORMS
from ..modules.placements import PLACEMENTS, Placement, Stack
from ..modules.placements.post import PostLN
from ..modules.placements.pre import PreLN

ATTENTION_PARTS = {"encoder": 1, "decoder": 2}
Law: TypeAlias = Callable[[ModelConfig, Stack, int, float], float]


def feedforward_variance(config: ModelConfig) -> float:
    """v_ff = 2r / (1+r)^2."""
    ratio = config.d_ff / config.d_model
    return 2 * ratio / (1 + ratio) ** 2


def embedding_mean_square(config: ModelConfig) -> float:
    """x0: sqrt(D) N(0, 1/D) has 1, sinusoids have 1/2, learned positions N(0, 1/D) have 1/D."""
    return 1 + (1 / config.d_model if config.positions == "learned" else 0.5)


def added_by_layer(config: ModelConfig, stack: Stack, attention: float) -> float:
    """c: what a Pre-LN layer adds to the mean square, with a = `attention`."""
    return feedforward_variance(config) + ATTENTION_PARTS[stack] * attention


# What the last norm of a stack reads when it is `layers` deep: by class, because each is a derivation.
LAST_NORM_READS: dict[type[Placement], Law] = {
    PostLN: lambda config, stack, layers, a: 1 + feedforward_variance(config),
    PreLN: lambda config, stack, layers, a: (
        embedding_mean_square(config) + layers * added_by_layer(config, stack, a)
    ),
}


def last_norm_reads(config: ModelConfig, stack: Stack, layers: int, attention: float) -> float | None:
    """The predicted mean square of what a stack's last norm reads; None where nothing was derived.

    That is: the placement is plain Post-LN or Pre-LN in every layer of the stack, its norms give unit mean
    square, and activation, embedding and initial values are those of this module's first lines.
    """
    here = {config.placement_of(stack, layer) for layer in range(config.layers_of(stack))}
    law = LAST_NORM_READS.get(PLACEMENTS[next(iter(here))]) if len(here) == 1 else None
    plain = config.activation == "relu" and not config.fix_norm and not config.embedding_norm_of(stack)
    if law is None or not plain or not _unit_mean_square(config, stack):
        return None
    return law(config, stack, layers, attention)


def last_gradient(config: ModelConfig, stack: Stack, layers: int, attention: float) -> float | None:
    """|dL/dW2| of the last feed-forward up to a factor that no depth changes: 1 / sqrt(last norm reads)."""
    reads = last_norm_reads(config, stack, layers, attention)
    return None if reads is None else 1 / math.sqrt(reads)


def _unit_mean_square(config: ModelConfig, stack: Stack) -> bool:
    """Do all norms of a stack return a mean square of 1 for one token's vector of any scale?"""
    needs = [need for need in norm_needs(config) if need.stack == stack]
    names = {config.norm_of(stack, need.layer, need.part) for need in needs}
    return all(_is_unit(name, config) for name in names)


def _is_unit(name: str, config: ModelConfig) -> bool:
    if NORMS[name].span != "token":
        return False
    norm = NORMS[name](config.d_model, config.norm_eps, **config.norm_options_of(name)).eval()
    draws = torch.randn(4, config.d_model, generator=torch.Generator().manual_seed(0))
    read = norm(torch.cat([draws, 3 * draws]))
    return bool((read.square().mean(-1) - 1).abs().max() < 0.01)

"""Initial values, each parameter's drawn from a generator of its own.

The generator is seeded by (seed, parameter name), so two models that differ in a norm or a placement
start from the same numbers wherever they share a name.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.seeding import derive_seed
from ..core.special import PAD
from ..modules.embeddings import LearnedPositions

if TYPE_CHECKING:
    from .transformer import Transformer


@torch.no_grad()
def initialize(model: Transformer, seed: int) -> None:
    """Xavier-uniform matrices times the placement's beta, N(0, 1/D) embeddings, zero biases.

    beta applies to the branch's value path (value, output and feed-forward matrices), query and key
    keep gain 1. Norms and gates keep the values their classes give them. Sources: Glorot and Bengio
    2010, eq. 16; embeddings as in Vaswani et al. 2017 with unit-variance logits when tied.
    """
    gains = {
        id(linear.weight): placement.gains.beta
        for placement, sublayer in model.sites()
        for linear in sublayer.value_path()
    }
    tables = {id(model.output_weight)}
    tables |= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | LearnedPositions)}
    linears = {id(p): p for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()}

    for name, parameter in model.named_parameters():
        draws = torch.Generator().manual_seed(derive_seed(seed, name))
        if id(parameter) in tables:
            normal(parameter, 1 / math.sqrt(parameter.shape[1]), draws)
        elif id(parameter) in linears and parameter.dim() == 2:
            xavier_uniform(parameter, gains.get(id(parameter), 1.0), draws)
        elif id(parameter) in linears:
            parameter.zero_()
    for embedding in model.modules():
        if isinstance(embedding, nn.Embedding):
            embedding.weight[PAD] = 0.0


def xavier_uniform(weight: Tensor, gain: float, generator: torch.Generator) -> None:
    """U(-a, a) with a = gain sqrt(6 / (fan_in + fan_out)); its variance is gain^2 2 / (fan_in + fan_out)."""
    bound = gain * math.sqrt(6 / sum(weight.shape))
    draws = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
    weight.copy_((2 * draws - 1) * bound)


def normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """N(0, std^2)."""
    weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64).mul_(std))

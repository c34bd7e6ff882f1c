"""Initial values, each parameter's drawn from a generator of its own.

The generator is seeded by (seed, parameter name), so two models that differ in a norm or a placement
start from the same numbers wherever they share a name.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.seeding import derive_seed
from ..core.special import PAD
from ..modules.embeddings import LearnedPositions, UnitEmbedding

if TYPE_CHECKING:
    from .transformer import Transformer


@torch.no_grad()
def initialize(model: Transformer, seed: int) -> None:
    """Xavier-uniform matrices and N(0, 1/D) embeddings, both times the placement's gains; zero biases.

    With FixNorm, where only directions count, token embeddings and output rows are U(-0.01, 0.01). Norms,
    gates and scales keep the values their classes give them. Sources: Glorot and Bengio
    2010, eq. 16; embeddings as in Vaswani et al. 2017 with unit-variance logits when tied.
    """
    if model.output_table.is_meta:  # shapes without numbers
        return
    gains = {
        id(linear.weight): gain
        for placement, sublayer in model.sites()
        for linear, gain in sublayer.initial_gains(placement.gains)
    }
    tables = {id(model.output_table): 1.0}
    modules = list(model.modules())
    tables |= {id(m.weight): 1.0 for m in modules if isinstance(m, (nn.Embedding, LearnedPositions))}
    tables |= embedding_gains(model)
    directions = {id(model.output_table)} if model.config.fix_norm else set()
    directions |= {id(m.weight) for m in modules if isinstance(m, UnitEmbedding)}
    linears = {id(p) for m in modules if isinstance(m, nn.Linear) for p in m.parameters()}
    generator = torch.Generator()

    def draws(name: str) -> torch.Generator:
        return generator.manual_seed(derive_seed(seed, name))

    for name, parameter in model.named_parameters():
        if id(parameter) in directions:
            uniform(parameter, 0.01, draws(name))
        elif id(parameter) in tables:
            normal(parameter, tables[id(parameter)] / math.sqrt(parameter.shape[1]), draws(name))
        elif id(parameter) in linears and parameter.dim() == 2:
            xavier_uniform(parameter, gains.get(id(parameter), 1.0), draws(name))
        elif id(parameter) in linears:
            parameter.zero_()
    for embedding in modules:
        if isinstance(embedding, nn.Embedding):
            embedding.weight[PAD] = 0.0


def embedding_gains(model: Transformer) -> dict[int, float]:
    """Gains of the token embeddings, by the identity of the table; one that is shared has the encoder's."""
    gains = {}
    for stack, embedding in (
        (model.decoder, model.target_embedding),
        (model.encoder, model.source_embedding),
    ):
        for placement, _ in islice(stack.sites(), 1):
            gain = placement.embedding_gain(placement.site.stack, placement.site.layers)
            gains[id(embedding.tokens.weight)] = gain
    return gains


def xavier_uniform(weight: Tensor, gain: float, generator: torch.Generator) -> None:
    """U(-a, a) with a = gain sqrt(6 / (fan_in + fan_out)); its variance is gain^2 2 / (fan_in + fan_out)."""
    uniform(weight, gain * math.sqrt(6 / sum(weight.shape)), generator)


def uniform(weight: Tensor, bound: float, generator: torch.Generator) -> None:
    """U(-bound, bound)."""
    draws = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
    weight.copy_((2 * draws - 1) * bound)


def normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """N(0, std^2)."""
    weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64).mul_(std))

"""The work that a training update or a translation cannot do without, and the least time it takes.

S and T are the lengths of a pair, D the model's width. Padding is not counted: it is no work that was asked
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.special import PAD
from ..model.config import ModelConfig
from ..model.cost import Cost
from .ceilings import Ceilings

# Reads of weight, gradient and two moments, writes of weight and moments, and the gradient written before.
_BYTES_OF_AN_UPDATE = 4 * 8


@dataclass(frozen=True)
class Work:
    """Floating-point operations of matrix products, and bytes that have to move."""

    operations: float
    bytes: float

    def seconds(self, ceilings: Ceilings, dtype: str) -> float:
        """No machine with these ceilings takes less, however well the two overlap."""
        return max(self.operations / ceilings.products[dtype], self.bytes / ceilings.copy)


def training_work(
    cost: Cost, config: ModelConfig, batches: Sequence[Any], updates: int | None = None
) -> Work:
    """Forward and twice as much backward on each of `batches`, and for each update Adam's arrays once.

    `updates`: how many these batches make; each is one unless that is told.
    """
    operations = 0.0
    for batch in batches:
        source = (batch.source != PAD).sum(1).double()
        target = (batch.target_out != PAD).sum(1).double()
        operations += cost.source * source.sum().item() + cost.target * target.sum().item()
        operations += _attention(config, source, target)
    steps = len(batches) if updates is None else updates
    return Work(3 * operations, _BYTES_OF_AN_UPDATE * cost.parameters * steps)


def _attention(config: ModelConfig, source: torch.Tensor, target: torch.Tensor) -> float:
    """Q K^T and its product with V: 4 D for each pair of positions; half of the decoder's are the future."""
    own = config.encoder_layers * source.square().sum() + config.decoder_layers * target.square().sum() / 2
    cross = config.decoder_layers * (source * target).sum()
    return 4.0 * config.d_model * (own + cross).item()


def translation_work(
    cost: Cost, config: ModelConfig, lines: Sequence[tuple[int, int]], beam: int, bytes_each: int
) -> Work:
    """Of translating lines of (S, steps), S with EOS, by weights of `bytes_each` bytes.

    Each step projects `beam` rows of a line, and reads their keys and values; the decoder's weights are read
    as often as the longest line has steps, as if all lines fitted into one batch.
    """
    operations = pairs = 0.0
    for source, steps in lines:
        seen = beam * steps * ((steps + 1) / 2 + source)  # columns that the rows attend to
        operations += cost.source * source + cost.target * beam * steps
        operations += (
            4.0 * config.d_model * (config.decoder_layers * seen + config.encoder_layers * source**2)
        )
        pairs += seen
    weights = cost.target / 2 * max(steps for _, steps in lines)
    return Work(operations, bytes_each * (weights + 2.0 * config.d_model * config.decoder_layers * pairs))

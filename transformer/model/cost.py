"""What a model costs, counted from the sizes of its matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .config import ModelConfig
from .transformer import Transformer


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of a forward pass: 2 for each entry of a matrix that a token meets.

    `source` is of a source token (encoder; keys and values of the cross-attention), `target` of a target
    token (decoder, output projection). Training takes about three times as many. The products of queries
    with keys and of weights with values are left out: they grow with the sentence.
    """

    parameters: int
    source: int
    target: int


def cost_of(config: ModelConfig, source_vocab: int, target_vocab: int) -> Cost:
    """Count a model of these sizes; it is built without memory for its numbers."""
    with torch.device("meta"):
        model = Transformer(source_vocab, target_vocab, config)
    source = target = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name == "output":
            continue
        from_memory = name.endswith(("cross_attention.key", "cross_attention.value"))
        if name.startswith("encoder.") or from_memory:
            source += 2 * module.weight.numel()
        else:
            target += 2 * module.weight.numel()
    return Cost(model.parameter_count(), source, target + 2 * config.d_model * target_vocab)

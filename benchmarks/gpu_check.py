"""The correctness of benchmarks/gpu.py: bf16 against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from transformer import Transformer
from transformer.core.errors import UserError
from transformer.modules.precision import autocast
from transformer.training.compilation import Compiled
from transformer.training.loss import sequence_loss

# Norm of the difference over the norm of the float64 numbers. One rounding to bf16 is about 2e-3; on a CPU
# these models are off by a third of these bounds at most.
BOUNDS = {"logits": 3e-2, "loss": 1e-3, "gradients": 1e-1}
PAIRS = [
    *(("post", "layer"), ("pre", "layer"), ("pre", "rms"), ("pre", "dyt"), ("deepnorm", "layer")),
    *(("sandwich", "rms"), ("resi_dual", "layer"), ("hyper", "layer"), ("reversible", "rms")),
]
COMPILED = ("pre", "layer")  # alone: compiling takes its time
CHECKED = {"d_model": 64, "heads": 4, "d_ff": 128, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
CHECKED_VOCABULARY = 200


def correctness(device: torch.device, compiled: bool) -> Iterator[dict[str, Any]]:
    """A row for each pair: relative errors, and whether they are within the bounds."""
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randint(4, CHECKED_VOCABULARY, (16, n), generator=generator) for n in (21, 19))
    source[:8, 15:], target[4:12, 12:] = 0, 0
    for placement, norm in PAIRS:
        sizes = CHECKED_VOCABULARY, CHECKED_VOCABULARY
        one, other = (Transformer(*sizes, placement=placement, norm=norm, seed=3, **CHECKED) for _ in "ab")
        exact = numbers(one.double(), source, target, torch.float32)
        for way in ("plain", "compiled") if (placement, norm) == COMPILED else ("plain",):
            row: dict[str, Any] = {"placement": placement, "norm": norm, "way": way}
            if way == "compiled" and not compiled:
                yield row | {"skipped": "--no-compile"}
                continue
            try:
                ours = numbers(other.to(device), source, target, torch.bfloat16, way == "compiled")
            except UserError as error:
                yield row | {"skipped": str(error).splitlines()[-1]}
                continue
            row |= {name: difference(ours[name], exact[name]) for name in BOUNDS}
            yield row | {"wrong": [name for name, bound in BOUNDS.items() if not row[name] <= bound]}


def numbers(
    model: Transformer, source: Tensor, target: Tensor, dtype: torch.dtype, compiled: bool = False
) -> dict[str, Tensor]:
    """Logits, loss and all gradients of one batch, on the CPU in float64."""
    device = model.output_weight.device
    source, target = source.to(device), target.to(device)
    model.zero_grad()
    with autocast(device, dtype):
        hidden = (Compiled(model) if compiled else model.hidden)(source, target[:, :-1])
        loss, _ = sequence_loss(hidden, model.output_weight, target[:, 1:], 0.1)
        logits = model.project(hidden.detach())
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    found = {"logits": logits, "loss": loss, "gradients": gradient}
    return {name: tensor.detach().cpu().double() for name, tensor in found.items()}


def difference(ours: Tensor, exact: Tensor) -> float:
    return ((ours - exact).norm() / exact.norm()).item()

"""Do both ways of a lever make the same update of a training? And batches that are not of like length."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.lever_training import Lever, Run
from transformer.core.special import PAD
from transformer.data.batching import collate
from transformer.training.trainer import Trainer

# Norm of the difference over the norm: of gradients, in bf16 and in float32; of what an update adds. After
# some updates of the small shape either way is 1e-4 from the gradients in float64.
NEAR = {torch.bfloat16: 2e-2, torch.float32: 5e-4}
SAME_STEP = 1e-2


@contextmanager
def put_back(trainer: Trainer) -> Iterator[None]:
    """Afterwards the trainer is as it was. Without dropout, which draws other numbers by design."""
    before = {
        "model": copy.deepcopy(trainer.model.state_dict()),
        "optimizer": copy.deepcopy(trainer.optimizer.state_dict()),
    }
    progress = copy.deepcopy(trainer.progress)
    trainer.model.eval()
    trainer.progress.update = 1  # the first is probed, for which no compiled model is taken
    try:
        yield
    finally:
        trainer.model.load_state_dict(before["model"])
        trainer.optimizer.load_state_dict(before["optimizer"])
        trainer.progress = progress
        trainer.window.clear()
        trainer.monitor.clear()
        trainer.model.train()


def updated(
    trainer: Trainer, run: Run, batches: Sequence[Any], instead: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Clipped gradients of an update, and what it adds to the weights, by those gradients or by others."""
    seen: list[Tensor] = []
    step = trainer.optimizer.step

    def caught() -> None:
        made = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.parameters]
        seen.append(torch.cat([gradient.flatten() for gradient in made]))
        if instead is not None:
            parts = instead.split([p.numel() for p in trainer.parameters])
            for p, part in zip(trainer.parameters, parts, strict=True):
                p.grad = part.view_as(p).clone()
        step()

    def weights() -> Tensor:
        return torch.cat([p.detach().flatten() for p in trainer.parameters])

    before = weights()
    with patch.object(trainer.optimizer, "step", caught):
        run(trainer, batches)
    (gradients,) = seen
    return gradients, weights() - before


def check(trainer: Trainer, lever: Lever, batches: Sequence[Any]) -> None:
    """AssertionError unless an update is the same to rounding: its gradients, and what it makes of them."""
    with lever.both(trainer):
        with put_back(trainer):
            gradients, step = updated(trainer, lever.run, batches[:1])
        with put_back(trainer), lever.off(trainer):
            others, other_step = updated(trainer, lever.run, batches[:1], gradients)
    bound = NEAR[trainer.passes.dtype]
    far = distance(others, gradients)
    assert far <= bound, f"{lever.text}: gradients differ by {far:.1e}, more than {bound:g}"
    far = distance(other_step, step)
    assert far <= SAME_STEP, f"{lever.text}: an update differs by {far:.1e}, more than {SAME_STEP:g}"


def distance(other: Tensor, ours: Tensor) -> float:
    return ((other - ours).norm() / ours.norm()).item()


# --- batches of like length, which is no switch but other batches

BUCKETS = "batches of like length (against pairs in random order, cut by the same budget)"


def pairs_of(batches: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
    """All pairs without padding and EOS."""
    return [
        ([t for t in source.tolist() if t != PAD][:-1], [t for t in target.tolist() if t != PAD][:-1])
        for batch in batches
        for source, target in zip(batch.source, batch.target_out, strict=True)
    ]


def in_random_order(batches: Sequence[Any], budget: int) -> list[Any]:
    """The same pairs, cut where rows x longest would exceed the budget, without sorting."""
    pairs = pairs_of(batches)
    order = np.random.default_rng(1).permutation(len(pairs))
    made: list[list[int]] = [[]]
    longest = 0
    for index in order:
        grown = max(longest, len(pairs[index][0]) + 1, len(pairs[index][1]) + 1)
        if made[-1] and grown * (len(made[-1]) + 1) > budget:
            made.append([])
            grown = max(len(pairs[index][0]) + 1, len(pairs[index][1]) + 1)
        made[-1].append(int(index))
        longest = grown
    cut = [collate([pairs[i] for i in rows], rows) for rows in made]
    assert sorted(pairs_of(cut)) == sorted(pairs)
    return cut

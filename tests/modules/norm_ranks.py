"""What each process of a distributed run does with its rows; a file of its own, so that it can be spawned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from norm_passes import run
from torch import Tensor, distributed

from transformer.modules.norms import NORMS, TokensNorm
from transformer.modules.norms.batch import added_over_ranks
from transformer.training.ranks import Processes

RUNS: list[tuple[str, dict[str, Any]]] = [("batch", {}), ("power", {"groups": 2, "warmup": 2})]
Step = tuple[Tensor, Tensor, Tensor]  # x (B, L, D), real (B, L), dL/dy (B, L, D)


def steps_of(name: str, options: dict[str, Any], steps: list[Step]) -> list[dict[str, Tensor]]:
    """Outputs, gradients and buffers of a norm after each of several training steps."""
    norm = NORMS[name](steps[0][0].shape[-1], 1e-3, **options).double()
    assert isinstance(norm, TokensNorm)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, len(norm.weight)))
    results = []
    for values, real, upstream in steps:
        x = values.clone().requires_grad_()
        norm.zero_grad()
        y = run(norm, x, real)
        y.backward(upstream)
        assert x.grad is not None
        gradients = {f"d{key}": value.grad.clone() for key, value in norm.named_parameters()}
        buffers = {key: value.clone() for key, value in norm.named_buffers()}
        results.append({"y": y.detach(), "dx": x.grad, **gradients, **buffers})
    return results


def work(rank: int, folder: str) -> None:
    """The rows of one rank, of two that talk over loopback."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    place = Path(folder)
    distributed.init_process_group("gloo", init_method=f"file://{place / 'meet'}", rank=rank, world_size=2)
    steps = torch.load(place / f"steps{rank}.pt", weights_only=True)
    ranks = Processes(rank, 2)
    with added_over_ranks(lambda x: ranks.sum(x)[0]):
        results = [steps_of(name, options, steps) for name, options in RUNS]
    torch.save(results, place / f"results{rank}.pt")
    distributed.destroy_process_group()

"""What an optimizer takes up from a file: moments that are like its own would be, and no settings.

A fused kernel does not ask how large a tensor is, and reads on beyond one that is too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .optimizers import MuonWithAdamW

Shape = tuple[int, ...]


def fitting(saved: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The state dict `saved`, whole, with the settings of `optimizer`: those are the configuration's.

    The learning rate alone, which the schedule has set, is the file's. How an update is computed may change:
    tensors that are cut over processes have other kernels.
    ValueError if groups are of other parameters, or a moment is not what this rule keeps of its parameter.
    """
    if isinstance(optimizer, MuonWithAdamW):
        pairs = zip(saved["parts"], optimizer.parts, strict=True)
        return {"parts": [fitting(part, each) for part, each in pairs]}
    groups = []
    shapes: dict[int, tuple[Shape, dict[str, Shape]]] = {}
    for ours, theirs, made in zip(
        optimizer.param_groups, saved["param_groups"], optimizer.state_dict()["param_groups"], strict=True
    ):
        rate = theirs["lr"]
        if theirs["params"] != made["params"] or type(rate) not in (int, float) or not math.isfinite(rate):
            raise ValueError(f"a group of the optimizer has the rate {rate!r}, for {theirs['params']!r}")
        groups.append({**made, "lr": rate})
        kept = {ndim: _kept(optimizer, ours, ndim) for ndim in {p.ndim for p in ours["params"]}}
        for index, parameter in zip(made["params"], ours["params"], strict=True):
            shapes[index] = tuple(parameter.shape), kept[parameter.ndim]
    for index, moments in saved["state"].items():
        shape, kept_of_it = shapes[index]
        if set(moments) != set(kept_of_it):
            raise ValueError(f"the optimizer has {', '.join(map(str, moments))} of parameter {index}")
        for name, moment in moments.items():
            _require(moment, name, shape, kept_of_it[name])
    return {"param_groups": groups, "state": saved["state"]}


def _kept(optimizer: Optimizer, group: Mapping[str, Any], ndim: int) -> dict[str, Shape]:
    """What this rule keeps of a parameter of shape (2, 3, 4, ...), told by a step of it: names and shapes."""
    parameter = nn.Parameter(torch.zeros(tuple(range(2, 2 + ndim))))
    parameter.grad = torch.zeros_like(parameter)
    kind: Any = type(optimizer)
    other = kind([{**group, "params": [parameter]}])
    other.step()
    return {name: tuple(each.shape) for name, each in other.state[parameter].items()}


def _require(moment: Any, name: str, shape: Shape, kept: Shape) -> None:
    """ValueError if a moment is no plain tensor of the shape that `kept` tells of a parameter of `shape`."""
    if len(kept) == len(shape):
        kept = tuple(size if each > 1 else each for each, size in zip(kept, shape, strict=True))
    plain = isinstance(moment, Tensor) and moment.layout is torch.strided and moment.is_floating_point()
    alike = plain and (tuple(moment.shape) == kept or moment.numel() == math.prod(kept) == 1)
    if not (alike and moment.device.type == "cpu" and moment.is_contiguous()):
        found = f"of shape {tuple(moment.shape)}" if plain else repr(moment)[:60]
        raise ValueError(f"{name} of the optimizer is {found}, for a parameter of shape {shape}")

"""SHA-256 of what a training is at an update: equal hashes are equal tensors and numbers, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

HASHED = ("optimizer", "schedule", "progress", "window")  # parts of a trainer's state, beside the weights
CLOCKS = {
    ("progress", "seconds"),
    ("progress", "training_seconds"),
    ("window", "seconds"),
}
SHOWN = 16  # hexadecimal digits of a hash in messages


def state_hash(weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    """Hash of weights, optimizer, schedule, counters and sums since the last log line; no clock is in it.

    64 hexadecimal digits, the same on every device and for every order of keys. Two runs that have the same
    one go on alike, if configuration, data and machine are alike. Other parts of `state` do not count.
    """
    found = hashlib.sha256()
    for line in lines_of(weights, state):
        found.update(line.encode() + b"\n")
    return found.hexdigest()


def lines_of(weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> Iterator[str]:
    """What `state_hash` is made of: a line for each tensor and number, with its path, type and value."""
    seen: dict[object, str] = {}  # tied weights are one tensor under several names
    parts = {part: state[part] for part in HASHED if part in state}
    for path, value in leaves({"weights": weights, **parts}):
        if path[:2] in CLOCKS:
            continue
        if isinstance(value, Tensor):
            place = value.device, value.data_ptr(), value.shape, value.stride(), value.dtype
            text = seen.get(place) or tensor_digest(value)
            seen[place] = text
        else:
            text = value.hex() if isinstance(value, float) else repr(value)
        yield f"{'/'.join(path)} {type(value).__name__} {text}"


def tensor_digest(tensor: Tensor) -> str:
    """`float32 (3, 4) HASH`: type, shape and SHA-256 of the bytes in row-major order."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {tuple(tensor.shape)} {hashlib.sha256(data.data).hexdigest()}"


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Everything that is not a container, with the keys that lead to it."""
    if isinstance(value, Mapping):
        yield (*path, "{}"), len(value)
        for key in sorted(value, key=repr):
            yield from leaves(value[key], (*path, f"{key!r}" if not isinstance(key, str) else key))
    elif isinstance(value, list | tuple):
        yield (*path, "[]"), len(value)
        for index, item in enumerate(value):
            yield from leaves(item, (*path, str(index)))
    else:
        yield path, value

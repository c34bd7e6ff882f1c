"""What a machine can do at most: measured, in the same process as what is held against it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..modules.int8 import way_for
from ..modules.products import multiply

# rows, inner, columns of a product: as a feed-forward's, and as large as products get
_SHAPES = {"cpu": ((4096, 512, 1024), (1024, 2048, 2048)), "cuda": ((8192, 1024, 4096), (8192, 8192, 8192))}
_COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}  # bytes: beyond every cache


@dataclass(frozen=True)
class Ceilings:
    """`products`: FLOP/s of matrix products by number format. `copy`: bytes/s, read and written together."""

    products: Mapping[str, float]
    copy: float


def measure_ceilings(device: torch.device, dtypes: Sequence[torch.dtype], seconds: float = 0.4) -> Ceilings:
    """Time large products and a large copy on `device`, `seconds` for each, with the threads that are set.

    Of a float32 product that two libraries offer (modules/products.py) the faster counts.
    """
    products = {}
    for dtype in dtypes:
        rates = []
        for rows, inner, columns in _SHAPES[device.type]:
            one = torch.randn(rows, inner, device=device).to(dtype)
            other = torch.randn(columns, inner, device=device).to(dtype)
            for product in _products(one, other):
                took = fastest(product, device, seconds)
                rates.append(2 * rows * inner * columns / took)
        products[name_of(dtype)] = max(rates)
    there = torch.empty(_COPIED[device.type], dtype=torch.uint8, device=device)
    here = torch.zeros_like(there)
    took = fastest(lambda: there.copy_(here), device, seconds)
    return Ceilings(products, 2 * there.numel() / took)


def _products(one: Tensor, other: Tensor) -> Sequence[Callable[[], Tensor]]:
    """The ways to multiply one (rows, inner) by other (columns, inner), of which the fastest counts."""
    if one.dtype == torch.int8:
        return [partial(way_for(other.shape[1]).scaled(other, torch.ones(len(other))), one)]
    ways: list[Callable[[], Tensor]] = [partial(F.linear, one, other)]
    return [*ways, partial(multiply, one, other)] if one.dtype == torch.float32 else ways


def name_of(dtype: torch.dtype) -> str:
    """`float32`, `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of one call: the median of the fastest quarter, after two calls that do not count."""
    took: list[float] = []
    calls, end = 0, time.perf_counter() + seconds
    while len(took) < 3 or time.perf_counter() < end:
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        calls += 1
        if calls > 2:
            took.append(time.perf_counter() - begin)
    return statistics.median(sorted(took)[: max(len(took) // 4, 1)])

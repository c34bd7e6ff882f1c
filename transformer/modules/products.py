"""Matrix products in float32 on a CPU, above all while training.

torch hands them to a library (MKL) that falls back to narrow vector instructions on processors of other
makers; oneDNN, which torch has aboard, does not, and is about twice as fast there (benchmarks/levers.py).
Its products are float32 as well: only the order of the sums differs.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Multiplications from which on it pays to make a kernel for a shape.
_LARGE = 1 << 22


class Linear(nn.Linear):
    """x W^T + b: torch's Linear, by the fastest product that there is."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b for x (..., in), W (out, in), b (out).

    While gradients are recorded, large float32 products on a CPU are oneDNN's, those of the backward pass
    included. Without gradients it is torch's own, so that a row's result never depends on the rows beside it.
    """
    if not (torch.is_grad_enabled() and _is_for_onednn(x, weight)):
        return F.linear(x, weight, bias)
    rows: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), weight)  # type: ignore[no-untyped-call]
    made = rows.view(*x.shape[:-1], len(weight))
    return made if bias is None else made + bias


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T of matrices (rows, in) and (out, in), which may be transposed views; without a gradient."""
    if _is_for_onednn(x, weight):
        return onednn(x, weight)
    return x @ weight.T


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * len(weight) >= _LARGE
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and has_onednn()
    )


class _Product(torch.autograd.Function):
    """x W^T of matrices. Its backward pass is made of itself, so it has derivatives of any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = _Product.apply(gradient, weight.T) if ctx.needs_input_grad[0] else None  # type: ignore[no-untyped-call]
        of_weight = _Product.apply(gradient.T, x.T) if ctx.needs_input_grad[1] else None  # type: ignore[no-untyped-call]
        return of_x, of_weight


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b by the kernel that `has_onednn` asks for; without a gradient."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


@cache
def has_onednn() -> bool:
    """Has this torch the kernel on this machine? Asked by a product of ones."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        with torch.no_grad():
            return bool((onednn(torch.ones(2, 3), torch.ones(4, 3)) == 3).all())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False

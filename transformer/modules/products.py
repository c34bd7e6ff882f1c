"""Matrix products on a CPU, above all while training.

In float32 torch hands them to a library (MKL) that leaves AVX-512 unused on processors of other makers;
oneDNN, which torch has aboard, does not, and is faster there (benchmarks/levers.py). With AVX2 MKL is the
faster one. oneDNN's products are float32 as well: only the order of the sums differs.

In bf16 torch takes oneDNN, which makes a kernel for each size. With AMX that takes long, and products of few
sizes are faster; with AVX512-BF16 they are not.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Multiplications from which on it pays to make a kernel for a shape.
_LARGE = 1 << 22

ROWS, INNER, OUT = range(3)  # extents of a product (rows, inner) (out, inner)^T


class Linear(nn.Linear):
    """x W^T + b: torch's Linear, by the fastest product that there is."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b for x (..., in), W (out, in), b (out); under autocast in its number format.

    While gradients are recorded, large products on a CPU are made as `multiply` does, those of the backward
    pass included. Without gradients it is torch's own, so that a row's result never depends on the rows
    beside it.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if not (torch.is_grad_enabled() and _is_ours(dtype, x, weight)):
        return F.linear(x, weight, bias)
    factors = x.reshape(-1, x.shape[-1]).to(dtype), weight.to(dtype)
    rows: Tensor = _Product.apply(*factors, ROWS)  # type: ignore[no-untyped-call]
    if bias is not None:
        rows += bias.to(dtype)
    return rows.view(*x.shape[:-1], len(weight))


def multiply(x: Tensor, weight: Tensor, varying: int | None = None) -> Tensor:
    """X W^T of matrices (rows, inner) and (out, inner), which may be transposed views; without a gradient.

    `varying`: ROWS, INNER or OUT, the extent that is another one in each batch, and is then rounded.
    """
    if not _is_ours(x.dtype, x, weight):
        return x @ weight.T
    if x.dtype == torch.float32:
        return onednn(x, weight)
    if varying == OUT:
        return _rounded_rows(weight, x).T
    if varying == INNER:
        return _rounded_inner(x, weight)
    return x @ weight.T if varying is None else _rounded_rows(x, weight)


def _rounded_rows(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T by two products, whose numbers of rows are multiples of `_step`."""
    step = _step(len(x))
    whole = len(x) // step * step
    if whole == len(x):
        return x @ weight.T
    product = x.new_empty(whole + step, len(weight))
    if whole:
        torch.mm(x[:whole], weight.T, out=product[:whole])
    torch.mm(_lengthened(x[whole:], step), weight.T, out=product[whole:])
    return product.resize_(len(x), len(weight))  # the same memory


def _rounded_inner(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T by two products, whose inner extents are multiples of `_step`; their sum is rounded once more."""
    inner = x.shape[1]
    step = _step(inner)
    whole = inner // step * step
    if whole == inner:
        return x @ weight.T
    rest = _lengthened(x[:, whole:].T, step).T @ _lengthened(weight[:, whole:].T, step)
    if not whole:
        return rest
    return torch.mm(x[:, :whole], weight[:, :whole].T).float().add_(rest).to(x.dtype)


def _step(extent: int) -> int:
    """What `extent` is rounded to: a power of two, of which eight to sixteen go into it."""
    return 1 << max(5, extent.bit_length() - 4)


def _lengthened(x: Tensor, rows: int) -> Tensor:
    """`x` and rows of zeros."""
    return F.pad(x, (0, 0, 0, rows - len(x)))


def _is_ours(dtype: torch.dtype, x: Tensor, weight: Tensor) -> bool:
    return (
        x.numel() * len(weight) >= _LARGE
        and not torch.compiler.is_compiling()
        and makes_kernels(dtype, x.device)
    )


class _Product(torch.autograd.Function):
    """x W^T of matrices. Its backward pass is made of itself, so it has derivatives of any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, varying: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.varying = varying
        return multiply(x, weight, varying)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:  # (rows, out) (out, inner)
            varying = {ROWS: ROWS, INNER: OUT, OUT: INNER}[ctx.varying]
            of_x = _Product.apply(gradient, weight.T, varying)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:  # (out, rows) (rows, inner)
            varying = {ROWS: INNER, INNER: OUT, OUT: ROWS}[ctx.varying]
            of_weight = _Product.apply(gradient.T, x.T, varying)  # type: ignore[no-untyped-call]
        return of_x, of_weight, None


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


@cache
def _prefers_onednn() -> bool:
    """Is oneDNN the faster library for float32 here? Not where MKL is at home, nor where both have AVX2."""
    return has_onednn() and has_wide_vectors() and "GenuineIntel" not in processor()


def has_wide_vectors() -> bool:
    """Are torch's kernels those of AVX-512 here?"""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def makes_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Is a large product `multiply`'s own, which begins with making a kernel for its size?"""
    if device.type != "cpu":
        return False
    return _prefers_onednn() if dtype == torch.float32 else dtype == torch.bfloat16 and has_tiles()


@cache
def has_tiles() -> bool:
    """Are products in bf16 AMX's here?"""
    return has_onednn() and getattr(torch.cpu, "_is_amx_tile_supported", bool)()


@cache
def processor() -> str:
    """What the system says of its processor: maker, family and model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    told = (line.partition(":")[2].strip() for line in lines if line.startswith(("vendor_id", "model name")))
    return " ".join(dict.fromkeys(told))

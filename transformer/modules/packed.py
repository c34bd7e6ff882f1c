"""Matrix products for inference on a CPU: weights joined and cast once, and oneDNN's kernels.

oneDNN's float32 product is exact float32 and, on processors where the default library falls back to narrow
instructions, more than twice as fast. A row's result does not depend on which rows stand beside it.

Weights are not reordered for the kernel beforehand: that would gain another 4 %, and such a weight can only
be used with the number of threads that it was made with.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Product = Callable[[Tensor], Tensor]  # (..., in) -> (..., out)


@cache
def has_packed_products() -> bool:
    """Does this torch, on this machine, have the kernels? Asked by a product of ones."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        with torch.no_grad():
            return float(_product(torch.ones(2, 3), None, torch.float32)(torch.ones(1, 3))[0, 1]) == 3.0
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _product(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Product:
    """The product with W (out, in) and b, in `dtype`, float32 or bf16."""
    weight = weight.detach().to(dtype).contiguous()
    bias = None if bias is None else bias.detach().to(dtype)
    if dtype != torch.float32:
        return lambda x: F.linear(x.to(dtype), weight, bias)
    kernel = torch.ops.mkldnn._linear_pointwise
    return lambda x: kernel(x, weight, bias, "none", [], "")


class PackedProducts:
    """The products of one model, each made when it is first asked for.

    Weights are joined and cast then and never again: `stale` tells when one of `parameters` has changed.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._parameters = list(parameters)
        self._seen = self._versions()
        self._products: dict[tuple[int, ...], Product] = {}

    def _versions(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self._parameters]

    @property
    def stale(self) -> bool:
        return self._seen != self._versions()

    def of(self, linears: Sequence[nn.Linear]) -> Product:
        """Projections of one input as one product: x -> all their outputs, side by side."""
        key = tuple(map(id, linears))
        if key not in self._products:
            weight = torch.cat([linear.weight for linear in linears])
            biased = linears[0].bias is not None
            bias = torch.cat([linear.bias for linear in linears]) if biased else None
            self._products[key] = _product(weight, bias, self.dtype)
        return self._products[key]

    def by(self, weight: Tensor, of: Callable[[], Tensor]) -> Product:
        """The product with the weight (out, in) that `of` makes out of a parameter."""
        key = (id(weight),)
        if key not in self._products:
            self._products[key] = _product(of(), None, self.dtype)
        return self._products[key]


class PackedLinear(nn.Module):
    """In place of a Linear whose weight stays where it is."""

    def __init__(self, linear: nn.Linear, products: PackedProducts) -> None:
        super().__init__()
        self.product = products.of([linear])
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)

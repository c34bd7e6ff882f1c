"""Matrix products for inference on a CPU: each weight laid out once, in the order that the kernel reads.

oneDNN's float32 product of a weight laid out beforehand is exact float32 and, on processors where the
default library falls back to narrow instructions, more than twice as fast. Its result for a row does not
depend on the rows beside it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]  # (..., in) -> (..., out)


@cache
def has_packed_products() -> bool:
    """Does this torch, on this machine, have the kernels? Asked by a product of ones."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        with torch.no_grad():
            return float(_laid_out(torch.ones(2, 3), None, torch.float32)(torch.ones(1, 3))[0, 1]) == 3.0
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _laid_out(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Product:
    """X -> x W^T + b in `dtype`, W (out, in) laid out for the kernel."""
    kernels = torch.ops.mkldnn
    packed = kernels._reorder_linear_weight(weight.detach().to(dtype), None)
    bias = None if bias is None else bias.detach().to(dtype)
    return lambda x: kernels._linear_pointwise(x.to(dtype), packed, bias, "none", [], "")


class PackedProducts:
    """The products of one model, each laid out when it is first asked for.

    Weights are read then and never again: `stale` tells when one of `parameters` has changed since.
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
            self._products[key] = _laid_out(weight, bias, self.dtype)
        return self._products[key]

    def by(self, weight: Tensor, of: Callable[[], Tensor]) -> Product:
        """The product with the weight (out, in) that `of` makes out of a parameter."""
        key = (id(weight),)
        if key not in self._products:
            self._products[key] = _laid_out(of(), None, self.dtype)
        return self._products[key]


class PackedLinear(nn.Module):
    """In place of a Linear whose weight stays where it is."""

    def __init__(self, linear: nn.Linear, products: PackedProducts) -> None:
        super().__init__()
        self.product = products.of([linear])
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)

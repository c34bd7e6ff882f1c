"""Matrix products for inference on a CPU: weights joined and cast once, by the fastest library.

In float32 that is oneDNN with AVX-512, unless there is little to multiply, and torch's default with AVX2
(benchmarks/levers.py). Both are float32.

Weights are not reordered for oneDNN beforehand: such a weight can only be used with the number of threads
that it was made with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .int8 import int8_product
from .products import has_wide_vectors, onednn

Product = Callable[[Tensor], Tensor]  # (..., in) -> (..., out)

# Multiplications from which on oneDNN's product is not slower than torch's: a call takes it 10 us longer.
_LARGE = 1 << 20


class PackedProducts:
    """The products of one model in `dtype`, float32, bf16 or int8, each made when it is first asked for.

    They hold the weights as those are then, until `forget`.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._made: dict[tuple[int, ...], Product] = {}

    def of(self, linears: Sequence[nn.Linear]) -> Product:
        """Projections of one input as one product: x -> all their outputs, side by side."""
        key = tuple(id(linear.weight) for linear in linears)
        return self._made.get(key) or self._keep(key, _product(*_joined(linears), self.dtype))

    def by(self, table: Tensor, of: Callable[[], Tensor]) -> Product:
        """The product with the matrix (V, in) that `of` makes of the vocabulary's table."""
        key = (id(table),)
        return self._made.get(key) or self._keep(key, _table_product(of(), self.dtype))

    def forget(self) -> None:
        """Read the weights anew when they are next asked for."""
        self._made.clear()

    def _keep(self, key: tuple[int, ...], product: Product) -> Product:
        self._made[key] = product
        return product


class PackedLinear(nn.Module):
    """In place of a Linear whose weight stays where it is."""

    def __init__(self, linear: nn.Linear, products: PackedProducts) -> None:
        super().__init__()
        self.linear, self.products = linear, products

    def forward(self, x: Tensor) -> Tensor:
        return self.products.of([self.linear])(x)


def _joined(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """The weights and the biases of several, one below the other."""
    if len(linears) == 1:
        return linears[0].weight, linears[0].bias
    weight = torch.cat([linear.weight for linear in linears])
    return weight, None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])


def _product(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Product:
    """The product with W (out, in) and b."""
    if dtype == torch.int8:
        return int8_product(weight, bias)
    weight = weight.detach().to(dtype).contiguous()
    bias = None if bias is None else bias.detach().to(dtype)
    if dtype != torch.float32 or not has_wide_vectors():
        return lambda x: F.linear(x.to(dtype), weight, bias)
    large = _LARGE // len(weight)
    return lambda x: onednn(x, weight, bias) if x.numel() >= large else F.linear(x, weight, bias)


def _table_product(table: Tensor, dtype: torch.dtype) -> Product:
    """With a vocabulary's (V, in): torch's default library is faster by a transposed copy."""
    if dtype != torch.float32 or has_wide_vectors():
        return _product(table, None, dtype)
    columns = table.detach().T.contiguous()
    return lambda x: x @ columns

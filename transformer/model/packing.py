"""A model for inference on a CPU: the same parameters, its matrices joined and cast once."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn

from ..modules.attention import MultiHeadAttention
from ..modules.packed import PackedLinear, PackedProducts, has_packed_products
from .transformer import Transformer


def can_be_laid_out(model: Transformer) -> bool:
    """float32 parameters on a CPU that has the kernels."""
    plain = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    return plain and has_packed_products()


class LaidOut:
    """`model`, in evaluation mode, shares the parameters and buffers of the one it was made from.

    Its matrix products are computed in `dtype`, float32 or bf16; stream, norms and attention are float32.
    `again` makes one more with the same products, for another thread: norms over tokens keep a pass's state
    in the model.
    """

    def __init__(
        self, model: Transformer, dtype: torch.dtype, products: PackedProducts | None = None
    ) -> None:
        self._made_from = model, dtype
        self._products = products or PackedProducts(model.parameters(), dtype)
        shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
        self.model = copy.deepcopy(model, shared).eval()
        self.model.packed = self._products
        for module in list(self.model.modules()):
            if isinstance(module, MultiHeadAttention):
                module.packed = self._products
                module.add_module("output", PackedLinear(module.output, self._products))
            elif not isinstance(module, (PackedLinear, Transformer)):
                for name, child in module.named_children():
                    if isinstance(child, nn.Linear):
                        module.add_module(name, PackedLinear(child, self._products))

    def again(self) -> LaidOut:
        return LaidOut(*self._made_from, self._products)

    @property
    def stale(self) -> bool:
        """Have the parameters changed since their matrices were read?"""
        return self._products.stale

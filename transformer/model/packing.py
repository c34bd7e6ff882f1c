"""A model for inference on a CPU: the same parameters, its matrices joined and cast once."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from ..modules.attention import MultiHeadAttention
from ..modules.packed import PackedLinear, PackedProducts
from ..modules.products import has_onednn
from .transformer import Transformer


def can_be_packed(model: Transformer) -> bool:
    """float32 parameters on a CPU that has the kernels."""
    plain = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    return plain and has_onednn()


class Packed:
    """Copies of a model, in evaluation mode, that share its parameters and buffers and one set of products.

    Matrix products are computed in `dtype`, float32, bf16 or int8; stream, norms and attention are float32.
    Each thread needs a copy of its own: norms over tokens keep a pass's state in the model.
    """

    def __init__(self, model: Transformer, dtype: torch.dtype) -> None:
        self.products = PackedProducts(dtype)
        self._model, self._tensors = model, _tensors(model)

    @property
    def fits(self) -> bool:
        """Does the model still consist of the tensors that it consisted of, whatever stands in them?"""
        return _tensors(self._model).keys() == self._tensors.keys()

    def copy(self) -> Transformer:
        copied = copy.deepcopy(self._model, dict(self._tensors)).eval()
        copied.packed = self.products
        for module in list(copied.modules()):
            if isinstance(module, MultiHeadAttention):
                module.packed = self.products
                module.add_module("output", PackedLinear(module.output, self.products))
            elif module is not copied:
                for name, child in module.named_children():
                    if isinstance(child, nn.Linear):
                        module.add_module(name, PackedLinear(child, self.products))
        return copied


def _tensors(model: Transformer) -> dict[int, Tensor]:
    """Parameters and buffers by their identity, as `copy.deepcopy` keeps what it has copied."""
    return {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}

"""FSDP2: a slice of every tensor in each process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ..model.transformer import Transformer
from ..modules.norms.batch import added_over_ranks
from .checkpoint import set_weights
from .layouts import Whole, adding, frozen_copy
from .moments import fitting
from .ranks import Processes


class Sharded(Whole):
    """Weights, gradients and moments in slices along each tensor's first dimension (fully_shard).

    A sublayer and its norms are one group, gathered when they run, forward and backward; embeddings, the
    norms at the top and the output are another, there during the whole pass. Between passes there are slices
    only. The chief has one more copy of the weights, whole, with which it validates; so the weights alone
    must fit into one device.
    Source: Zhao et al. 2023, arXiv 2304.11277, in torch's second form.
    """

    probed, cuts = False, False

    def __init__(self, model: Transformer, label_smoothing: float, ranks: Processes) -> None:
        super().__init__(model, label_smoothing, ranks)
        self.device = model.output_weight.device
        self.twin = frozen_copy(model) if ranks.chief else None
        scalars = _as_vectors(model)
        # ReZero hands its gate on through every sublayer. Nothing here is changed in place.
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(self.device.type, (ranks.size,))
        for placement, sublayer in model.sites():
            fully_shard([placement, sublayer], mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        register_fsdp_forward_method(model, "hidden")
        assert isinstance(model, FSDPModule)
        self.cut: FSDPModule = model
        for module in model.modules():
            if isinstance(module, FSDPModule):  # the sum of the ranks' gradients, not their mean
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self.scalars = {id(p) for name, p in model.named_parameters() if name in scalars}

    @contextmanager
    def passing(self, last: bool) -> Iterator[None]:
        self.cut.set_requires_gradient_sync(last)
        with added_over_ranks(adding(self.ranks)):
            yield

    def weights(self) -> dict[str, Tensor]:
        names = {name: id(p) for name, p in self.model.named_parameters(remove_duplicate=False)}
        gathered: dict[int, Tensor] = {}  # tied tensors once, so that they are written once
        whole: dict[str, Tensor] = {}
        for name, tensor in self.model.state_dict().items():
            key = names.get(name, id(tensor))
            if key not in gathered:
                gathered[key] = self._gathered(tensor, key)
            whole[name] = gathered[key]
        return whole

    def load(self, weights: Mapping[str, Tensor], source: str) -> None:
        ours = self.model.state_dict()
        set_weights(self.model, {name: _like(ours.get(name), each) for name, each in weights.items()}, source)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        ours = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        moments = {
            index: {name: self._gathered(each, ours[index]) for name, each in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": moments}

    def load_optimizer(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        state = fitting(state, optimizer)
        ours = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = {
            index: {
                name: _like(ours[index], each) if torch.is_tensor(each) and name != "step" else each
                for name, each in values.items()
            }
            for index, values in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": moments})

    def whole(self, weights: Mapping[str, Tensor] | None = None) -> Transformer:
        assert self.twin is not None, "only the chief has the whole model"
        self.twin.to(self.device)
        if weights is not None:
            set_weights(self.twin, weights, "the gathered weights")
        return self.twin

    def number(self, x: Tensor) -> Tensor:
        return x.full_tensor() if isinstance(x, DTensor) else x

    def _gathered(self, each: Any, parameter: int) -> Any:
        """A slice made whole, in the CPU's memory of the chief; others take part and forget it.

        `parameter`: the id of the one that it is, or is a moment of.
        """
        if not isinstance(each, DTensor):
            return each
        whole = each.full_tensor().detach()
        if not self.ranks.chief:
            return whole.new_empty(0)
        return whole.squeeze(0).cpu() if parameter in self.scalars else whole.cpu()


def _as_vectors(model: nn.Module) -> set[str]:
    """Make vectors of one number of all parameters that are scalars, which fully_shard does not take.

    They are multiplied and added alike; in autocast a product with one is float32 where it was bfloat16.
    Their names. Files have them as scalars, in every layout.
    """
    names = {name for name, p in model.named_parameters() if not p.ndim}
    vectors: dict[int, nn.Parameter] = {}  # what is shared stays shared
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if not p.ndim:
                vector = nn.Parameter(p.detach().reshape(1), p.requires_grad)
                setattr(module, name, vectors.setdefault(id(p), vector))
    return names


def _like(ours: Tensor | None, whole: Tensor) -> Tensor:
    """This rank's slice of a whole tensor, cut as ours is."""
    if not isinstance(ours, DTensor):
        return whole
    whole = whole.to(ours.device).reshape(ours.shape) if whole.numel() == 1 else whole.to(ours.device)
    return distribute_tensor(whole, ours.device_mesh, ours.placements, src_data_rank=None)

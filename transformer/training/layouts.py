"""Where a run's weights lie: whole in each process, or cut over all of them.

`Whole` is one process. `Replicated` (DDP) has all weights in each process, and adds up the gradients of their
shares of a batch. `Sharded` (FSDP2) has a slice of each tensor in each process, of weights, gradients and the
optimizer's moments; a sublayer's weights are gathered when it is used.

All of them write and read the same checkpoints, whole: a run may go on in another layout.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.errors import ConfigError, Problem
from ..model.transformer import Transformer
from ..modules.norms import Norm
from ..modules.norms.batch import Add, added_over_ranks
from ..modules.placements import Placement
from .checkpoint import set_weights
from .config import TrainConfig
from .loss import sequence_loss
from .moments import fitting
from .optimizers import OPTIMIZERS
from .ranks import ALONE, Processes, Ranks

if TYPE_CHECKING:
    from .passes import Observer

Hidden = Callable[[Tensor, Tensor], Tensor]


class Losses(nn.Module):
    """batch -> (sum of the loss, sum of the nll), `hidden` being the model's own or as it was compiled."""

    def __init__(self, model: Transformer, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, batch: Any, hidden: Hidden, observer: Observer) -> tuple[Tensor, Tensor]:
        if batch is None:  # nothing, which hangs on each parameter all the same
            nothing = torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0
            return nothing, nothing
        output = hidden(batch.source, batch.target_in)
        observer.decoded()
        return sequence_loss(output, self.model.output_weight, batch.target_out, self.label_smoothing)


class Whole:
    """All weights in the only process.

    `probed`: can its layers be measured? `cuts`: may a process cut its share of a batch without the others?
    `sent`: is some of the gradients of this update on its way to them?
    """

    probed, cuts, sent = True, True, False

    def __init__(self, model: Transformer, label_smoothing: float, ranks: Ranks = ALONE) -> None:
        self.model, self.ranks = model, ranks
        self.losses: nn.Module = Losses(model, label_smoothing)

    def passing(self, last: bool) -> AbstractContextManager[object]:
        """Around the passes of a micro-batch; after the `last` of an update gradients are of all ranks."""
        return nullcontext()

    def send(self) -> None:
        """After the passes of an update: what they have not sent. Collective."""

    def weights(self) -> dict[str, Tensor]:
        """The state dict, whole. Collective; of several ranks, the chief's counts."""
        return self.model.state_dict()

    def load(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Set the weights; CheckpointError names `source` when they are of another model."""
        set_weights(self.model, weights, source)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state dict, whole. Collective."""
        return optimizer.state_dict()

    def load_optimizer(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """Take up what `optimizer_state` gave, in any layout. ValueError if it is none of this optimizer."""
        optimizer.load_state_dict(fitting(state, optimizer))

    def whole(self, weights: Mapping[str, Tensor] | None = None) -> Transformer:
        """On the chief: a model that runs by itself, with these weights, or its last ones."""
        return self.model

    def number(self, x: Tensor) -> Tensor:
        """A scalar that may lie in parts, whole."""
        return x


class Replicated(Whole):
    """All weights in each process (DistributedDataParallel). Gradients are summed, and not averaged.

    The passes divide by the number of target tokens of all ranks, so that the sum is the update's gradient.
    """

    def __init__(self, model: Transformer, label_smoothing: float, ranks: Processes) -> None:
        super().__init__(model, label_smoothing, ranks)
        from torch.nn.parallel import DistributedDataParallel

        # Buffers, the running statistics of norms, are the same everywhere: they follow sums over all ranks.
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
        self.parallel = DistributedDataParallel(self.losses, **options)
        # DDP refuses a hook whose annotations are texts, as all are here.
        self.parallel.register_comm_hook(None, lambda _, bucket: ranks.summing(bucket.buffer()))
        self.parallel.register_forward_hook(self._note)
        self.losses = self.parallel

    @contextmanager
    def passing(self, last: bool) -> Iterator[None]:
        with added_over_ranks(adding(self.ranks)), nullcontext() if last else self.parallel.no_sync():
            yield

    def _note(self, *_: Any) -> None:
        """From the end of this forward pass on DDP goes through with the backward pass, or with nothing."""
        self.sent = self.parallel.require_backward_grad_sync

    def send(self) -> None:
        if not self.sent:
            nothing, _ = self.parallel(None, None, None)
            nothing.backward()
        self.sent = False


def adding(ranks: Ranks) -> Add:
    """X -> its sum over the ranks."""
    return lambda x: ranks.sum(x)[0]


def layout_of(model: Transformer, config: TrainConfig, ranks: Ranks) -> Whole:
    """The layout that `train.parallel` asks for; ConfigError for what it cannot do."""
    if not isinstance(ranks, Processes):
        return Whole(model, config.label_smoothing)
    problems = list(refusals(model, config, ranks.size))
    if problems:
        raise ConfigError(problems)
    if config.parallel == "fsdp":
        from .sharded import Sharded

        return Sharded(model, config.label_smoothing, ranks)
    return Replicated(model, config.label_smoothing, ranks)


def refusals(model: Transformer, config: TrainConfig, size: int) -> Iterator[Problem]:
    """What cannot be done in several processes, and what to do instead."""
    over_batch = any(module.span == "batch" for module in model.modules() if isinstance(module, Norm))
    if config.compile and over_batch:
        message = f"a compiled model cannot add a norm's batch statistics over {size} processes"
        yield Problem("train.compile", message, hint="set it to false, or start one process")
    if config.parallel != "fsdp":
        return
    if config.compile:
        message = "a compiled model would keep the gathered weights of all layers"
        yield Problem("train.compile", message, hint="set it to false, or train.parallel to ddp")
    if not OPTIMIZERS[config.optimizer].elementwise:
        message = f"{config.optimizer} looks at whole matrices, and fsdp cuts them"
        yield Problem(
            "train.optimizer", message, hint="take adam, adamw, radam or sgd, or train.parallel: ddp"
        )
    if any(type(placement).climb is not Placement.climb for placement, _ in model.sites()):
        message = "a placement that computes its activations anew needs its weights where they were"
        yield Problem("model.placement", message, hint="set train.parallel to ddp")


def frozen_copy(model: Transformer) -> Transformer:
    """A copy in the CPU's memory, for evaluation."""
    return copy.deepcopy(model).to("cpu")

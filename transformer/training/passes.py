"""The gradients of one update, and who may look on while they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.seeding import derive_seed
from ..model.transformer import Transformer
from ..modules.precision import autocast
from .interruption import Interrupted
from .layouts import Whole
from .oom import Fitting
from .progress import seed_generators

if TYPE_CHECKING:
    from .compilation import Compiled


class Observer:
    """Looks on at an update and changes nothing. This one does not even look.

    `hooks`: does it put hooks on the model? While it looks on, the model is run as it is, not compiled.
    """

    hooks = False

    def at(self, update: int) -> Observer:
        """Who looks on at this update."""
        return self

    def forward(self, batch: Any) -> AbstractContextManager[object]:
        """Around the forward pass of each micro-batch, loss included; the backward pass is outside."""
        return nullcontext()

    def decoded(self) -> None:
        """The decoder's output is there; the loss comes next."""

    def gradients(self) -> None:
        """The gradients are complete, and not clipped yet."""

    def updated(self) -> None:
        """The weights have moved."""

    def clear(self) -> None:
        """The update begins anew, in smaller parts: what was seen of it does not count."""


UNOBSERVED = Observer()


class Passes:
    """Forward and backward passes of an update: a function of weights, micro-batches, `seed` and `update`."""

    def __init__(
        self,
        model: Transformer,
        dtype: torch.dtype,
        label_smoothing: float,
        seed: int,
        compiled: bool = False,
        checkpointed: bool = False,
        layout: Whole | None = None,
    ) -> None:
        self.model, self.dtype, self.label_smoothing, self.seed = model, dtype, label_smoothing, seed
        self.compiled: Compiled | None = None
        if compiled:
            from .compilation import Compiled  # here, as torch's compiler takes a second to import

            self.compiled = Compiled(model)
        self.layout = Whole(model, label_smoothing) if layout is None else layout
        model.encoder.checkpointed = model.decoder.checkpointed = checkpointed
        self.device = model.output_weight.device
        self.fitting = Fitting(model, self.layout)
        self.bad = torch.zeros((), dtype=torch.int64, device=self.device)  # `run` says what it is
        self._stop: Callable[[], object] = bool  # never

    def run(
        self, micro_batches: Sequence[Any], update: int, observer: Observer = UNOBSERVED
    ) -> tuple[int, Tensor, Tensor]:
        """Add up the gradients; (target tokens, sum of the loss, sum of the nll), both sums on the device.

        The gradient is that of the loss summed over target tokens / their number, over all micro-batches and
        ranks, of which each has its share of every micro-batch. A micro-batch that memory does not hold is
        cut (oom.py). Nothing here waits for the device.

        Afterwards `bad` is the first micro-batch, from 1, whose loss was not finite on this rank; one more
        than there are if none was, and 0 where they were cut: then it is not known.
        """
        ranks = self.layout.ranks
        tokens = ranks.total(sum(batch.target_tokens for batch in micro_batches))

        def run(parts: Iterable[Any], last: int) -> list[tuple[Tensor, Tensor]]:
            return list(self._run(parts, last, tokens, update, observer))

        sums = self.fitting.compute(run, micro_batches, update, observer.clear)
        whole = 1 < len(sums) == len(micro_batches)  # of a single one nothing need be known
        losses = torch.stack([loss for loss, _ in sums]) if whole else None
        self.bad = self.bad.new_zeros(()) if losses is None else losses.isfinite().sum() + 1
        total, total_nll = ranks.sum(*sums[-1])
        return tokens, total, total_nll

    def _run(
        self, micro_batches: Iterable[Any], last: int, tokens: int, update: int, observer: Observer
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Add up the gradients of the loss / `tokens`; this rank's sums of loss and nll so far.

        `last`: the number of the last one, where its backward pass may send the gradients to the other ranks.
        Ranks draw other masks: the first one's are those of a run in one process.
        """
        layout, ranks = self.layout, self.layout.ranks
        of_rank = () if ranks.chief else (ranks.rank,)
        seed_generators(derive_seed(self.seed, "update", update, *of_rank), self.device)
        total, total_nll = torch.zeros(2, device=self.device).unbind()
        forward = self.model.hidden if self.compiled is None or observer.hooks else self.compiled
        for number, micro_batch in enumerate(micro_batches, start=1):
            if number > 1 and self._stop():
                raise Interrupted
            batch = micro_batch.to(self.device)
            with layout.passing(last=number == last):
                with observer.forward(batch), autocast(self.device, self.dtype):
                    loss, nll = layout.losses(batch, forward, observer)
                (loss / tokens).backward()
            total, total_nll = total + loss.detach(), total_nll + nll
            yield total, total_nll
        layout.send()

    @contextmanager
    def breakable(self, micro_batches: Sequence[Any], stop: Callable[[], object]) -> Iterator[None]:
        """A context in which `run` is left by Interrupted between two micro-batches, once `stop` says so.

        Then the model is as it was. In one process only: ranks would have to agree before each micro-batch.
        """
        if len(micro_batches) < 2 or self.layout.ranks.size > 1:
            yield
            return
        persistent = self.model.state_dict().keys()
        buffers = [buffer for name, buffer in self.model.named_buffers() if name in persistent]
        before = [buffer.clone() for buffer in buffers]
        self._stop = stop
        try:
            yield
        except Interrupted:
            for buffer, kept in zip(buffers, before, strict=True):
                buffer.copy_(kept)
            self.model.zero_grad(set_to_none=True)
            raise
        finally:
            self._stop = bool

    def news(self) -> Iterator[str]:
        """What the log should say of the passes since this was asked the last time."""
        if self.compiled is not None:
            yield from self.compiled.news()
        yield from self.fitting.news()


def copied(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's weights in the CPU's memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}

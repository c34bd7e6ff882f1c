"""An update that memory does not hold, computed in parts: without dropout the same up to rounding.

A backward pass that fails midway has already added to some gradients, and nobody knows to which. So nothing
of a failed attempt is kept: the gradients are cleared and the whole update is computed anew, with the
micro-batch that failed, and those at least as large, cut in two by rows; if need be again, down to single
pairs. The loss is divided by the target tokens of the whole update, which the parts do not change, so their
gradients add up to that of the uncut batch. With dropout the parts draw other masks, from the same seed: then
the update is the same in distribution. As long as nothing fails, this costs one function call an update and
keeps no copy of anything.

Of several processes with whole weights (DDP) each cuts its own share, unseen by the others, which wait for
its gradients; these must not be on their way yet. They go out while the last backward pass runs only where a
micro-batch of that size has gone well before, and after all passes else.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from ..core.errors import OutOfMemory, is_out_of_memory
from ..model.transformer import Transformer
from ..modules.norms.base import Norm
from .layouts import Whole

T = TypeVar("T")

SHOWN = 8  # pairs of a batch that are named
REMEDIES = (
    "set train.checkpoint_activations=true (a run may be resumed with it), or start again with a smaller"
    " data.max_length or with train.precision=bf16"
)


class Fitting:
    """Computes updates of `model`, in parts where they do not fit.

    `layout` says whether this process may cut its share alone.
    """

    def __init__(self, model: Transformer, layout: Whole) -> None:
        self.model, self.layout, self.rank = model, layout, layout.ranks.name
        self.count = 0  # updates that were computed in parts
        self.largest = 0  # size of micro-batches that have gone well
        self._untold = ""

    def compute(
        self,
        run: Callable[[Iterator[Any], int], T],
        micro_batches: Sequence[Any],
        update: int,
        again: Callable[[], None] = lambda: None,
    ) -> T:
        """`run` of the micro-batches, or of their parts, and the number of the one whose gradients may go out
        while they are made. It starts without gradients, also when it is tried again; `again` is called
        before that.

        Raises OutOfMemory when a single pair does not fit, or a batch that cannot be cut.
        """
        parts = list(micro_batches)
        while True:
            begun = 0
            known = not self.layout.cuts or _size(parts[-1]) <= self.largest

            def each(parts: list[Any] = parts) -> Iterator[Any]:
                nonlocal begun
                for part in parts:
                    begun += 1
                    yield part

            try:
                result = run(each(), len(parts) if known else 0)
            except (RuntimeError, MemoryError) as error:
                if not begun or not is_out_of_memory(error):
                    raise
                reason = str(error).strip().partition("\n")[0]
            else:
                self.largest = max(self.largest, *map(_size, parts))
                if len(parts) > len(micro_batches):
                    self._note(micro_batches, parts, update)
                return result
            self.largest = min(self.largest, _size(parts[begun - 1]) - 1)
            # Not in the handler: until it ends, the traceback holds on to the tensors of the failed pass.
            self._clear()
            again()
            parts = self._smaller(parts, begun - 1, update, reason)

    def news(self) -> Iterator[str]:
        """A line at the first update that was cut."""
        if self._untold:
            yield self._untold
            self._untold = ""

    def _clear(self) -> None:
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        if self.model.output_weight.device.type == "cuda":
            torch.cuda.empty_cache()

    def _smaller(self, parts: list[Any], failed: int, update: int, reason: str) -> list[Any]:
        batch = parts[failed]
        rows = len(batch.source)
        who = self.rank and f"{self.rank}: "
        what = f"{who}update {update:,}: memory does not hold {_words(batch)} ({reason})"
        if rows == 1:
            pair = _pair(batch)
            named = "" if pair is None else f"; it is pair {pair:,} of those that filtering left"
            raise OutOfMemory(f"{what}{named}; {REMEDIES}", pair)
        if norm := _over_the_batch(self.model):
            raise OutOfMemory(
                f"{what}, and {norm} takes its statistics over all of it, so that parts would be another"
                " update; set a smaller train.batch_tokens"
            )
        if not self.layout.cuts or self.layout.sent:
            why = (
                "its gradients were on their way already" if self.layout.cuts else "with fsdp no share is cut"
            )
            raise OutOfMemory(
                f"{what}; they are {_pairs(batch)}. {why}: set a smaller"
                " train.batch_tokens and a larger train.accumulate, start more processes, or set"
                " train.checkpoint_activations=true (a run may be resumed with that)"
            )
        smaller: list[Any] = []
        for i, part in enumerate(parts):
            if i == failed or (len(part.source) > 1 and _size(part) >= _size(batch)):
                half = (len(part.source) + 1) // 2
                smaller += [part.rows(slice(None, half)), part.rows(slice(half, None))]
            else:
                smaller.append(part)
        return smaller

    def _note(self, micro_batches: Sequence[Any], parts: Sequence[Any], update: int) -> None:
        self.count += 1
        if self.count == 1:
            largest = max(micro_batches, key=_size)
            self._untold = self.rank and f"{self.rank}: "
            self._untold += (
                f"update {update:,}: memory did not hold {_words(largest)}; computed in {len(parts)} parts"
                f" instead of {len(micro_batches)}, the same update up to rounding (dropout draws anew). This"
                " costs time whenever it happens and is said once: a smaller train.batch_tokens with a larger"
                " train.accumulate, or train.checkpoint_activations=true, avoids it"
            )


def _size(batch: Any) -> int:
    """Tokens of both sides, padding counted."""
    return int(batch.source.numel() + batch.target_in.numel())


def _words(batch: Any) -> str:
    (rows, source), target = batch.source.shape, batch.target_in.shape[1]
    pairs = "a pair" if rows == 1 else f"{rows:,} pairs"
    return f"{pairs} of {source:,} source and {target:,} target tokens"


def _pair(batch: Any) -> int | None:
    """The number of a batch's first pair, from 1; None for a foreign stream."""
    indices = getattr(batch, "indices", None)
    return None if indices is None else int(indices[0]) + 1


def _pairs(batch: Any) -> str:
    indices = getattr(batch, "indices", None)
    if indices is None:
        return "this rank's share of the batch"
    shown = ", ".join(f"{index + 1:,}" for index in indices[:SHOWN].tolist())
    more = ", ..." if len(indices) > SHOWN else ""
    return f"pairs {shown}{more} of those that filtering left"


def _over_the_batch(model: Transformer) -> str:
    """The class of a norm whose statistics run over the whole batch; empty if there is none."""
    found = (type(m).__name__ for m in model.modules() if isinstance(m, Norm) and m.span == "batch")
    return next(found, "")

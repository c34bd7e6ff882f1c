"""An update under the magnifying glass: where its numbers stop being finite, and what its batch is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..core.errors import DataError
from ..core.special import PAD
from ..data.batching import Batch, BatchStream
from ..model.transformer import Transformer
from ..modules.placements import Stream
from .divergence import DATA, Diverged
from .limits import Stream as Stock
from .oom import SHOWN
from .passes import Observer
from .progress import Progress
from .ranks import ALONE, Ranks


@dataclass(frozen=True)
class Place:
    """A part of the model: `layer` from 1, None for what stands below or above the layers of its stack."""

    stack: str
    part: str
    layer: int | None = None

    def __str__(self) -> str:
        return f"{self.stack} {self.part}" if self.layer is None else f"{self.layer_name}, {self.part}"

    @property
    def layer_name(self) -> str:
        """`encoder layer 2`; for what is no layer, the part."""
        return f"{self.stack} {self.part}" if self.layer is None else f"{self.stack} layer {self.layer}"

    def as_dict(self) -> dict[str, Any]:
        return {"stack": self.stack, "layer": self.layer, "part": self.part}


def parts_of(model: Transformer) -> list[tuple[Place, list[nn.Module]]]:
    """The model's places in the order of the forward pass; a tied table belongs to each that reads it."""
    parts: list[tuple[Place, list[nn.Module]]] = []
    for stack, tower, embedding in (
        ("encoder", model.encoder, model.source_embedding),
        ("decoder", model.decoder, model.target_embedding),
    ):
        parts.append((Place(stack, "embedding"), [embedding, tower.embedding_norm]))
        for placement, sublayer in tower.sites():
            site = placement.site
            parts.append(
                (Place(stack, part_name(site.slot, site.slots), site.layer + 1), [placement, sublayer])
            )
        parts.append((Place(stack, "top"), [tower.final_norm]))
    if model.output is not None:
        parts.append((Place("output", "projection"), [model.output]))
    return parts


def part_name(slot: int, slots: int) -> str:
    """As plans name the parts of a layer."""
    if slot == slots - 1:
        return "feed_forward"
    return "cross_attention" if slot else "self_attention"


class Recorder(Observer):
    """The norm of each layer's gradient, at every update; read at the end, so nothing waits before."""

    def __init__(self, model: Transformer) -> None:
        self.layers: dict[str, list[nn.Module]] = {}
        self.device = model.output_weight.device
        for place, modules in parts_of(model):
            self.layers.setdefault(place.layer_name, []).extend(modules)
        self.norms: list[Tensor] = []

    def gradients(self) -> None:
        norms = [gradient_norm(modules, self.device) for modules in self.layers.values()]
        self.norms.append(torch.stack(norms))

    def history(self, first: int) -> list[tuple[int, dict[str, float]]]:
        """[(update, {layer: norm})] from update `first` on."""
        rows = torch.stack(self.norms).tolist() if self.norms else []
        return [(first + i, dict(zip(self.layers, row, strict=True))) for i, row in enumerate(rows)]


class Inspector(Observer):
    """The largest magnitude at every place of the forward pass, for each micro-batch, and of the gradients.

    Of a sublayer it is that of what it adds and of the stream that leaves it, padding excluded.
    """

    hooks = True

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.passes: list[list[tuple[Place, Tensor]]] = []
        self.gradient: list[tuple[Place, Tensor]] = []

    def clear(self) -> None:
        self.passes = []

    @contextmanager
    def forward(self, batch: Any) -> Iterator[None]:
        self.passes.append([])
        real = {"encoder": batch.source != PAD, "decoder": batch.target_in != PAD}
        sites = {placement.site: placement for placement, _ in self.model.sites()}
        with ExitStack() as stack:

            def watch(module: nn.Module, place: Place) -> None:
                hook = partial(self._look, place, real[place.stack])
                stack.callback(module.register_forward_hook(hook).remove)

            watch(self.model.source_embedding, Place("encoder", "embedding"))
            watch(self.model.target_embedding, Place("decoder", "embedding"))
            for site, placement in sites.items():
                place = Place(site.stack, part_name(site.slot, site.slots), site.layer + 1)
                watch(placement.dropout, place)
                watch(placement, place)
            watch(self.model.encoder, Place("encoder", "top"))
            watch(self.model.decoder, Place("decoder", "top"))
            yield

    def gradients(self) -> None:
        device = self.model.output_weight.device
        self.gradient = [(place, gradient_norm(modules, device)) for place, modules in parts_of(self.model)]

    @torch.no_grad()
    def _look(self, place: Place, real: Tensor, module: nn.Module, inputs: object, output: Stream) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        sides = [t for t in tensors if t.shape[:2] == real.shape]
        largest = [t.abs().flatten(2).amax(-1).masked_fill(~real, 0).amax().float() for t in sides]
        self.passes[-1].append((place, torch.stack(largest).amax()))

    # --- afterwards

    def magnitudes(self) -> list[list[tuple[Place, float]]]:
        """For each micro-batch what the forward pass met, in order."""
        return [[(place, value.item()) for place, value in each] for each in self.passes]

    def first_forward(self) -> tuple[int, Place] | None:
        """(micro-batch, place) where the forward pass first was not finite."""
        for i, met in enumerate(self.magnitudes()):
            for place, value in met:
                if not math.isfinite(value):
                    return i, place
        return None

    def first_backward(self) -> Place | None:
        """The place nearest to the loss whose gradient, or its norm, is not finite.

        The backward pass comes through the decoder first; tables come last, for a tied one has a gradient
        from both of its ends.
        """
        tops = [(p, v) for p, v in self.gradient if p.part != "embedding"]
        decoder = [(p, v) for p, v in tops if p.stack != "encoder"]
        encoder = [(p, v) for p, v in tops if p.stack == "encoder"]
        tables = [(p, v) for p, v in self.gradient if p.part == "embedding"]
        for place, value in [*decoder[::-1], *encoder[::-1], *tables]:
            if not math.isfinite(value.item()):
                return place
        return None


def gradient_norm(modules: Sequence[nn.Module], device: torch.device) -> Tensor:
    """Norm of the gradient of all parameters of these modules; 0 for none."""
    gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
    return get_total_norm(gradients).float().to(device)


def not_finite(model: Transformer) -> list[Place]:
    """Where weights are not finite, in the order of the forward pass."""
    return [
        place
        for place, modules in parts_of(model)
        if not all(bool(p.isfinite().all()) for module in modules for p in module.parameters())
    ]


def ill_formed(batches: Sequence[Any], model: Transformer) -> tuple[int, str] | None:
    """(which, what is wrong) of the first batch no model could be trained on; None if all are well-formed."""
    for i, batch in enumerate(batches):
        sides = (
            ("source", batch.source, model.source_vocab),
            ("target", batch.target_in, model.target_vocab),
            ("target", batch.target_out, model.target_vocab),
        )
        for side, ids, vocabulary in sides:
            wrong = ids[(ids < 0) | (ids >= vocabulary)]
            if len(wrong):
                return (
                    i,
                    f"it holds the {side} id {int(wrong[0])}, and the vocabulary ends at {vocabulary - 1}",
                )
    if not any(batch.target_tokens for batch in batches):
        return 0, "it holds no target token"
    return None


def describe(batch: Any, epoch: int, number: int) -> Mapping[str, Any]:
    """What tells this batch from others; `number` counts the batches of the epoch from 1.

    `pairs` are its first few, counted from 1 among those that filtering left; None for a foreign stream.
    `digest` is of all ids, SHA-256.
    """
    ids = [side.cpu().numpy().tobytes() for side in (batch.source, batch.target_out)]
    pairs = (batch.indices[:SHOWN] + 1).tolist() if isinstance(batch, Batch) else None
    return {
        "epoch": epoch,
        "batch": number,
        "sentences": len(batch.source),
        "source_length": batch.source.shape[1],
        "target_length": batch.target_out.shape[1],
        "target_tokens": batch.target_tokens,
        "pairs": pairs,
        "digest": hashlib.sha256(b"".join(ids)).hexdigest()[:16],
    }


def named(batches: Sequence[Any], which: int | None, epoch: int, number: int) -> Mapping[str, Any]:
    """Batch `which`, from 0, of an update whose first is batch `number` of the epoch; None: their range."""
    if which is None and len(batches) > 1:
        return {"epoch": epoch, "batches": [number, number + len(batches) - 1]}
    return describe(batches[which or 0], epoch, number + (which or 0))


def located(
    stream: Stock, progress: Progress, update: int, accumulate: int, bad: int
) -> Mapping[str, Any] | None:
    """The `bad` micro-batch, from 1, of a past update, as all ranks had it; their range if unknown."""
    if not isinstance(stream, BatchStream):
        return None
    epoch, number = progress.epoch, -(-progress.batch // accumulate) - (progress.update - update)
    while number < 1 and epoch > 1:
        epoch -= 1
        number += -(-stream.batches_in(epoch) // accumulate)
    if number < 1:
        return None
    first, last = (number - 1) * accumulate, min(number * accumulate, stream.batches_in(epoch))
    batches = [stream.undivided(epoch, i) for i in range(first, last)]
    return named(batches, bad - 1 if 1 <= bad <= len(batches) else None, epoch, first + 1)


def blame(
    error: Exception,
    micro_batches: Sequence[Any],
    model: Transformer,
    progress: Progress,
    rate: float,
    ranks: Ranks = ALONE,
) -> NoReturn:
    """Raise Diverged if `error` came of an ill-formed batch, else the error itself.

    Of several ranks only this one knows, and the others wait for it: it ends the run, with a DataError if its
    share is ill-formed (having no rows is not), else with what `Ranks.lost` makes of the error.
    """
    wrong, update = ill_formed(micro_batches, model), progress.update + 1
    if ranks.size > 1 and (wrong is None or not micro_batches[wrong[0]].target_tokens):
        raise ranks.lost(error, f"update {update:,}") from error
    if wrong is None:
        raise error
    which, words = wrong
    batch = describe(micro_batches[which], progress.epoch, progress.batch - len(micro_batches) + which + 1)
    message = f"update {update:,} cannot be computed ({type(error).__name__}: {words})"
    if ranks.size > 1:
        place = f"batch {batch['batch']:,} of epoch {batch['epoch']:,}, this rank's pairs {batch['pairs']}"
        raise DataError(f"{ranks.name}: {message}: {place}; mend that text, or take it out") from error
    raise Diverged(message, update, rate, DATA, batch) from error

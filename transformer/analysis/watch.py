"""Forward hooks that read the stream at every residual connection, whatever the placement."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.special import PAD
from ..model.pairing import SUBLAYERS
from ..model.transformer import Transformer
from ..modules.norms import Norm
from ..modules.placements import Placement, Stack, Stream
from .interval import mean
from .setting import Batch

STACKS: tuple[Stack, ...] = ("encoder", "decoder")
TOP = "top"
AS_IT_IS = nn.Identity()


@dataclass(frozen=True)
class Reading:
    """What was read at one site, or at the top of a stack, over all real tokens of the batches."""

    layer: int | str
    part: str
    opens_layer: bool
    closes_layer: bool
    stream: float
    norm_reads: float | None
    last_norm_reads: float | None
    branch: float | None
    cosine: float | None
    largest: float

    @property
    def share(self) -> float | None:
        """|f| / |x|."""
        return None if self.branch is None or not self.stream else math.sqrt(self.branch / self.stream)

    @classmethod
    def mean(cls, same: Sequence[Reading]) -> Reading:
        """Means over seeds of the numbers; places are the same."""
        values: dict[str, Any] = {}
        for name in (field.name for field in fields(cls)):
            given = [getattr(reading, name) for reading in same]
            values[name] = mean(given) if isinstance(given[0], float) else given[0]
        return cls(**values)


def handed_on(placement: Placement, stream: Stream) -> Tensor:
    """What stands for a stream, (B, L, D): what its stack would hand on without a norm."""
    return placement.close(stream, AS_IT_IS)


class _Mean:
    """A mean over real tokens, and the largest absolute value."""

    def __init__(self) -> None:
        self.total, self.count, self.largest = 0.0, 0, 0.0

    def add(self, numbers: Tensor) -> None:
        """`numbers` (tokens, ...)."""
        self.total += numbers.double().sum().item()
        self.count += numbers.numel()

    def add_squares(self, x: Tensor) -> None:
        """`x` (tokens, D)."""
        self.add(x.double().square())
        self.largest = max(self.largest, x.abs().max().item())

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


class _Site:
    """The means of one site, or of a stack's top."""

    def __init__(self) -> None:
        self.stream, self.branch, self.cosine = _Mean(), _Mean(), _Mean()
        self.norms: dict[nn.Module, _Mean] = {}  # in order of execution

    def reading(self, layer: int | str, part: str, opens_layer: bool, closes_layer: bool) -> Reading:
        norms = [norm.value for norm in self.norms.values()]
        return Reading(
            layer,
            part,
            opens_layer,
            closes_layer,
            self.stream.value or 0.0,
            norms[0] if norms else None,
            norms[-1] if norms else None,
            self.branch.value,
            self.cosine.value,
            self.stream.largest,
        )


class _StackWatch:
    """Hooks on the sites of one stack. `real` (B, L) is set before each pass."""

    real: Tensor
    below: Tensor  # the stream below the layer that runs

    def __init__(self, stack: Any) -> None:
        self.placements: list[Placement] = [placement for placement, _ in stack.sites()]
        self.sites = [_Site() for _ in self.placements]
        self.top, self.final_norm = _Site(), stack.final_norm

    def hook(self, hooks: ExitStack) -> None:
        def on(module: nn.Module, before: bool, call: Callable[..., None]) -> None:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            hooks.callback(register(call).remove)

        for placement, site in zip(self.placements, self.sites, strict=True):
            on(placement, True, partial(self._before, site))
            on(placement, False, self._after)
            on(placement.dropout, False, partial(self._branch, site))
            for module in placement.modules():
                if isinstance(module, Norm):
                    on(module, True, partial(self._norm, site))
        if isinstance(self.final_norm, Norm):
            on(self.final_norm, True, partial(self._norm, self.top))

    def _before(self, site: _Site, placement: Placement, inputs: tuple[Any, ...]) -> None:
        x = self._tokens(handed_on(placement, inputs[0]))
        site.stream.add_squares(x)
        if placement.site.opens_layer:
            self.below = x

    def _after(self, placement: Placement, inputs: tuple[Any, ...], stream: Stream) -> None:
        if not placement.site.closes_layer:
            return
        x = self._tokens(handed_on(placement, stream))
        place = self.placements.index(placement)
        self.sites[place].cosine.add(F.cosine_similarity(self.below.double(), x.double(), dim=-1))
        if placement is self.placements[-1]:
            self.top.stream.add_squares(x)

    def _branch(self, site: _Site, module: nn.Module, inputs: tuple[Any, ...], branch: Tensor) -> None:
        site.branch.add_squares(self._tokens(branch))

    def _norm(self, site: _Site, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        read: Tensor = inputs[0]
        stacked = read.dim() == 4  # (B, L, n, D): the mean of the n
        site.norms.setdefault(norm, _Mean()).add_squares(self._tokens(read.mean(2) if stacked else read))

    def _tokens(self, x: Tensor) -> Tensor:
        return x.detach()[self.real]

    def readings(self, stack: Stack) -> list[Reading]:
        """Of each site from the bottom, and of the top; none for a stack without layers."""
        found = []
        for placement, site in zip(self.placements, self.sites, strict=True):
            at = placement.site
            part = SUBLAYERS[stack][at.slot]
            found.append(site.reading(at.layer + 1, part, at.opens_layer, at.closes_layer))
        return [*found, self.top.reading(TOP, "", True, False)] if found else []


@torch.no_grad()
def watch(model: Transformer, batches: Sequence[Batch]) -> dict[Stack, list[Reading]]:
    """Run the model on the batches; what was read at every site of both stacks, padding left out."""
    watches = {stack: _StackWatch(getattr(model, stack)) for stack in STACKS}
    with ExitStack() as hooks:
        for each in watches.values():
            each.hook(hooks)
        for source, target_in, _ in batches:
            watches["encoder"].real, watches["decoder"].real = source != PAD, target_in != PAD
            model.hidden(source, target_in)
    return {stack: each.readings(stack) for stack, each in watches.items()}

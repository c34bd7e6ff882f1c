"""Where the time of updates goes, on the device's own clock."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

from ..model.transformer import Transformer
from ..modules.attention import MultiHeadAttention
from ..training.passes import Observer
from .ceilings import synchronize

Stamp: TypeAlias = Any  # a recorded CUDA event, or seconds

ATTENTION = "attention"


class Timeline(Observer):
    """Stamps at the borders of an update's parts; unlike `Clock` it never makes the device wait.

    On CUDA a stamp is an event in the stream: what a part takes is what passes there between two of them, so
    that time in which the device waits for Python is in the part it waits in. Elsewhere it is the wall's.
    With `attention` hooks stamp every attention module too (its projections and norms included), forward and
    backward; a reversible stack, which runs them again, counts twice.
    """

    def __init__(self, model: Transformer, device: torch.device, attention: bool = True) -> None:
        self.model, self.device, self.hooks = model, device, attention
        self.spans: list[tuple[str, Stamp, Stamp]] = []
        self.open: dict[tuple[nn.Module, str], Stamp] = {}
        self.last = self.stamp()

    def stamp(self) -> Stamp:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def border(self, part: str) -> None:
        """What has passed since the last border was `part`."""
        now = self.stamp()
        self.spans.append((part, self.last, now))
        self.last = now

    @contextmanager
    def forward(self, batch: Any) -> Iterator[None]:
        self.border("data")
        yield
        self.border("loss")

    def decoded(self) -> None:
        self.border("forward")

    def gradients(self) -> None:
        self.border("backward")

    def updated(self) -> None:
        self.border("optimizer")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A context in which attention is stamped; a fresh start."""
        modules = [module for module in self.model.modules() if isinstance(module, MultiHeadAttention)]
        handles: list[Any] = []
        for module in modules if self.hooks else ():
            handles += [
                module.register_forward_pre_hook(lambda module, _: self._begin(module, "forward")),
                module.register_forward_hook(lambda module, *_: self._end(module, "forward")),
                module.register_full_backward_pre_hook(lambda module, _: self._begin(module, "backward")),
                module.register_full_backward_hook(lambda module, *_: self._end(module, "backward")),
            ]
        try:
            self.spans.clear()
            self.last = self.stamp()
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, module: nn.Module, way: str) -> None:
        self.open[module, way] = self.stamp()

    def _end(self, module: nn.Module, way: str) -> None:
        self.spans.append((ATTENTION, self.open.pop((module, way)), self.stamp()))

    def shares(self) -> dict[str, float]:
        """Of the whole: the parts add up to 1, and `attention` lies within forward and backward. Waits."""
        synchronize(self.device)
        seconds: dict[str, float] = defaultdict(float)
        for part, begin, end in self.spans:
            events = self.device.type == "cuda"
            seconds[part] += begin.elapsed_time(end) / 1000 if events else end - begin
        total = sum(spent for part, spent in seconds.items() if part != ATTENTION)
        return {part: spent / total for part, spent in seconds.items()}

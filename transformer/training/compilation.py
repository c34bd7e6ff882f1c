"""torch.compile of the model's forward pass, with few graphs, and a count of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import lookup_backend, maybe_mark_dynamic
from torch._dynamo.exc import BackendCompilerFailed

from ..core.errors import ConfigError, Problem
from ..model.transformer import Transformer

OPTION = "train.compile"


class Compiled:
    """`model.hidden` as torch.compile makes it. source (B, S), target_in (B, T) -> hidden (B, T, D).

    Batch and lengths vary within one graph; torch gives a graph of its own only to a size of 1, so that there
    are eight at most: a batch of one pair and a side of one token have theirs.
    The model itself stays as it is: same parameters, same names. Its hooks are not run; who needs them calls
    the model. Raises ConfigError where nothing can be compiled, which is tried out at once.
    """

    def __init__(self, model: Transformer, backend: str = "inductor") -> None:
        self.graphs = self.told = 0
        self.backend = lookup_backend(backend)
        self.hidden = torch.compile(model.hidden, dynamic=True, backend=self._compile)
        with _told():
            one = torch.ones(2, device=model.output_weight.device, requires_grad=True)
            torch.compile(torch.sin, backend=backend)(one).sum().backward()  # type: ignore[no-untyped-call]

    def __call__(self, source: Tensor, target_in: Tensor) -> Tensor:
        for ids in (source, target_in):
            maybe_mark_dynamic(ids, (0, 1))
        with _told():
            return self.hidden(source, target_in)

    def _compile(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = self.backend(graph, list(inputs))
        self.graphs += 1  # not before: torch may give up a graph and trace again
        return compiled

    def news(self) -> Iterator[str]:
        """A line about the graphs that were made since this was asked the last time, if any."""
        if self.graphs > self.told:
            fresh = f", {self.graphs - self.told} of them since the last such line" if self.told else ""
            yield f"compiled: graphs so far {self.graphs}{fresh}"
            self.told = self.graphs


@contextmanager
def _told() -> Iterator[None]:
    """A compiler that is missing or fails, as a ConfigError."""
    try:
        yield
    except BackendCompilerFailed as error:
        reason = str(error).strip().partition("\n")[0]
        hint = "install what it asks for (on a CPU a C++ compiler, as CXX or g++), or set it to false"
        raise ConfigError([Problem(OPTION, f"torch.compile failed: {reason}", hint=hint)]) from error

"""What the peers' training is given so that all do the same work, each as fast as its users can have it.

Dropout falls on embeddings and on what each branch adds, as with `activation_dropout` and `attention_dropout`
0; some peers drop the feed-forward's hidden layer by the same option, which is taken back here. In bf16 the
backward of torch's attention kernel takes several times as long on a CPU as its own plain formula, which
`torch.nn.attention.sdpa_kernel` asks for.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .meter import Task


def attention(task: Task) -> AbstractContextManager[object]:
    """Training in bf16 goes without the slow kernel; what is float32 or only translates is as it is."""
    return sdpa_kernel(SDPBackend.MATH) if task.variant == "bf16" else nullcontext()


def keep_hidden(feedforward: type[nn.Module], dropout: str) -> None:
    """New modules of this class have no dropout in the submodule named."""
    build = feedforward.__init__

    @functools.wraps(build)
    def built(self: Any, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        getattr(self, dropout).p = 0.0

    feedforward.__init__ = built  # type: ignore[method-assign]

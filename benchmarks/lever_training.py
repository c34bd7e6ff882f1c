"""The switches of what makes training fast: `python benchmarks/levers.py`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import count, islice
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from transformer.core.special import PAD
from transformer.data.batching import BatchStream
from transformer.model.transformer import Transformer
from transformer.modules import attention as attention_module
from transformer.modules import products as products_module
from transformer.modules.dropout import Dropout
from transformer.training import layouts as layouts_module
from transformer.training import loss as loss_module
from transformer.training import trainer as trainer_module
from transformer.training.compilation import Compiled
from transformer.training.trainer import Trainer

BACKEND = "inductor"  # of torch.compile

Switch: TypeAlias = Callable[[Trainer], AbstractContextManager[object]]
Run: TypeAlias = Callable[[Trainer, Sequence[Any]], int]


def stepped(trainer: Trainer, batches: Sequence[Any]) -> int:
    """Update on each batch; the target tokens."""
    for batch in batches:
        trainer.step([batch])
    return sum(batch.target_tokens for batch in batches)


def streamed(trainer: Trainer, batches: Sequence[Any]) -> int:
    """Update on as many batches as these are, the trainer's own next ones, which have to be made."""
    return sum(stepped(trainer, [batch]) for batch in islice(endless(trainer.stream), len(batches)))


def watched(trainer: Trainer, batches: Sequence[Any]) -> int:
    """Update on each batch, and read probe and log where they are due, as `Trainer.fit` does."""
    for batch in batches:
        trainer._step(iter([[batch]]))
        if trainer._due(trainer.config.log_every):
            trainer.log()
    return sum(batch.target_tokens for batch in batches)


@cache
def endless(stream: BatchStream) -> Iterator[Any]:
    """One for each stream, so that batches are made ahead from one round to the next, as in a run."""
    return (batch for epoch in count(1) for batch in stream.epoch(epoch))


def unchanged(trainer: Trainer) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass(frozen=True)
class Lever:
    """What is switched off, and how: `run` is done within `off`, and without it; `both` is around either.

    `idle`: number formats of products in which it changes nothing. `missing` says why it cannot be tried.
    """

    text: str
    off: Switch
    run: Run = stepped
    both: Switch = unchanged
    idle: tuple[torch.dtype, ...] = ()
    missing: Callable[[], str] = str


# --- the switches


def no_bf16(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(trainer.passes, "dtype", torch.float32)


def naive_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """What one would write. The nll without smoothing is not computed."""
    logits = F.linear(hidden, weight).flatten(0, 1)
    options: dict[str, Any] = {"ignore_index": PAD, "reduction": "sum", "label_smoothing": smoothing}
    loss = F.cross_entropy(logits, targets.flatten(), **options)
    return loss, loss.detach()


def torchs_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """What torch has, in chunks; it has no label smoothing there."""
    assert not smoothing
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    rows, wanted = hidden.flatten(0, 1), targets.flatten()
    with torch.autocast(device, enabled=False):
        loss: Tensor = F.linear_cross_entropy(
            rows.to(dtype),
            weight.to(dtype),
            wanted,
            reduction="sum",
            ignore_index=PAD,
            options=nn.LinearCrossEntropyOptions(),
        )
    return loss.float(), loss.detach().float()


def has_torchs_loss() -> str:
    there = hasattr(F, "linear_cross_entropy") and hasattr(nn, "LinearCrossEntropyOptions")
    return "" if there else f"torch {torch.__version__} has no linear_cross_entropy in chunks"


def instead_of_loss(other: Callable[..., tuple[Tensor, Tensor]]) -> Switch:
    return lambda trainer: patch.object(layouts_module, "sequence_loss", other)


def unsmoothed(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(trainer.layout.losses, "label_smoothing", 0.0)


def chunk_by_chunk(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(loss_module, "_GROUP", 0)


def torch_dropout(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(Dropout, "forward", lambda self, x: F.dropout(x, self.p, self.training))


def kernel_attention(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(attention_module, "_faster_written_out", lambda *_: False)


def short_rows(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(attention_module, "softmax", lambda scores: scores.softmax(-1))


def lengthening() -> str:
    return "" if attention_module.has_wide_vectors() else "done with AVX-512 alone"


def apart(trainer: Trainer) -> AbstractContextManager[object]:
    def each(self: Any, projections: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        return [p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in projections]

    return patch.object(attention_module.MultiHeadAttention, "_together", each)


@contextmanager
def loop_optimizer(trainer: Trainer) -> Iterator[None]:
    groups = trainer.optimizer.param_groups
    before = [(group["fused"], group["foreach"]) for group in groups]
    for group in groups:
        group["fused"], group["foreach"] = False, False
    try:
        yield
    finally:
        for group, (fused, foreach) in zip(groups, before, strict=True):
            group["fused"], group["foreach"] = fused, foreach


@contextmanager
def read_norm(trainer: Trainer) -> Iterator[None]:
    """As loops have it: torch's function, whose norm is read as a number at each update."""

    def clipped(gradients: object) -> Tensor:
        norm = clip_grad_norm_(trainer.parameters, trainer.config.clip or math.inf).item()
        return torch.tensor(norm, device=trainer.device)

    with (
        patch.object(trainer_module, "get_total_norm", clipped),
        patch.object(trainer_module, "clip_grads_with_norm_", lambda *_: None),
    ):
        yield


def other_products(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(products_module, "_is_ours", lambda *_: False)


@contextmanager
def sizes_of_batches(trainer: Trainer) -> Iterator[None]:
    """On a stream of its own, so that both ways see the same batches."""
    with other_products(trainer), patch.object(trainer, "stream", twin(trainer.stream)):
        yield


@cache
def twin(stream: BatchStream) -> BatchStream:
    return copy.copy(stream)


def no_tiles() -> str:
    return "" if products_module.has_tiles() else "kernels are made fast on this processor"


def no_onednn() -> str:
    return "" if products_module._prefers_onednn() else "torch's default is taken on this processor"


def made_when_asked(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(trainer, "stream", without_thread(trainer.stream))


@cache
def without_thread(stream: BatchStream) -> BatchStream:
    same = copy.copy(stream)
    same._prefetch = 0
    return same


@contextmanager
def at_each_update(trainer: Trainer) -> Iterator[None]:
    config = trainer.config.model_copy(update={"log_every": 1})
    with patch.object(trainer, "config", config), patch.object(trainer.monitor, "every", 1):
        yield


def never_stalled(trainer: Trainer) -> AbstractContextManager[object]:
    """The same few batches again and again are no run to judge."""
    return patch.object(trainer, "unigram_loss", None)


def compiled(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(trainer.passes, "compiled", compiled_once(trainer.model))


@cache
def compiled_once(model: Transformer) -> Compiled:
    return Compiled(model, BACKEND)


BF16, FLOAT32 = torch.bfloat16, torch.float32
LEVERS: dict[str, Lever] = {
    "bf16": Lever(
        "products in bf16, where the hardware is fast at it (against float32)", no_bf16, idle=(FLOAT32,)
    ),
    "loss": Lever(
        "projection and loss in chunks, gradients in forward (against F.linear and F.cross_entropy)",
        instead_of_loss(naive_loss),
    ),
    "torch's loss": Lever(
        "the same without label smoothing (against torch's linear_cross_entropy in chunks)",
        instead_of_loss(torchs_loss),
        both=unsmoothed,
        missing=has_torchs_loss,
    ),
    "groups": Lever(
        "gradients of several chunks' logits multiplied at once (against chunk by chunk)", chunk_by_chunk
    ),
    "dropout": Lever("dropout from random bytes (against torch's)", torch_dropout),
    "attention": Lever("attention written out where it is faster (against torch's kernel)", kernel_attention),
    "rows": Lever(
        "rows of softmax shorter than a vector are lengthened (against as they are)",
        short_rows,
        missing=lengthening,
    ),
    "projections": Lever("queries, keys and values as one product (against one each)", apart),
    "products": Lever(
        "large products by oneDNN (against torch's default)", other_products, idle=(BF16,), missing=no_onednn
    ),
    "sizes": Lever(
        "products of few sizes, on ever new batches (against the sizes of the batches)",
        sizes_of_batches,
        run=streamed,
        idle=(FLOAT32,),
        missing=no_tiles,
    ),
    "optimizer": Lever("fused Adam (against one tensor after another)", loop_optimizer),
    "clipping": Lever(
        "clipping that waits for no number (against clip_grad_norm_ and its norm's .item())", read_norm
    ),
    "prefetch": Lever("batches made ahead in a thread (against when asked)", made_when_asked, run=streamed),
    "due": Lever(
        "probe and log read when they are due (against at each update)",
        at_each_update,
        run=watched,
        both=never_stalled,
    ),
    "compile": Lever("the model as it is (against train.compile)", compiled),
}

"""The switches of what makes translation fast: `python benchmarks/levers.py --task translate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.lever_setting import Setting, Task
from transformer.core.special import BOS, EOS
from transformer.decoding import beam as beam_module
from transformer.decoding import cache as cache_module
from transformer.decoding import engine as engine_module
from transformer.decoding import next_token as next_token_module
from transformer.decoding import ranking as ranking_module
from transformer.decoding.cache import DecoderCache
from transformer.decoding.columns import SelfAttentionCache
from transformer.decoding.config import DecodeConfig
from transformer.decoding.engine import Models
from transformer.decoding.forked import ForkedModels
from transformer.model.packing import can_be_packed
from transformer.model.transformer import Transformer
from transformer.modules import attention as attention_module
from transformer.modules import int8 as int8_module
from transformer.modules import packed as packed_module
from transformer.modules.attention import KeysValues
from transformer.modules.int8 import has_scaling
from transformer.modules.products import has_wide_vectors

Switch = Callable[[], AbstractContextManager[object]]
# Of log p, relative: a search's own against that of float32 without a cache, and one search's best against
# the other's.
NEAR = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.int8: 5e-2}
CHECKED = 32  # lines


@dataclass(frozen=True)
class Lever:
    """What is switched off, and how; `both` is around either side.

    `precisions`: of the side with it and the side without, where that is the lever. `missing` says why it
    cannot be tried, if so.
    """

    text: str
    off: Switch = nullcontext
    both: Switch = nullcontext
    precisions: tuple[str | None, str | None] = (None, None)
    missing: Callable[[Setting], str] = lambda setting: ""

    def tasks(self, setting: Setting) -> tuple[Task, Task]:
        """With it, and without."""
        on, off = self.precisions
        return setting.task(on), setting.task(off)


# --- the switches


def gathered_per_row() -> AbstractContextManager[object]:
    """Keys and values of the memory are repeated for each row, whenever rows leave or come."""
    select = DecoderCache.select

    def and_gather(self: DecoderCache, rows: Tensor) -> Tensor | None:
        before = self.sentence
        kept = select(self, rows)
        if self.gathered is None and not torch.equal(before, self.sentence):
            self.gathered = self.sentence
            for layer in self.layers:
                layer.cross_attention.assign(self.gathered)
        return kept

    return patch.object(DecoderCache, "select", and_gather)


def columns_of_their_own() -> AbstractContextManager[object]:
    return patch.object(SelfAttentionCache, "select_within", lambda self, rows, *_: self.select(rows))


@contextmanager
def held_columns_only() -> Iterator[None]:
    """Attention gets the columns that there are, and no mask where a row sees them all."""
    extend = SelfAttentionCache.extend

    def only_held(self: SelfAttentionCache, project: Callable[[], KeysValues]) -> KeysValues:
        keys, values = extend(self, project)
        end = self.length
        if self._shared is None:
            self.held = None
        elif self.held is not None:
            end = self._shared.used
            self.held = self.held[..., :end]
        return keys[:, :, :end], values[:, :, :end]

    with (
        patch.object(SelfAttentionCache, "extend", only_held),
        patch.object(cache_module, "whole_blocks", Tensor.contiguous),
    ):
        yield


def short_rows() -> AbstractContextManager[object]:
    return patch.object(attention_module, "softmax", lambda scores: scores.softmax(-1))


def kernel_attention() -> AbstractContextManager[object]:
    return patch.object(attention_module, "_faster_written_out", lambda *_: False)


def all_logits_at_once() -> AbstractContextManager[object]:
    """What one would write: memory of its own for each step."""

    def naive(model: Transformer) -> Callable[[Tensor], Tensor]:
        return lambda hidden: next_token_module._log_softmax(model.project(hidden))

    return patch.object(next_token_module, "_LogProbs", naive)


def int8_by_float32() -> AbstractContextManager[object]:
    return patch.object(int8_module, "has_scaling", lambda: False)


def by_topk() -> AbstractContextManager[object]:
    return patch.object(ranking_module, "_in_blocks", lambda values, k: False)


def by_the_other_library() -> AbstractContextManager[object]:
    return patch.object(packed_module, "has_wide_vectors", lambda: not has_wide_vectors())


def plain_modules() -> AbstractContextManager[object]:
    return patch.object(engine_module, "can_be_packed", lambda model: False)


def one_batch_at_a_time() -> AbstractContextManager[object]:
    def search_all(self: Models, batches: Sequence[Any], config: DecodeConfig) -> list[Any]:
        return [self.search(batch, config) for batch in batches]

    return patch.object(ForkedModels, "search_all", search_all)


def on_threads() -> AbstractContextManager[object]:
    return patch.object(ForkedModels, "search_all", Models.search_all)


def all_stay() -> AbstractContextManager[object]:
    return patch.object(beam_module, "_LEAVING", 0)


# --- what they need


def a_beam(setting: Setting) -> str:
    return "" if setting.beam > 1 else "beam 1 has one row for a sentence"


def packing(setting: Setting) -> str:
    if setting.dtype == torch.int8:
        return "int8 has no other way"
    return "" if can_be_packed(setting.model) else "torch has no such kernel here"


def float32_packing(setting: Setting) -> str:
    return packing(setting) if setting.dtype == torch.float32 else "it is for float32 only"


def threads(setting: Setting) -> str:
    if not can_be_packed(setting.model):
        return "torch has no such kernel here"
    return "" if torch.get_num_threads() > 1 else "it has one thread"


def int8(setting: Setting) -> str:
    return "" if can_be_packed(setting.model) else "torch has no such kernel here"


def int8_scaling(setting: Setting) -> str:
    return int8(setting) or ("" if has_scaling() else "torch has no such product here")


LEVERS: dict[str, Lever] = {
    "shared": Lever(
        "cross-attention's keys and values shared by a sentence's rows (against gathered for each row)",
        gathered_per_row,
        missing=a_beam,
    ),
    "columns": Lever(
        "self-attention's keys and values shared by a sentence's rows (against copied with each row)",
        columns_of_their_own,
        missing=a_beam,
    ),
    "whole blocks": Lever(
        "keys and values in whole blocks of columns (against as many as there are)", held_columns_only
    ),
    "written out": Lever(
        "attention written out where it is faster (against torch's kernel)", kernel_attention
    ),
    "rows": Lever("rows of softmax shorter than a vector are lengthened (against as they are)", short_rows),
    "log p": Lever(
        "log-probabilities of some rows at a time, where the last were (against all at once, in new memory)",
        all_logits_at_once,
    ),
    "blocks": Lever("the best of a row by blocks (against topk)", by_topk, missing=a_beam),
    "packed": Lever(
        "weights joined and cast once (against plain modules with autocast), a batch at a time",
        plain_modules,
        both=one_batch_at_a_time,
        missing=packing,
    ),
    "library": Lever(
        "products in float32 by oneDNN with AVX-512, torch's default with AVX2 (against the other)",
        by_the_other_library,
        missing=float32_packing,
    ),
    "threads": Lever(
        "several batches at a time (against all threads on one)", one_batch_at_a_time, missing=threads
    ),
    "processes": Lever("forked processes (against threads)", on_threads, missing=threads),
    "leaving": Lever("finished sentences leave (against staying to the last)", all_stay, missing=a_beam),
    "bf16": Lever("bf16 (against float32)", precisions=("bf16", "float32")),
    "int8": Lever("int8 (against float32)", precisions=("int8", "float32"), missing=int8),
    "int8 order": Lever(
        "int8 by products of 8-bit integers that scale their sums (against whole numbers in float32)",
        int8_by_float32,
        precisions=("int8", "int8"),
        missing=int8_scaling,
    ),
}


# --- do both find the same?


@torch.no_grad()
def log_probability(model: Transformer, source: list[int], target: list[int]) -> float:
    """Log p(target, EOS | source): float32, no cache, no batch."""
    logits = model(torch.tensor([[*source, EOS]]), torch.tensor([[BOS, *target]]))[0]
    wanted = torch.tensor([*target, EOS])
    return logits.log_softmax(-1).gather(1, wanted[:, None]).sum().item()


@contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    training = model.training
    model.eval()
    yield
    model.train(training)


def check(lever: Lever, setting: Setting) -> None:
    """AssertionError unless both ways find translations as good, and tell their log p, to rounding."""
    means, bounds = [], []
    with lever.both():
        for task, switch in zip(lever.tasks(setting), (nullcontext, lever.off), strict=True):
            with switch():
                found = task.run(CHECKED)
            bound = NEAR[task.engine.dtype]  # type: ignore[attr-defined]
            told, exact = [], []
            for line, (source, _), length in zip(found, setting.pairs, task.lengths, strict=False):
                (best,) = line.hypotheses
                tokens = [int(piece) for piece in best.tokens]
                assert len(tokens) == length
                told.append(best.log_probability)
                with evaluating(setting.model):
                    exact.append(log_probability(setting.model, source, tokens))
            wrong = max(abs(one / other - 1) for one, other in zip(told, exact, strict=True))
            assert wrong <= bound, f"{lever.text}: log p is off by {wrong:.1e}, more than {bound:g}"
            means.append(sum(exact) / len(exact))
            bounds.append(bound)
    apart, bound = abs(means[1] / means[0] - 1), max(bounds)
    assert apart <= bound, f"{lever.text}: log p of the best differs by {apart:.1e}, more than {bound:g}"

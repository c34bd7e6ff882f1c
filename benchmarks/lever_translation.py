"""The switches of what makes translation fast: `python benchmarks/levers.py --task translate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.lever_setting import Setting, Task
from benchmarks.lever_training import lengthening
from transformer.decoding import beam as beam_module
from transformer.decoding import columns as columns_module
from transformer.decoding import engine as engine_module
from transformer.decoding import ranking as ranking_module
from transformer.decoding.cache import DecoderCache
from transformer.decoding.columns import SelfAttentionCache
from transformer.decoding.config import DecodeConfig
from transformer.decoding.engine import Models
from transformer.decoding.forked import ForkedModels
from transformer.decoding.translator import LineTranslator
from transformer.kernels import operators
from transformer.kernels.building import library
from transformer.model.packing import can_be_packed
from transformer.modules import attention as attention_module
from transformer.modules import int8 as int8_module
from transformer.modules import packed as packed_module
from transformer.modules.int8 import ways
from transformer.modules.products import has_wide_vectors

Switch = Callable[[], AbstractContextManager[object]]


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


def by_torch(*names: str) -> Switch:
    """Without these operators in C."""
    has = operators.has
    return lambda: patch.object(operators, "has", lambda name: name not in names and has(name))


without_c = by_torch("attend", "best_sums", "log_softmax", "rounded")


def short_rows() -> AbstractContextManager[object]:
    return patch.object(attention_module, "softmax", lambda scores: scores.softmax(-1))


def kernel_attention() -> AbstractContextManager[object]:
    return patch.object(attention_module, "_faster_written_out", lambda *_: False)


def int8_by_float32() -> AbstractContextManager[object]:
    return patch.object(int8_module, "ways", tuple)


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


def table_as_it_is() -> AbstractContextManager[object]:
    def product(table: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        return packed_module._product(table, None, dtype)

    return patch.object(packed_module, "_table_product", product)


def as_they_come() -> AbstractContextManager[object]:
    """Batches of the same budget, of lines in their order."""

    def batches(self: Any, lines: list[Any], length: Callable[[Any], int]) -> Iterator[list[Any]]:
        budget = max(1, self.config.batch_tokens // self.config.rows_per_line)
        batch: list[Any] = []
        for line in lines:
            longest = max(length(each) + 1 for each in [*batch, line])
            if batch and (len(batch) + 1) * longest > budget:
                yield batch
                batch = []
            batch.append(line)
        yield batch

    return patch.object(LineTranslator, "_batches", batches)


def grown_by_one() -> AbstractContextManager[object]:
    return patch.object(columns_module, "BLOCK", 1)


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


def transposing(setting: Setting) -> str:
    return float32_packing(setting) or ("not done with AVX-512" if has_wide_vectors() else "")


def c(setting: Setting) -> str:
    if not can_be_packed(setting.model):
        return "torch has no such kernel here"
    return "" if library() else "there is no C compiler"


def c_int8(setting: Setting) -> str:
    return c(setting) if setting.dtype == torch.int8 else "it is for int8 only"


def c_beam(setting: Setting) -> str:
    return a_beam(setting) or c(setting)


def int8(setting: Setting) -> str:
    return "" if can_be_packed(setting.model) else "torch has no such kernel here"


def int8_scaling(setting: Setting) -> str:
    return int8(setting) or ("" if ways() else "torch has no such product here")


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
    "c": Lever("operators in C (against torch's)", without_c, missing=c),
    "c attention": Lever("of them attention", by_torch("attend"), missing=c),
    "c best": Lever("of them the best sums of a sentence's rows", by_torch("best_sums"), missing=c_beam),
    "c log_softmax": Lever("of them log-softmax", by_torch("log_softmax"), missing=c),
    "c rounding": Lever("of them rounding to 8 bits", by_torch("rounded"), missing=c_int8),
    "written out": Lever(
        "without C: attention written out where it is faster (against torch's kernel)",
        kernel_attention,
        both=without_c,
    ),
    "rows": Lever(
        "without C: rows of softmax shorter than a vector are lengthened (against as they are)",
        short_rows,
        both=without_c,
        missing=lambda setting: lengthening(),
    ),
    "blocks": Lever(
        "without C: the best of a row by blocks (against topk)", by_topk, both=without_c, missing=a_beam
    ),
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
    "transposed": Lever(
        "the vocabulary's weight as a transposed copy, in float32 with AVX2 (against as it is)",
        table_as_it_is,
        missing=transposing,
    ),
    "sorted": Lever("lines of like length in a batch (against as they come)", as_they_come),
    "growing": Lever(
        "keys and values in buffers that grow by 8 columns (against by one at each step)", grown_by_one
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

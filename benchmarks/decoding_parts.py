"""Where the time of translation goes on a CPU, and how far each part is from what the machine can do.

    python benchmarks/decoding_parts.py --shape small --beam 5 --precisions float32,bf16,int8
    python benchmarks/decoding_parts.py --shape small --precisions int8 --processes 2

A model with initial weights translates random sentences into 16 pieces each, on one thread as each of
`translate.py`'s processes does. Processes that work side by side share memory and caches: `--processes 2`
measures two at a time, prints the table of one, and what both make together. `parts.py` says what the columns
are. All is done by torch's operators: those in C, which torch knows nothing of, are switched off.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.arguments import at_least
from benchmarks.lever_translation import without_c
from benchmarks.levers import SHAPES, VOCABULARY
from benchmarks.parts import HEADER, Counted, Part, Rates, is_product, rows_of, speeds_of, told
from transformer import Transformer
from transformer.analysis.finding import table
from transformer.decoding.config import MOST_HYPOTHESES, DecodeConfig
from transformer.decoding.engine import Models, Request
from transformer.decoding.limits import Limits
from transformer.training.memory import keep_freed_memory

LENGTH, SOURCE, SENTENCES = 16, 14, 64
FORMATS = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
PRODUCTS, OF_VOCABULARY, OTHER = "products of the layers", "the vocabulary's product", "other"
ATTENTION, PROBABILITIES = "attention", "probabilities and the best of them"
FORMATTING = "copies, number formats, scales"
# The first line whose words occur in an operator's name tells its part; what none does is "other".
PARTS = (
    (PROBABILITIES, ("log_softmax", "logsumexp", "topk", "sort")),
    (ATTENTION, ("scaled_dot_product", "bmm", "matmul", "softmax")),
    ("rows moved", ("index", "gather", "scatter", "cat", "stack")),
    ("norms, activation", ("layer_norm", "relu", "gelu", "silu")),
    (FORMATTING, ("copy", "clone", "reshape", "to", "pad", "fill", "mul", "add", "div", "round")),
    (FORMATTING, ("abs", "amax", "clamp", "reciprocal", "sub", "xor")),
)


def part_of(vocabulary: int, name: str, arguments: list[Tensor]) -> str:
    """Which part an operator belongs to."""
    if is_product(name) and arguments[1].dim() == 2:
        return OF_VOCABULARY if any(vocabulary in each.shape for each in arguments) else PRODUCTS
    if (name == "amax" and arguments[0].dim() == 3) or name == "max":  # of blocks of a row, or of the row
        return PROBABILITIES
    return next((part for part, words in PARTS if any(word in name for word in words)), OTHER)


def measure(model: Transformer, precision: str, beam: int, batches: int) -> tuple[float, dict[str, Part]]:
    """Seconds of a batch, and what one consists of."""
    engine = Models([model], precision)  # type: ignore[arg-type]
    config = DecodeConfig(beam=beam, min_length=LENGTH, max_length=LENGTH)
    draws = torch.Generator().manual_seed(1)
    rows = torch.randint(4, model.source_vocab, (SENTENCES, SOURCE), generator=draws).tolist()
    requests = [Request(i, row, Limits(LENGTH, LENGTH)) for i, row in enumerate(rows)]
    took = []
    counted = Counted(partial(part_of, model.target_vocab))
    with without_c(), engine.working():
        engine.search(requests, config)  # kernels of all sizes are made
        for _ in range(batches):
            began = time.perf_counter()
            engine.search(requests, config)
            took.append(time.perf_counter() - began)
            with counted:
                engine.search(requests, config)
    parts = {name: part / batches for name, part in counted.parts.items()}
    return statistics.mean(took), parts


def report(shape: str, precision: str, beam: int, batches: int) -> tuple[str, list[float]]:
    """The table of one process, and its sentences/s with what the bounds would allow."""
    keep_freed_memory()
    torch.set_num_threads(1)
    size = VOCABULARY[shape]
    model = Transformer(size, size, tie_embeddings="all", **SHAPES[shape]).eval()
    rates = Rates.of(FORMATS[precision])
    whole, parts = measure(model, precision, beam, batches)
    rows = table(HEADER, rows_of(whole, parts, rates, f"a batch of {SENTENCES}"))
    return f"{rows}\n\nproducts in {precision}: {rates}", speeds_of(SENTENCES, whole, parts, rates)


def reports(processes: int, *options: Any) -> list[tuple[str, list[float]]]:
    """`report` of so many processes at the same time. Nothing has been computed before they are forked."""
    if processes == 1:
        return [report(*options)]
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        return [each.result() for each in [pool.submit(report, *options) for _ in range(processes)]]


def main() -> int:
    """Print the tables."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--shape", choices=[name for name in SHAPES if name in VOCABULARY], default="small")
    options.add_argument("--beam", type=at_least(1, MOST_HYPOTHESES), default=5)
    options.add_argument("--precisions", default="float32,bf16,int8", metavar="A,B")
    options.add_argument("--batches", type=at_least(1), default=5)
    options.add_argument("--processes", type=at_least(1), default=1, help="at the same time, a thread each")
    given = options.parse_args()
    names = given.precisions.split(",")
    if unknown := [name for name in names if name not in FORMATS]:
        options.error(f"--precisions: {', '.join(unknown)}; there are {', '.join(FORMATS)}")
    for name in names:
        texts, speeds = zip(
            *reports(given.processes, given.shape, name, given.beam, given.batches), strict=True
        )
        together = f"sentences/s of {given.processes} processes" if given.processes > 1 else "sentences/s"
        print(texts[0])
        print(told(together, [sum(of_each) for of_each in zip(*speeds, strict=True)]), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

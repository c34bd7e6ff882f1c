"""Where the time of translation goes on a CPU, and how far each part is from what the machine can do.

    python benchmarks/decoding_parts.py --shape small --beam 5 --precisions float32,bf16,int8

A model with initial weights translates random sentences into 16 pieces each, on one thread as each of
`translate.py`'s processes does. `parts.py` says what the columns are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.levers import SHAPES, VOCABULARY
from benchmarks.parts import HEADER, Counted, Part, Rates, is_product, rows_of, speeds_of
from transformer import Transformer
from transformer.analysis.finding import table
from transformer.decoding.config import DecodeConfig
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
    with engine.working():
        engine.search(requests, config)  # kernels of all sizes are made
        for _ in range(batches):
            began = time.perf_counter()
            engine.search(requests, config)
            took.append(time.perf_counter() - began)
            with counted:
                engine.search(requests, config)
    parts = {name: part / batches for name, part in counted.parts.items()}
    return statistics.mean(took), parts


def main() -> int:
    """Print the tables."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--shape", choices=[name for name in SHAPES if name in VOCABULARY], default="small")
    options.add_argument("--beam", type=int, default=5)
    options.add_argument("--precisions", default="float32,bf16,int8", metavar="A,B")
    options.add_argument("--batches", type=int, default=5)
    arguments = options.parse_args()
    names = arguments.precisions.split(",")
    if unknown := [name for name in names if name not in FORMATS]:
        options.error(f"--precisions: {', '.join(unknown)}; there are {', '.join(FORMATS)}")
    keep_freed_memory()
    torch.set_num_threads(1)
    size = VOCABULARY[arguments.shape]
    model = Transformer(size, size, tie_embeddings="all", **SHAPES[arguments.shape]).eval()
    for name in names:
        rates = Rates.of(FORMATS[name])
        whole, parts = measure(model, name, arguments.beam, arguments.batches)
        print(table(HEADER, rows_of(whole, parts, rates, f"a batch of {SENTENCES}")))
        print()
        print(f"products in {name}: {rates}")
        print(speeds_of(SENTENCES, "sentences/s", whole, parts, rates), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where the time of translation goes on a CPU: torch's operators by what they are for, on one thread.

    python benchmarks/decoding_parts.py --shape small --beam 5 --precisions float32,bf16,int8

A model with initial weights translates random sentences into 16 pieces each. Seconds are the median of
batches without the profiler; shares are torch.profiler's self times in a batch of their own. `python` is what
the operators leave of that batch's time: the interpreter and torch's dispatch, the profiler's cost with them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.levers import SHAPES, VOCABULARY
from transformer import Transformer
from transformer.analysis.finding import table
from transformer.decoding.config import DecodeConfig
from transformer.decoding.engine import Models, Request
from transformer.decoding.limits import Limits
from transformer.training.memory import keep_freed_memory

LENGTH, SOURCE, SENTENCES = 16, 14, 64
# The first part whose words occur in an operator's name takes it; what none takes is "other".
PARTS = {
    "attention": ("scaled_dot_product", "flash_attention", "bmm", "baddbmm", "::_softmax"),
    "probabilities": ("log_softmax", "topk", "amax", "max", "sort", "logsumexp"),
    "products": ("addmm", "::mm", "_int_mm", "linear"),
    "rows moved": ("index_select", "gather", "::cat", "index", "scatter"),
    "norms, activation": ("layer_norm", "relu", "gelu", "silu", "native_dropout"),
    "copies, number formats, scales": (
        "copy_",
        "_to_copy",
        "::mul",
        "::add",
        "::div",
        "round",
        "abs",
        "clamp",
    ),
}


def part_of(name: str, shapes: object, vocabulary: int) -> str:
    """Which part an operator belongs to; a product with the vocabulary has one of its own."""
    found = next((part for part, words in PARTS.items() if any(word in name for word in words)), "other")
    sized = found == "products" and any(vocabulary in shape for shape in list(shapes) if shape)  # type: ignore[call-overload]
    return "vocabulary's product" if sized else found


def measure(model: Transformer, precision: str, beam: int, batches: int) -> tuple[float, Counter[str]]:
    """Seconds of a batch, and seconds of one batch by part."""
    engine = Models([model], precision)  # type: ignore[arg-type]
    config = DecodeConfig(beam=beam, min_length=LENGTH, max_length=LENGTH)
    draws = torch.Generator().manual_seed(1)
    rows = torch.randint(4, model.source_vocab, (SENTENCES, SOURCE), generator=draws).tolist()
    requests = [Request(i, row, Limits(LENGTH, LENGTH)) for i, row in enumerate(rows)]
    took = []
    with engine.working():
        for _ in range(batches + 1):
            began = time.perf_counter()
            engine.search(requests, config)
            took.append(time.perf_counter() - began)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            began = time.perf_counter()
            engine.search(requests, config)
            whole = time.perf_counter() - began
    parts: Counter[str] = Counter()
    for event in seen.key_averages(group_by_input_shape=True):
        parts[part_of(event.key, event.input_shapes, model.target_vocab)] += event.self_cpu_time_total / 1e6
    parts["python"] = max(whole - sum(parts.values()), 0.0)
    return statistics.median(took[1:]), parts


def main() -> int:
    """Print the table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--shape", choices=list(SHAPES), default="small")
    options.add_argument("--beam", type=int, default=5)
    options.add_argument("--precisions", default="float32,bf16,int8", metavar="A,B")
    options.add_argument("--batches", type=int, default=5)
    arguments = options.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    size = VOCABULARY[arguments.shape]
    model = Transformer(size, size, tie_embeddings="all", **SHAPES[arguments.shape]).eval()
    names = arguments.precisions.split(",")
    found = [measure(model, name, arguments.beam, arguments.batches) for name in names]
    kinds = [*PARTS, "vocabulary's product", "other", "python"]
    rows = [["sentences/s", *(f"{SENTENCES / seconds:.0f}" for seconds, _ in found)]]
    rows += [[kind, *(f"{parts[kind] / sum(parts.values()):.0%}" for _, parts in found)] for kind in kinds]
    print(table(["", *names], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

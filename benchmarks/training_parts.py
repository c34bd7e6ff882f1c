"""Where the time of a training update goes on a CPU, and how far each part is from what the machine can do.

    python benchmarks/training_parts.py --shape small --updates 10

`parts.py` says what the columns are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.levers import SHAPES, VOCABULARY, trainer_of
from benchmarks.parts import (
    HEADER,
    Counted,
    Part,
    Rates,
    factors,
    is_product,
    rows_of,
    speeds_of,
    told,
    transposed,
)
from transformer.analysis.finding import table
from transformer.speed.ceilings import name_of
from transformer.training.memory import keep_freed_memory
from transformer.training.trainer import Trainer

# The first part whose words occur in an operator's name takes it; what none takes is "other".
PARTS = {
    "optimizer, clipping": ("fused_adam", "vector_norm", "foreach"),
    "norms": ("layer_norm",),
    "softmax of attention": ("softmax",),
    "activation": ("relu", "threshold", "clamp_min", "gelu", "silu"),
    "embeddings": ("embedding", "index"),
    "sums (of biases' gradients)": ("sum", "amax"),
    "copies, number formats": ("copy", "clone", "cat", "stack", "pad"),
    "additions, multiplications": ("add", "sub", "mul", "div"),
}
LOSS, DROPOUT, OTHER = "loss beside its products", "dropout's masks", "other"
PRODUCTS = ("products, forward", "products, inputs' gradients", "products, weights' gradients")
OF_LOSS, OF_ATTENTION = "products of the loss", "products of attention"


def part_of(vocabulary: int, name: str, arguments: list[Tensor]) -> str:
    """Which part an operator belongs to; products by the order in which their factors lie in memory."""
    if is_product(name):
        one, other = factors(name, arguments)
        if other.dim() > 2:
            return OF_ATTENTION
        if vocabulary in (*one.shape, *other.shape):
            return OF_LOSS
        return PRODUCTS[2 if transposed(one) else 0 if transposed(other) else 1]
    if "fused" not in name and any(t.dim() > 1 and t.shape[-1] == vocabulary for t in arguments):
        return LOSS
    if name in ("random_", "poisson", "randint") or any(t.dtype == torch.int8 for t in arguments):
        return DROPOUT
    return next((part for part, words in PARTS.items() if any(word in name for word in words)), OTHER)


def measure(trainer: Trainer, updates: int) -> tuple[float, dict[str, Part], float]:
    """Seconds of an update, what one consists of, and its target tokens."""
    trainer.model.train()
    batches = list(islice(trainer.stream.epoch(1), updates))
    for batch in batches:  # kernels of all sizes are made
        trainer.step([batch])
    took = []
    counted = Counted(partial(part_of, trainer.model.target_vocab))
    for batch in batches:
        began = time.perf_counter()
        trainer.step([batch])
        took.append(time.perf_counter() - began)
        with counted:
            trainer.step([batch])
    parts = {name: part / updates for name, part in counted.parts.items()}
    return statistics.mean(took), parts, sum(batch.target_tokens for batch in batches) / updates


def main() -> int:
    """Print the table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--shape", choices=[name for name in SHAPES if name in VOCABULARY], default="small")
    options.add_argument("--precision", choices=("auto", "bf16", "float32"), default="auto")
    options.add_argument("--updates", type=int, default=10)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "configs/multi30k.yaml")
    arguments = options.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            arguments.shape, Path(folder), arguments.config, arguments.threads, arguments.precision
        )
        rates = Rates.of(trainer.passes.dtype)
        whole, parts, tokens = measure(trainer, arguments.updates)
    print(table(HEADER, rows_of(whole, parts, rates, "an update")))
    print()
    print(f"products in {name_of(trainer.passes.dtype)}: {rates}")
    print(told("target tokens/s", speeds_of(tokens, whole, parts, rates)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where the time of a training update goes on a CPU, and how far each part is from what the machine can do.

    python benchmarks/training_parts.py --shape small --updates 10

Every operator that torch executes is timed where it is dispatched, its multiplications and its bytes are
counted, and both are held against the rates of large products and of a copy that the same process measures.
`least` is what a part takes at these rates; its sum is the least that these operators can take together, one
after another, whatever kernels execute them: only fewer operators, fused ones, would take less. `interpreter`
is what the operators leave of an update without the timing: Python, autograd and torch's dispatch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.levers import SHAPES, VOCABULARY, trainer_of
from transformer.analysis.finding import table
from transformer.speed.ceilings import fastest, measure_ceilings, name_of
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
_WRITTEN_ONLY = ("copy_", "random_", "fill_", "zero_")
_COPIED = 1 << 23  # bytes: about as large as an activation


@dataclass
class Part:
    """Totals: seconds, multiplications and additions of products, bytes read and written."""

    seconds: float = 0.0
    operations: float = 0.0
    bytes: float = 0.0


class Counted(TorchDispatchMode):
    """Times and counts what is dispatched in this context, by part."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.parts: defaultdict[str, Part] = defaultdict(Part)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        began = time.perf_counter()
        made = func(*args, **given)
        took = time.perf_counter() - began
        name = func._schema.name.split("::")[1]
        if not func.is_view and not name.startswith(("empty", "new_empty", "resize", "detach")):
            arguments = list(tensors((args, given)))
            part = self.parts[part_of(name, arguments, self.vocabulary)]
            part.seconds += took
            part.bytes += moved(name, arguments, list(tensors(made)))
            part.operations += operations(name, arguments)
        return made


def tensors(found: Any) -> Iterator[Tensor]:
    """All in nested arguments or results."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple | dict):
        for each in found.values() if isinstance(found, dict) else found:
            yield from tensors(each)


def is_product(name: str) -> bool:
    return name in ("mm", "bmm", "addmm", "_linear_pointwise")


def part_of(name: str, arguments: list[Tensor], vocabulary: int) -> str:
    """Which part an operator belongs to; products by the order in which their factors lie in memory."""
    if is_product(name):
        one, other = factors(name, arguments)
        if one.dim() == 3:
            return OF_ATTENTION
        if vocabulary in (*one.shape, *other.shape):
            return OF_LOSS
        return PRODUCTS[2 if transposed(one) else 0 if transposed(other) else 1]
    if "fused" not in name and any(t.dim() > 1 and t.shape[-1] == vocabulary for t in arguments):
        return LOSS
    if name in ("random_", "poisson", "randint") or any(t.dtype == torch.int8 for t in arguments):
        return DROPOUT
    return next((part for part, words in PARTS.items() if any(word in name for word in words)), OTHER)


def factors(name: str, arguments: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A and B of A B."""
    if name == "addmm":
        return arguments[1], arguments[2]
    one, other = arguments[:2]
    return one, other.mT if name == "_linear_pointwise" else other


def transposed(matrix: Tensor) -> bool:
    return matrix.stride(0) == 1 and matrix.stride(1) != 1


def operations(name: str, arguments: list[Tensor]) -> float:
    if not is_product(name):
        return 0.0
    one, other = factors(name, arguments)
    return 2.0 * one.numel() * other.shape[-1]


def moved(name: str, arguments: list[Tensor], made: list[Tensor]) -> float:
    """Bytes: each argument is read once and each result written once; a tensor changed in place is both."""
    results = {id(t) for t in made}
    given = {id(t): t for t in arguments}
    read = [t for key, t in given.items() if key not in results or changes(name)]
    return float(sum(map(extent, read)) + sum(map(extent, made)))


def changes(name: str) -> bool:
    return name.endswith("_") and not name.endswith(_WRITTEN_ONLY)


def extent(tensor: Tensor) -> int:
    """Bytes of its different elements."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return int(torch.Size(sizes).numel() * tensor.element_size())


def measure(trainer: Trainer, updates: int) -> tuple[float, dict[str, Part], float]:
    """Seconds of an update, what one consists of, and its target tokens."""
    trainer.model.train()
    batches = list(islice(trainer.stream.epoch(1), updates))
    for batch in batches:  # kernels of all sizes are made
        trainer.step([batch])
    took = []
    counted = Counted(trainer.model.target_vocab)
    for batch in batches:
        began = time.perf_counter()
        trainer.step([batch])
        took.append(time.perf_counter() - began)
        with counted:
            trainer.step([batch])
    parts = {
        name: Part(part.seconds / updates, part.operations / updates, part.bytes / updates)
        for name, part in counted.parts.items()
    }
    return statistics.mean(took), parts, sum(batch.target_tokens for batch in batches) / updates


def rows_of(
    whole: float, parts: dict[str, Part], rate: float, copying: float
) -> tuple[list[list[str]], float]:
    """Of the table, and the seconds that the operators take at the rates of the machine."""
    rows, least = [], 0.0
    for name, part in sorted(parts.items(), key=lambda each: -each[1].seconds):
        bound = max(part.operations / rate, part.bytes / copying)
        least += bound
        reached = f"{part.operations / part.seconds / 1e9:,.0f} GFLOP/s" if part.operations else ""
        reached = reached or f"{part.bytes / part.seconds / 1e9:.1f} GB/s"
        rows.append(
            [name, f"{part.seconds * 1e3:.0f}", f"{part.seconds / whole:.0%}", reached, f"{bound * 1e3:.0f}"]
        )
    rest = max(whole - sum(part.seconds for part in parts.values()), 0.0)
    rows.append(["interpreter", f"{rest * 1e3:.0f}", f"{rest / whole:.0%}", "", ""])
    rows.append(["an update", f"{whole * 1e3:.0f}", "", "", f"{least * 1e3:.0f}"])
    return rows, least


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
        cpu, dtype = torch.device("cpu"), trainer.passes.dtype
        products = measure_ceilings(cpu, [dtype]).products[name_of(dtype)]
        there, here = torch.zeros(2, _COPIED, dtype=torch.uint8).unbind()
        copying = 2 * _COPIED / fastest(partial(there.copy_, here), cpu, 0.4)
        whole, parts, tokens = measure(trainer, arguments.updates)
    rows, least = rows_of(whole, parts, products, copying)
    print(table(["", "ms", "share", "reached", "least, ms"], rows))
    print()
    rates = f"{products / 1e9:,.0f} GFLOP/s; a copy of 8 MiB: {copying / 1e9:.1f} GB/s"
    print(f"products in {name_of(dtype)}: {rates}")
    print(f"target tokens/s: {tokens / whole:,.0f}; at these rates the same operators: {tokens / least:,.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What each thing that makes training fast is worth: switched off in turn, with everything else on.

python benchmarks/levers.py --shape small --rounds 5 --write levers.md

Rounds alternate: each trains the same batches as the toolkit does, then with the lever off. The ratio is the
median over rounds of speed as it is / speed without. Levers that belong to a process run in two of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from transformer.cli.config import Config
from transformer.cli.lines import say
from transformer.cli.train import wire
from transformer.core.loading import load
from transformer.core.special import PAD
from transformer.data.batching import collate
from transformer.data.dataset import prepare
from transformer.model.transformer import Transformer
from transformer.modules import attention as attention_module
from transformer.modules import products as products_module
from transformer.modules.dropout import Dropout
from transformer.training import layouts as layouts_module
from transformer.training import loss as loss_module
from transformer.training.logbook import Logbook
from transformer.training.memory import keep_freed_memory
from transformer.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
SHAPES = {
    "tiny": {"d_model": 16, "d_ff": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1},
    "small": {"d_model": 256, "d_ff": 1024, "heads": 4, "encoder_layers": 3, "decoder_layers": 3},
    "large": {"d_model": 512, "d_ff": 1024, "heads": 8, "encoder_layers": 6, "decoder_layers": 6},
}
VOCABULARY = {"tiny": 300, "small": 8000, "large": 10000}
Off = Callable[[Trainer], AbstractContextManager[object]]


@contextmanager
def no_bf16(trainer: Trainer) -> Iterator[None]:
    with patch.object(trainer.passes, "dtype", torch.float32):
        yield


def naive_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """All logits at once, kept for the backward pass."""
    logits = F.linear(hidden, weight).flatten(0, 1).float()
    options: dict[str, Any] = {"ignore_index": PAD, "reduction": "sum"}
    loss = F.cross_entropy(logits, targets.flatten(), label_smoothing=smoothing, **options)
    return loss, F.cross_entropy(logits.detach(), targets.flatten(), **options)


def plain_loss(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(layouts_module, "sequence_loss", naive_loss)


def with_padding(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(loss_module, "_without_padding", lambda rows, targets: (rows, targets))


def torch_dropout(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(Dropout, "forward", lambda self, x: F.dropout(x, self.p, self.training))


def kernel_attention(trainer: Trainer) -> AbstractContextManager[object]:
    def attend(
        query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, dropout: Dropout
    ) -> Tensor:
        share = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(query, keys, values, mask, share, is_causal=causal)

    return patch.object(attention_module, "attend", attend)


@contextmanager
def loop_optimizer(trainer: Trainer) -> Iterator[None]:
    groups = trainer.optimizer.param_groups
    before = [group["fused"] for group in groups]
    for group in groups:
        group["fused"], group["foreach"] = False, False
    yield
    for group, fused in zip(groups, before, strict=True):
        group["fused"], group["foreach"] = fused, None


def other_products(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(products_module, "_is_for_onednn", lambda x, weight: False)


LEVERS: dict[str, tuple[str, Off]] = {
    "bf16": ("products in bf16, where the hardware is fast at it (against float32)", no_bf16),
    "loss": ("projection and loss in chunks, gradients in forward (against all logits at once)", plain_loss),
    "scored rows": ("only rows that are scored are projected (against padding as well)", with_padding),
    "dropout": ("dropout from 16 random bits (against torch's)", torch_dropout),
    "attention": ("written-out attention in bf16 training (against torch's kernel)", kernel_attention),
    "products": ("large products by oneDNN (against torch's default)", other_products),
    "optimizer": ("fused Adam (against one tensor after another)", loop_optimizer),
}
IDLE = {"auto": {"products"}, "float32": {"bf16", "attention"}}  # levers that change nothing there
MEMORY = ("freed memory stays mapped (against glibc's defaults)", "--keep", "--release")
BUCKETS = "batches of like length (against pairs in random order, cut by the same budget)"


def trainer_of(shape: str, folder: Path, base: Path, threads: int, precision: str = "auto") -> Trainer:
    chosen = [f"model.{key}={value}" for key, value in SHAPES[shape].items()]
    chosen += [f"data.tokenizer.vocab_size={VOCABULARY[shape]}", f"train.threads={threads}", "data.test={}"]
    chosen += [
        "model.dropout=0.1",
        f"train.batch_tokens={256 if shape == 'tiny' else 4096}",
        "train.warmup=100",
        f"train.precision={precision}",
    ]
    config = load(Config, base, chosen)
    data = prepare(config.data, folder, config.seed, say)
    sizes = data.source_tokenizer.size, data.target_tokenizer.size
    model = Transformer(*sizes, config.model, seed=config.seed)
    return wire(config, folder, data, model.train(), Logbook(folder))


def speed(trainer: Trainer, batches: Sequence[Any]) -> float:
    """Target tokens a second, padding not counted."""
    begin = time.perf_counter()
    for batch in batches:
        trainer.step([batch])
    return sum(batch.target_tokens for batch in batches) / (time.perf_counter() - begin)


def in_random_order(batches: Sequence[Any], budget: int) -> list[Any]:
    """The same pairs, cut where rows x longest would exceed the budget, without sorting."""
    pairs = [
        ([t for t in source.tolist() if t != PAD][:-1], [t for t in target.tolist() if t != PAD][:-1])
        for batch in batches
        for source, target in zip(batch.source, batch.target_out, strict=True)
    ]
    order = np.random.default_rng(1).permutation(len(pairs))
    made: list[list[int]] = [[]]
    longest = 0
    for index in order:
        grown = max(longest, len(pairs[index][0]) + 1, len(pairs[index][1]) + 1)
        if made[-1] and grown * (len(made[-1]) + 1) > budget:
            made.append([])
            grown = max(len(pairs[index][0]) + 1, len(pairs[index][1]) + 1)
        made[-1].append(int(index))
        longest = grown
    return [collate([pairs[i] for i in rows], rows) for rows in made]


def measure(trainer: Trainer, updates: int, rounds: int) -> Iterator[tuple[str, list[float], list[float]]]:
    """(what the lever is, speeds with it, speeds without it)."""
    stream = trainer.stream.epoch(1)
    batches = [next(stream) for _ in range(updates)]
    unsorted = in_random_order(batches, trainer.config.batch_tokens)
    idle = IDLE[str(trainer.config.precision)]
    levers = [lever for name, lever in LEVERS.items() if name not in idle]
    runs: list[tuple[str, Off, Sequence[Any]]] = [(text, off, batches) for text, off in levers]
    runs.append((BUCKETS, lambda trainer: nullcontext(), unsorted))
    speed(trainer, batches)
    for text, off, other in runs:
        on_speeds, off_speeds = [], []
        for turn in range(rounds + 1):
            on = speed(trainer, batches)
            with off(trainer):
                without = speed(trainer, other)
            if turn:  # the first makes kernels and memory ready
                on_speeds.append(on)
                off_speeds.append(without)
        yield text, on_speeds, off_speeds


def alone(flag: str, arguments: argparse.Namespace) -> float:
    """Speed in a process of its own."""
    names = ("shape", "precision", "updates", "threads", "config")
    own = [f"--{name}={getattr(arguments, name)}" for name in names]
    command = [sys.executable, __file__, flag, *own]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def row(text: str, on: Sequence[float], off: Sequence[float]) -> str:
    ratios = sorted(one / other for one, other in zip(on, off, strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    speeds = f"{statistics.median(on):,.0f} | {statistics.median(off):,.0f}"
    return f"| {text} | {statistics.median(ratios):.2f} | {spread} | {speeds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "multi30k.yaml")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--precision", choices=IDLE, default="auto")
    parser.add_argument("--updates", type=int, default=8, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", type=Path, help="a Markdown file for the table (default: print it)")
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--release", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.release:
        keep_freed_memory()
    lines = ["| lever | ratio | of rounds | tokens/s with | without |", "|---|---:|---|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            arguments.shape, Path(folder), arguments.config, arguments.threads, arguments.precision
        )
        if arguments.keep or arguments.release:
            batches = list(islice(trainer.stream.epoch(1), 2 * arguments.updates))
            speed(trainer, batches[: arguments.updates])
            print(json.dumps(speed(trainer, batches[arguments.updates :])))
            return
        for found in measure(trainer, arguments.updates, arguments.rounds):
            lines.append(row(*found))
            say(lines[-1])
    text, keep, release = MEMORY
    turns = [(alone(keep, arguments), alone(release, arguments)) for _ in range(arguments.rounds)]
    lines.append(row(text, [on for on, _ in turns], [off for _, off in turns]))
    if arguments.write is None:
        print("\n".join(lines))
    else:
        arguments.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

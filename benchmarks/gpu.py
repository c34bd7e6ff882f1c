"""What a GPU gets out of this toolkit, in one call of under ten minutes; exits 1 on a wrong number.

    python benchmarks/gpu.py --json gpu.json      # in the checkout, where data/multi30k may be
    python benchmarks/gpu.py --device cpu --tiny --no-compile    # the same code in seconds

Prints Markdown tables, each as soon as it is there:

    correctness  logits, loss and gradients under bf16 autocast against float64 on the CPU
    speed        updates of four models on random text, plain and compiled: tokens/s, use of the hardware,
                 shares of the time, peak memory, graphs
    training     Multi30k, or without it the embedded corpus, to its BLEU against the clock

`of the limit` is the speed over that of the counted products and bytes at the rates of products and copies
measured in this run; `of the peak` the products' operations a second over the fastest product measured in
this run, whatever moves; `MFU` the same over what the maker states for the device (gpu_peaks.py). Shares are
of updates of their own; attention's, projections included, lies within forward and backward and cannot be
told apart in a compiled model. What was not measured is a row that says why. After --minutes nothing begins,
and the training takes no more updates; the model that is being timed or validated then is not cut short. An
error ends it with exit code 1 and its text, after the tables of what was measured by then.

Written without a GPU at hand: on CUDA it has not been run.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from arguments import at_least, new_file
from gpu_check import BOUNDS, correctness
from gpu_peaks import peak_of
from gpu_tables import ceilings_text, check_text, error_text, speed_text, training_text
from gpu_training import training

from transformer.cli.lines import finite
from transformer.cli.result import commit, versions
from transformer.cli.runs import pick_device
from transformer.core.errors import UserError
from transformer.data.encoded import EncodedCorpus
from transformer.model.cost import cost_of
from transformer.speed.ceilings import Ceilings, measure_ceilings
from transformer.speed.process import peak_memory
from transformer.speed.random_text import random_corpus, random_trainer
from transformer.speed.timeline import Timeline
from transformer.speed.training import measure_training
from transformer.speed.work import training_work
from transformer.training.trainer import Trainer

BF16 = torch.bfloat16


def shape(width: int, inner: int, heads: int, layers: int) -> dict[str, Any]:
    depth = {"encoder_layers": layers, "decoder_layers": layers}
    return {"d_model": width, "d_ff": inner, "heads": heads, "dropout": 0.1, "tie_embeddings": "all", **depth}


# Name: model, vocabulary, mean length of a sentence.
SHAPES = {
    "small": (shape(256, 1024, 4, 3), 8000, 15),
    "large": (shape(512, 1024, 8, 6), 10_000, 15),
    "base": (shape(512, 2048, 8, 6), 32_000, 28),
    "big": (shape(1024, 4096, 16, 6), 32_000, 28),
}
TINY = {"tiny": (shape(32, 64, 2, 1), 200, 8)}


def speed(
    name: str, compiled: bool, device: torch.device, ceilings: Ceilings, options: argparse.Namespace
) -> dict[str, Any]:
    """One model's row."""
    model, vocabulary, length = (TINY if options.tiny else SHAPES)[name]
    needed = 2 * (options.updates * 4 + 12) * options.batch_tokens // length
    corpus = random_corpus(min(needed, 150_000), vocabulary, length)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = built(vocabulary, model, corpus, Path(folder), device, compiled, options.batch_tokens)
        begin = time.perf_counter()
        trainer.step([next(iter(trainer.stream.epoch(1)))])
        trainer.window.read()  # waits
        first = time.perf_counter() - begin
        found = measure_training(trainer, options.updates, options.rounds, warm=5)
        memory = peak_memory(device)
        timeline = Timeline(trainer.model, device, attention=not compiled)
        trainer.observer = timeline
        trainer.step([found.batches[0]])
        with timeline.watching():
            for batch in islice(trainer.stream.epoch(2), options.updates):
                trainer.step([batch])
        shares = timeline.shares()
        graphs = trainer.passes.compiled.graphs if trainer.passes.compiled else None
        config, parameters = trainer.model.config, trainer.model.parameter_count()
    work = training_work(cost_of(config, vocabulary, vocabulary), config, found.batches, found.updates)
    tokens = found.tokens_per_update * found.updates
    rate = statistics.median(found.rounds)
    return {
        "speed": rate,
        "rounds": list(found.rounds),
        "of_limit": rate / (tokens / work.seconds(ceilings, "bfloat16")),
        "of_peak": rate * work.operations / tokens / ceilings.products["bfloat16"],
        "mfu": rate * work.operations / tokens / stated if (stated := peak_of(device_name(device))) else None,
        "operations_per_token": work.operations / tokens,
        "shares": shares,
        "memory": memory,
        "first_update": first,
        "graphs": graphs,
        "parameters": parameters,
        "tokens_per_update": found.tokens_per_update,
        "padding": list(found.padding),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def built(
    vocabulary: int,
    model: dict[str, Any],
    corpus: EncodedCorpus,
    folder: Path,
    device: torch.device,
    compiled: bool,
    tokens: int,
) -> Trainer:
    train = {"updates": 1_000_000, "probe_every": 0, "precision": "bf16", "batch_tokens": tokens}
    return random_trainer(vocabulary, model, train | {"compile": compiled}, corpus, folder, device)


def tried(work: Any, ends: float) -> dict[str, Any]:
    """What `work()` gives; where it cannot, or no time is left, why."""
    if time.monotonic() > ends:
        return {"skipped": "no time was left for it"}
    try:
        return dict(work())
    except (UserError, torch.OutOfMemoryError) as error:
        return {"skipped": str(error).strip().splitlines()[-1].strip()}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


Section = tuple[Callable[[], None], Callable[[dict[str, Any]], str]]  # its work, and what it found as text


def in_turn(sections: Sequence[Section], found: dict[str, Any], file: Path | None) -> bool:
    """Do each section's work and write down what it found, up to the first error; is there none?"""
    for work, text in sections:
        try:
            work()
        except Exception as error:  # hours of a rented machine are not lost to what nobody thought of
            found["error"] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        print(text(found), end="\n\n", flush=True)
        if file is not None:
            file.write_text(json.dumps(finite(found), indent=1) + "\n", encoding="utf-8")
        if "error" in found:
            print(error_text(found), flush=True)
            return False
    return True


def sections_of(device: torch.device, options: argparse.Namespace, found: dict[str, Any]) -> list[Section]:
    """Correctness, plain models, training, compiled models: what is dearest comes last, as time may end."""
    ends = time.monotonic() + 60 * options.minutes

    def check() -> None:
        for row in correctness(device, compiled=not options.no_compile):
            found["correctness"].append(row)

    def ceilings() -> None:
        measured = measure_ceilings(device, [BF16], seconds=0.1 if options.tiny else 1.0)
        found["ceilings"] = {"products": measured.products["bfloat16"], "copy": measured.copy}

    def measure(compiled: bool) -> None:
        rates = Ceilings({"bfloat16": found["ceilings"]["products"]}, found["ceilings"]["copy"])
        for name in TINY if options.tiny else SHAPES:
            row: dict[str, Any] = {"shape": name, "compiled": compiled}
            if compiled and options.no_compile:
                found["speed"].append(row | {"skipped": "--no-compile"})
                continue
            print(f"{name}, {'compiled' if compiled else 'plain'}", file=sys.stderr, flush=True)
            done = tried(lambda name=name: speed(name, compiled, device, rates, options), ends)
            found["speed"].append(row | done)

    def trained() -> None:
        def until_the_end() -> dict[str, Any]:
            left = (ends - time.monotonic()) / 60
            return training(device, options.tiny, min(options.train_minutes, left))

        found["training"] = tried(until_the_end, ends)

    return [
        (check, check_text),
        (ceilings, ceilings_text),
        (lambda: measure(compiled=False), lambda found: speed_text(found, compiled=False)),
        (trained, training_text),
        (lambda: measure(compiled=True), lambda found: speed_text(found, compiled=True)),
    ]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the numbers for programs")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a test, no measurement")
    parser.add_argument("--no-compile", action="store_true", help="plain models alone; the rows say so")
    parser.add_argument(
        "--minutes",
        type=float,
        default=7.0,
        help="nothing begins after so long, and the training takes no more updates (default: 7)",
    )
    parser.add_argument("--train-minutes", type=float, default=2.0, help="of the training (default: 2)")
    parser.add_argument(
        "--batch-tokens", type=at_least(1), default=32_768, help="of a batch (default: 32768)"
    )
    parser.add_argument("--updates", type=at_least(1), default=15, help="of a round (default: 15)")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="the median counts (default: 3)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 on a wrong number or an error."""
    options = parser().parse_args(argv)
    if options.tiny:
        options.batch_tokens, options.updates, options.rounds = 256, 2, 2
    try:
        device = pick_device(options.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if device.type == "cpu" and not options.tiny:
        print("note: on a CPU the large shapes take hours; --tiny takes seconds", file=sys.stderr)
    found: dict[str, Any] = {
        "device": device_name(device),
        "stated_peak": peak_of(device_name(device)),
        "batch_tokens": options.batch_tokens,
        "bounds": BOUNDS,
        "versions": versions(),
        "commit": commit(),
        **{"correctness": [], "ceilings": None, "speed": [], "training": None},
    }
    finished = in_turn(sections_of(device, options, found), found, options.json)
    return int(not finished or any(row.get("wrong") for row in found["correctness"]))


if __name__ == "__main__":
    raise SystemExit(main())

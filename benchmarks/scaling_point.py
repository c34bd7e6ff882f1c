"""Measure one point of benchmarks/scaling.py in a process of its own: JSON in, JSON out.

    python benchmarks/scaling_point.py '{"kind": "train", "model": {"d_model": 64}, ...}'

Kinds:

    train    updates of one model: target tokens/s, their limit, shares of the time, peak memory
    pair     updates of a model and of a base on the same batches, in turns: ratio of their times
    prepare  from text to encoded corpora: sentences/s, without a cache, with tokenizers, with everything
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from transformer.cli.runs import pick_device
from transformer.core.special import PAD
from transformer.data.config import DataConfig
from transformer.data.dataset import prepare, read_parallel
from transformer.model.cost import cost_of
from transformer.modules.precision import resolve_precision
from transformer.speed.ceilings import measure_ceilings, name_of, synchronize
from transformer.speed.process import peak_memory
from transformer.speed.random_text import random_corpus, random_trainer
from transformer.speed.training import measure_training
from transformer.speed.work import training_work
from transformer.training.memory import keep_freed_memory
from transformer.training.trainer import Trainer

# What is measured in other points is off: no probes but where a point asks for them.
TRAIN = {"updates": 1_000_000, "warmup": 4000, "probe_every": 0, "validate_bleu": False, "metric": "loss"}


def build(point: dict[str, Any], folder: Path, device: torch.device) -> Trainer:
    """The trainer that a point or its base describes, on random text of as many pairs as it takes."""
    train = TRAIN | point["train"]
    updates = 4 + point["updates"] * (2 if point["kind"] == "train" else 1)
    pairs = min(40_000, max(400, int(2.5 * updates * train["batch_tokens"] / point["length"])))
    corpus = random_corpus(pairs, point["vocabulary"], point["length"])
    return random_trainer(point["vocabulary"], point["model"], train, corpus, folder, device)


def train(point: dict[str, Any], folder: Path, device: torch.device) -> dict[str, Any]:
    trainer = build(point, folder, device)
    before = peak_memory(device)
    speed = measure_training(trainer, point["updates"], point["rounds"], warm=2)
    memory = peak_memory(device)
    dtype = resolve_precision(trainer.config.precision, device)
    config = trainer.model.config
    work = training_work(
        cost_of(config, point["vocabulary"], point["vocabulary"]), config, speed.batches, speed.updates
    )
    ceilings = measure_ceilings(device, [dtype])
    tokens = speed.tokens_per_update * speed.updates
    return {
        "speed": statistics.median(speed.rounds),
        "rounds": list(speed.rounds),
        "limit": tokens / work.seconds(ceilings, name_of(dtype)),
        "precision": name_of(dtype),
        "shares": dict(speed.parts),
        "parameters": trainer.model.parameter_count(),
        "tokens_per_update": speed.tokens_per_update,
        "length": sum(len(row) - int((row == PAD).sum()) for b in speed.batches for row in b.target_out)
        / sum(len(b.target_out) for b in speed.batches),
        "memory": memory,
        "memory_before": before,  # of libraries, corpus and initial weights
    }


def pair(point: dict[str, Any], folder: Path, device: torch.device) -> dict[str, Any]:
    """First the model alone, for its memory; then both in turns, each turn over the same batches."""
    arm = build(point, folder / "arm", device)
    batches = list(islice(arm.stream.epoch(1), point["updates"]))
    one = turn(arm, batches, point["log"], device)
    one()
    memory = peak_memory(device)
    base = build(point | point["base"], folder / "base", device)
    other = turn(base, batches, False, device)
    other()
    seconds = [(one(), other()) if i % 2 else (other(), one())[::-1] for i in range(point["rounds"])]
    for trainer in (arm, base):
        trainer.logbook.close()
    return {
        "ratio": statistics.median(a / b for a, b in seconds),
        "seconds": statistics.median(a for a, _ in seconds) / len(batches),
        "base_seconds": statistics.median(b for _, b in seconds) / len(batches),
        "parameters": arm.model.parameter_count(),
        "memory": memory,
    }


def turn(trainer: Trainer, batches: Sequence[Any], log: bool, device: torch.device) -> Callable[[], float]:
    """A function that trains once on all batches, as `Trainer.fit` does, and gives the seconds."""
    trainer.model.train()
    trainer.logbook.open()

    def work() -> float:
        synchronize(device)
        begin = time.perf_counter()
        for batch in batches:
            trainer.step([batch])
            if reading := trainer.monitor.read():
                trainer.logbook.probe(trainer.progress.update, reading)
            if log:
                trainer.log()
        synchronize(device)
        return time.perf_counter() - begin

    return work


def prepare_text(point: dict[str, Any], folder: Path, device: torch.device) -> dict[str, Any]:
    text = read_parallel(point["text"], "en", "de", "train")
    pairs = (text * (point["pairs"] // len(text) + 1))[: point["pairs"]]
    for side, language in enumerate(("en", "de")):
        lines = "".join(f"{row[side]}\n" for row in pairs)
        (folder / f"text.{language}").write_text(lines, encoding="utf-8")
    prefix, cache = str(folder / "text"), folder / "cache"
    config = DataConfig(
        train=(prefix,),
        valid=point["text"] if point["text"] == "demo" else prefix,
        tokenizer={"vocab_size": point["vocabulary"]},
        cache=str(cache),
    )

    def timed() -> float:
        begin = time.perf_counter()
        prepare(config, folder / "run", 1, lambda line: None)
        return len(pairs) / (time.perf_counter() - begin)

    found = {"whole": timed()}
    shutil.rmtree(cache / "encoded")
    found["encoding"] = timed()
    return found | {"cached": timed(), "pairs": len(pairs), "memory": peak_memory(device)}


def main(text: str) -> None:
    point = json.loads(text)
    device = pick_device(point["device"])
    if point["threads"]:
        torch.set_num_threads(point["threads"])
    keep_freed_memory()
    measure = {"train": train, "pair": pair, "prepare": prepare_text}[point["kind"]]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(point, Path(folder), device)
    print(json.dumps(found | {"threads": torch.get_num_threads(), "torch": torch.__version__}))


if __name__ == "__main__":
    main(sys.argv[1])

"""This toolkit: `train.py` on the raw text with the shared tokenizer, and the translator's engine.

Pre-LN, all embeddings one matrix. Training is what `python train.py` runs, prefetching, log, probes and
TensorBoard included; it starts from raw text and an empty cache. `--variant float32` sets the precision of
training and translation, which is `auto` otherwise: bf16 where the hardware is fast at it. Translations of 16
pieces end in an EOS that is computed as well, a seventeenth step.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from transformer.cli.runs import load_run
from transformer.cli.train import main as train_main
from transformer.data.batching import Batch
from transformer.decoding.config import DecodeConfig
from transformer.decoding.engine import Models, Request
from transformer.decoding.limits import Limits
from transformer.training.memory import keep_freed_memory
from transformer.training.passes import Passes

from . import shapes, text
from .meter import Meter, Task, adapter, translated
from .preparation import data_config


def configuration(task: Task, directory: Path, updates: int) -> Path:
    """The YAML of a run in `directory`."""
    shape = task.sizes
    data = data_config(shape.name, task.data / "tokenizer").model_dump(mode="json")
    sections = {
        "run_dir": str(directory / "run"),
        "data": {**data, "cache": str(directory / "cache")},
        "model": {
            "placement": "pre",
            "d_model": shape.d_model,
            "d_ff": shape.d_ff,
            "heads": shape.heads,
            "encoder_layers": shape.layers,
            "decoder_layers": shape.layers,
            "dropout": shapes.DROPOUT,
            "tie_embeddings": "all",
        },
        "train": {
            "lr": shapes.LEARNING_RATE,
            "betas": list(shapes.BETAS),
            "epsilon": shapes.EPSILON,
            "clip": shapes.CLIP,
            "schedule": "constant",
            "warmup": shapes.WARMUP,
            "label_smoothing": shapes.LABEL_SMOOTHING,
            "batch_tokens": shapes.BATCH_TOKENS,
            "precision": task.variant or "auto",
            "threads": task.threads,
            "updates": updates,
            "validate_every": updates,
            "validate_bleu": False,
            "metric": "loss",
        },
    }
    file = directory / "run.yaml"
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return file


class MeteredPasses(Passes):
    """Passes whose tokens and losses are seen by a meter."""

    meter: Meter

    def run(self, micro_batches: Any, *arguments: Any) -> Any:
        batches: list[Batch] = list(micro_batches)
        for batch in batches:
            self.meter.count(batch.target_tokens, batch.target_out.numel())
        tokens, loss, nll = super().run(batches, *arguments)
        self.meter.loss(float(loss) / tokens)
        return tokens, loss, nll


def train(task: Task) -> dict[str, Any]:
    from transformer.training import trainer

    meter = MeteredPasses.meter = task.meter()
    vars(trainer)["Passes"] = MeteredPasses
    with tempfile.TemporaryDirectory() as directory, meter.training():
        arguments = [str(configuration(task, Path(directory), task.total)), "--device", "cpu"]
        raise RuntimeError(f"train.py ended with {train_main(arguments)}")
    return meter.result()


def model(task: Task) -> None:
    """A run of one update: its weights are near their initial values."""
    file = configuration(task, task.model, 1)
    if code := train_main([str(file), "--device", "cpu", "--set", "train.average=0", "--overwrite"]):
        raise SystemExit(code)


def translate(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    keep_freed_memory()
    engine = Models([load_run(task.model / "run").model], "float32" if task.variant else "auto")
    batches = text.test_batches(task.data)
    length = shapes.TARGET_LENGTH

    def search(batch: list[list[int]], beam: int) -> list[tuple[int, ...]]:
        config = DecodeConfig(beam=beam, min_length=length, max_length=length)
        requests = [Request(i, ids, Limits(length, length)) for i, ids in enumerate(batch)]
        with engine.working():
            return [best.tokens for (best, *_) in engine.search(requests, config)]

    return translated(
        lambda beam: [ids for batch in batches for ids in search(batch, beam)],
        lambda beam: search(batches[0], beam),
        sum(map(len, batches)),
    )


if __name__ == "__main__":
    adapter(model=model, train=train, translate=translate)

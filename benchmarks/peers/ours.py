"""This toolkit: `train.py` on the raw text with the shared tokenizer, and the translator's engine.

Pre-LN, all embeddings one matrix. Training is what `python train.py` runs, prefetching, log, probes and
TensorBoard included; it starts from raw text and an empty cache. `--variant float32` sets the precision of
training and translation, which is `auto` otherwise: bf16 where the hardware is fast at it. `--variant int8`
translates with 8-bit products. A translation always ends in an EOS that is computed as well: it is forced to
15 pieces and its EOS, so that it takes sixteen steps as the others' do. Translation forks a process for each
thread; `memory` is that of all of them, what they share counted for each.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml

from transformer import Transformer
from transformer.cli.runs import load_run
from transformer.cli.train import main as train_main
from transformer.core.special import EOS
from transformer.data.batching import Batch
from transformer.decoding.config import DecodeConfig
from transformer.decoding.engine import Models, Request
from transformer.decoding.forked import ForkedModels
from transformer.decoding.limits import Limits
from transformer.model.cost import cost_of
from transformer.modules.precision import InferencePrecision, resolve_precision
from transformer.speed.ceilings import measure_ceilings, name_of
from transformer.speed.process import peak_memory
from transformer.speed.work import training_work, translation_work
from transformer.training.memory import keep_freed_memory
from transformer.training.passes import Passes

from . import shapes, text
from .meter import Meter, Task, adapter, translated
from .preparation import data_config

CPU = torch.device("cpu")
PRECISIONS: dict[str, InferencePrecision] = {"": "auto", "float32": "float32", "int8": "int8"}


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
            "precision": "auto" if task.variant == "int8" else task.variant or "auto",
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
    last: ClassVar[MeteredPasses]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[Batch] = []

    def run(self, micro_batches: Any, *arguments: Any) -> Any:
        batches: list[Batch] = list(micro_batches)
        for batch in batches:
            target = batch.target_tokens, batch.target_out.numel()
            self.meter.count((batch.source_tokens, batch.source.numel()), target)
        self.seen += batches
        type(self).last = self
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
    return {**meter.result(), "limits": training_limits(task, MeteredPasses.last)}


def training_limits(task: Task, passes: MeteredPasses) -> dict[str, dict[str, float]]:
    """Target tokens/s of the timed batches at this machine's rates in the format of the variant."""
    batches, config = passes.seen[-task.timed :], passes.model.config
    cost = cost_of(config, task.sizes.vocabulary, task.sizes.vocabulary)
    work, tokens = training_work(cost, config, batches), sum(batch.target_tokens for batch in batches)
    dtype = resolve_precision(PRECISIONS[task.variant], CPU)
    seconds = work.seconds(measure_ceilings(CPU, [dtype]), name_of(dtype))
    return {name_of(dtype): {"tokens_per_second": tokens / seconds}}


def translation_limits(
    task: Task, model: Transformer, lengths: list[int], dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Sentences/s by beam at this machine's rates of products in `dtype` and of copies."""
    cost = cost_of(model.config, task.sizes.vocabulary, task.sizes.vocabulary)
    lines, ceilings = [(length, shapes.STEPS) for length in lengths], measure_ceilings(CPU, [dtype])
    rates = {}
    for beam in shapes.BEAMS:
        work = translation_work(cost, model.config, lines, beam, dtype.itemsize)
        seconds = work.seconds(ceilings, name_of(dtype))
        rates[f"sentences_per_second_beam_{beam}"] = len(lines) / seconds
    return {name_of(dtype): rates}


def model(task: Task) -> None:
    """A run of one update: its weights are near their initial values."""
    file = configuration(task, task.model, 1)
    if code := train_main([str(file), "--device", "cpu", "--set", "train.average=0", "--overwrite"]):
        raise SystemExit(code)


def translate(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    keep_freed_memory()
    model = load_run(task.model / "run").model
    engine = ForkedModels([model], PRECISIONS[task.variant])
    batches = text.test_batches(task.data)
    lengths = [len(ids) + 1 for batch in batches for ids in batch]
    with engine.working():
        found = translated(
            lambda beam: search(engine, batches, beam),
            lambda beam: search(engine, batches[: task.threads], beam),  # each process casts its weights
            len(lengths),
        )
    found["peak_bytes"] = peak_memory(CPU, forked=task.threads if task.threads > 1 else 0)
    return {**found, "limits": translation_limits(task, model, lengths, engine.dtype)}


def search(engine: Models, batches: list[list[list[int]]], beam: int) -> list[tuple[int, ...]]:
    """Translations with their EOS, for which the last of the steps is made."""
    length = shapes.STEPS - 1
    config = DecodeConfig(beam=beam, min_length=length, max_length=length)
    requests = [[Request(i, ids, Limits(length, length)) for i, ids in enumerate(b)] for b in batches]
    found = engine.search_all(requests, config)
    return [(*best.tokens, EOS) for batch in found for (best, *_) in batch]


if __name__ == "__main__":
    adapter(model=model, train=train, translate=translate)

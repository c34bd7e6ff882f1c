"""JoeyNMT: its training and prediction, run in this process.

Pre-LN; one matrix for all embeddings; float32: it has fp16 besides, which it switches off on a CPU. Its
dropout reaches the attention weights and the hidden layers too. Its token batches are not sorted by length,
so more than half of each is padding: they are asked for at 2.35 times the size of the others', which gives
about as many target tokens an update. Shim: `predict` logs `min_output_length` and does not hand it to
`search`, which takes it; here it is handed on. Its translation batches of 64 are in the text's order.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from joeynmt import prediction
from joeynmt.config import parse_global_args
from joeynmt.training import TrainManager
from joeynmt.training import train as train_main

from . import shapes
from .meter import Task, adapter, translated

NEVER = 1_000_000
MORE = 2.35  # of the batch size, for as many target tokens an update, by count over a pass of the text


def options(task: Task, directory: Path, updates: int) -> dict[str, Any]:
    """What its configuration file would hold."""
    shape, data = task.sizes, task.data
    side = {"level": "word", "voc_file": str(data / "pieces.txt")}
    stack = {
        "type": "transformer",
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "embeddings": {"embedding_dim": shape.d_model, "scale": True, "dropout": shapes.DROPOUT},
        "hidden_size": shape.d_model,
        "ff_size": shape.d_ff,
        "dropout": shapes.DROPOUT,
        "layer_norm": "pre",
    }
    return {
        "name": shape.name,
        "model_dir": str(directory),
        "use_cuda": False,
        "random_seed": 1,
        "data": {
            "train": str(data / "train"),
            "dev": str(data / "valid"),
            "test": str(data / shapes.TEST_SET),
            "dataset_type": "plain",
            "src": {**side, "lang": "source"},
            "trg": {**side, "lang": "target"},
        },
        "testing": {
            "load_model": str(directory / "model.ckpt"),
            "batch_size": shapes.BATCH_SENTENCES,
            "batch_type": "sentence",
            "min_output_length": shapes.STEPS,
            "max_output_length": shapes.STEPS,
            "beam_alpha": 0,
        },
        "training": {
            "optimizer": "adam",
            "adam_betas": list(shapes.BETAS),
            "learning_rate": shapes.LEARNING_RATE,
            "learning_rate_min": 0.0,
            "learning_rate_warmup": shapes.WARMUP,
            "scheduling": "warmupinversesquareroot",
            "normalization": "tokens",
            "label_smoothing": shapes.LABEL_SMOOTHING,
            "clip_grad_norm": shapes.CLIP,
            "batch_type": "token",
            "batch_size": round(MORE * shapes.BATCH_TOKENS),
            "logging_freq": 50,
            "validation_freq": NEVER,
            "epochs": NEVER,
            "updates": updates,
        },
        "model": {
            "initializer": "xavier_uniform",
            "bias_initializer": "zeros",
            "init_gain": 1.0,
            "embed_initializer": "xavier_uniform",
            "embed_init_gain": 1.0,
            "tied_embeddings": True,
            "tied_softmax": True,
            "encoder": stack,
            "decoder": stack,
        },
    }


def train(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    meter = task.meter()
    step = TrainManager._train_step

    @functools.wraps(step)
    def counted(self: Any, batch: Any) -> Any:
        source = int(batch.src_mask.sum()), batch.src.numel()
        meter.count(source, (batch.ntokens, batch.trg.numel()))
        loss, correct = step(self, batch)
        meter.loss(loss)
        return loss, correct

    TrainManager._train_step = counted
    with tempfile.TemporaryDirectory() as directory, meter.training():
        train_main(0, 1, options(task, Path(directory), task.total), skip_test=True)
    return meter.result()


def model(task: Task) -> None:
    torch.set_num_threads(task.threads)
    train_main(0, 1, options(task, task.model, 1), skip_test=True)
    (task.model / "1.ckpt").rename(task.model / "model.ckpt")


def translate(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    length = shapes.STEPS
    prediction.search = functools.partial(prediction.search, min_output_length=length)
    args = parse_global_args(options(task, task.model, 1), mode="test")
    network, _, valid, test = prediction.prepare(args, rank=0, mode="test")

    def search(text: Any, sentences: int, beam: int) -> list[list[str]]:
        text.reset_indices(random_subset=sentences)
        found = prediction.predict(
            model=network,
            data=text,
            device=args.device,
            n_gpu=0,
            args=args.test._replace(beam_size=beam),
            autocast=args.autocast,
        )
        pieces: list[list[str]] = found[3]
        return pieces

    return translated(
        lambda beam: search(test, -1, beam),
        lambda beam: search(valid, shapes.BATCH_SENTENCES, beam),
        len(test),
    )


if __name__ == "__main__":
    adapter(model=model, train=train, translate=translate)

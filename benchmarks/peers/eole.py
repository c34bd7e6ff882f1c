"""Eole, the successor of OpenNMT-py: its training and its inference engine, run in this process.

Pre-LN; one matrix for all embeddings. float32, its default; the variant bf16 is its `compute_dtype`: it
trains by autocast and translates with weights in bf16. Its int8 is refused by its own configuration, which
asks for an option that this version does not have (`gpu`). Batches are its own, rows x longest side, sorted
by source first; it counts the target's BOS and EOS too and pads the target more, so that it is asked for 1.15
times the size of the others', which gives as many target tokens an update. Its bucket is the corpus, and the
batches are made in the process itself. Its dropout falls on the feed-forward's hidden layer, too, which is
taken back.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from eole.bin.run.train import train as train_main
from eole.config.run import PredictConfig, TrainConfig
from eole.inference_engine import InferenceEnginePY
from eole.modules.transformer_mlp import MLP
from eole.utils.loss import LossCompute
from eole.utils.misc import set_random_seed

from . import shapes
from .meter import Task, adapter, filled, translated
from .same_work import attention, keep_hidden
from .text import pieces

MORE = 1.15  # of the batch size, for as many target tokens an update, by count over a pass of the text


def options(task: Task, directory: Path, updates: int) -> Any:
    """What its configuration file would hold."""
    shape, data = task.sizes, task.data
    corpus = {"path_src": str(data / "train.source"), "path_tgt": str(data / "train.target")}
    return TrainConfig(
        data={"corpus": {**corpus, "transforms": []}},
        src_vocab=str(data / "pieces.txt"),
        tgt_vocab=str(data / "pieces.txt"),
        share_vocab=True,
        seed=1,
        model={
            "architecture": "transformer",
            "layers": shape.layers,
            "hidden_size": shape.d_model,
            "transformer_ff": shape.d_ff,
            "heads": shape.heads,
            "share_embeddings": True,
            "share_decoder_embeddings": True,
            "add_qkvbias": True,
            "add_final_linear_bias": True,
            "add_ffnbias": True,
            "embeddings": {
                "word_vec_size": shape.d_model,
                "position_encoding_type": "SinusoidalInterleaved",
            },
        },
        training={
            "model_path": str(directory / "model"),
            "batch_type": "tokens",
            "batch_size": round(MORE * shapes.BATCH_TOKENS),
            "bucket_size": len(pieces(data / "train.source")),
            "num_workers": 0,
            "optim": "adam",
            "adam_beta1": shapes.BETAS[0],
            "adam_beta2": shapes.BETAS[1],
            "adam_eps": shapes.EPSILON,
            "learning_rate": shapes.LEARNING_RATE,
            "max_grad_norm": shapes.CLIP,
            "normalization": "tokens",
            "dropout": [shapes.DROPOUT],
            "attention_dropout": [0.0],
            "label_smoothing": shapes.LABEL_SMOOTHING,
            "param_init_method": "xavier_uniform",
            "train_steps": updates,
            "save_checkpoint_steps": max(updates, 1),
            "compute_dtype": task.variant or "fp32",
            "world_size": 1,
            "gpu_ranks": [],
        },
    )


def train(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    meter = task.meter()
    forward = LossCompute.forward

    @functools.wraps(forward)
    def counted(self: Any, batch: Any, *arguments: Any, **named: Any) -> Any:
        tokens, places = filled(batch["tgt"][:, 1:], self.padding_idx)
        meter.count(filled(batch["src"], self.padding_idx), (tokens, places))
        loss, *rest = forward(self, batch, *arguments, **named)
        meter.loss(loss.item() / tokens)
        return loss, *rest

    LossCompute.forward = counted
    keep_hidden(MLP, "dropout_1")
    with tempfile.TemporaryDirectory() as directory, meter.training(), attention(task):
        train_main(options(task, Path(directory), task.total))
    return meter.result()


def model(task: Task) -> None:
    torch.set_num_threads(task.threads)
    train_main(options(task, task.model, 1))


def translate(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    set_random_seed(1, False)
    source = task.data / f"{shapes.TEST_SET}.source"
    engine = InferenceEnginePY(
        PredictConfig(
            model_path=[str(task.model / "model")],
            src=str(source),
            output=str(task.model / "found.txt"),
            batch_type="sents",
            batch_size=shapes.BATCH_SENTENCES,
            min_length=shapes.STEPS,
            max_length=shapes.STEPS,
            max_length_ratio=0,
            length_penalty="none",
            ban_unk_token=True,
            compute_dtype=task.variant or "fp32",
            world_size=1,
            gpu_ranks=[],
        )
    )
    lines = [" ".join(line) for line in pieces(source)]
    first = sorted(lines, key=len, reverse=True)[: shapes.BATCH_SENTENCES]

    def search(these: list[str], beam: int) -> list[list[str]]:
        _, _, found = engine.infer_list(these, settings={"beam_size": beam})
        if engine.predictor.beam_size != beam:
            raise RuntimeError("the beam was not set")
        return [best.split(" ") for (best, *_) in found]

    return translated(lambda beam: search(lines, beam), lambda beam: search(first, beam), len(lines))


if __name__ == "__main__":
    adapter(model=model, train=train, translate=translate)

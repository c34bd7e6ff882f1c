"""OpenNMT-py: its training and translation commands, run in this process.

Pre-LN, the only one its Transformer has; one matrix for all embeddings. Its number formats are float32 and
fp16, and that by CUDA's autocast alone: on a CPU it has no bf16. The variant int8 translates with
`--precision int8`, torch's dynamic quantization. Batches are its own, rows x longest side, sorted by source
first; it counts the target's BOS and EOS too and pads the target more, so that it is asked for 1.15 times the
size of the others', which gives as many target tokens an update. Its bucket is the corpus, and the batches
are made in the process itself. It pins an older torch and is installed beside this one. Shim: `torch.load`
gets `weights_only=False`, the default of the torch it was written for; without it no checkpoint of its own
can be read. Its dropout falls on the feed-forward's hidden layer, too, which is
taken back.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from onmt.bin.train import _get_parser as training_parser
from onmt.bin.train import train as train_main
from onmt.bin.translate import _get_parser as translation_parser
from onmt.inference_engine import InferenceEnginePY
from onmt.modules.position_ffn import PositionwiseFeedForward
from onmt.utils.loss import LossCompute
from onmt.utils.misc import set_random_seed
from onmt.utils.parse import ArgumentParser

from . import shapes
from .meter import Task, adapter, filled, translated
from .same_work import keep_hidden
from .text import pieces

MORE = 1.15  # of the batch size, for as many target tokens an update, by count over a pass of the text


def options(task: Task, directory: Path, updates: int) -> Any:
    """The options of `onmt_train`."""
    shape, data = task.sizes, task.data
    corpus = {"path_src": str(data / "train.source"), "path_tgt": str(data / "train.target")}
    values = {
        "data": {"corpus": {**corpus, "transforms": []}},
        "src_vocab": str(data / "pieces.txt"),
        "tgt_vocab": str(data / "pieces.txt"),
        "share_vocab": True,
        "share_embeddings": True,
        "share_decoder_embeddings": True,
        "save_model": str(directory / "model"),
        "encoder_type": "transformer",
        "decoder_type": "transformer",
        "position_encoding": True,
        "enc_layers": shape.layers,
        "dec_layers": shape.layers,
        "hidden_size": shape.d_model,
        "word_vec_size": shape.d_model,
        "transformer_ff": shape.d_ff,
        "heads": shape.heads,
        "add_qkvbias": True,
        "add_ffnbias": True,
        "dropout": [shapes.DROPOUT],
        "attention_dropout": [0.0],
        "label_smoothing": shapes.LABEL_SMOOTHING,
        "param_init": 0,
        "param_init_glorot": True,
        "optim": "adam",
        "adam_beta1": shapes.BETAS[0],
        "adam_beta2": shapes.BETAS[1],
        "learning_rate": shapes.LEARNING_RATE,
        "max_grad_norm": shapes.CLIP,
        "normalization": "tokens",
        "batch_type": "tokens",
        "batch_size": round(MORE * shapes.BATCH_TOKENS),
        "bucket_size": len(pieces(data / "train.source")),
        "num_workers": 0,
        "train_steps": updates,
        "save_checkpoint_steps": 1_000_000,
        "world_size": 1,
        "gpu_ranks": [],
        "seed": 1,
    }
    file = directory / "options.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return training_parser().parse_args(["--config", str(file)])


def train(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    meter = task.meter()
    forward = LossCompute.forward

    @functools.wraps(forward)
    def counted(self: Any, batch: Any, *arguments: Any, **named: Any) -> Any:
        source, target = batch["src"][..., 0], batch["tgt"][:, 1:, 0]
        tokens, places = filled(target, self.padding_idx)
        meter.count(filled(source, self.padding_idx), (tokens, places))
        loss, statistics = forward(self, batch, *arguments, **named)
        meter.loss(loss.item() / tokens)
        return loss, statistics

    LossCompute.forward = counted
    keep_hidden(PositionwiseFeedForward, "dropout_1")
    with tempfile.TemporaryDirectory() as directory, meter.training():
        train_main(options(task, Path(directory), task.total))
    return meter.result()


def model(task: Task) -> None:
    torch.set_num_threads(task.threads)
    train_main(options(task, task.model, 1))
    (task.model / "model_step_1.pt").rename(task.model / "model.pt")


def translate(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    torch.load = functools.partial(torch.load, weights_only=False)
    length = str(shapes.STEPS)
    source = task.data / f"{shapes.TEST_SET}.source"
    words = ["--model", task.model / "model.pt", "--src", source, "--output", task.model / "found.txt"]
    words += ["--batch_size", shapes.BATCH_SENTENCES, "--batch_type", "sents", "--gpu", -1]
    words += ["--min_length", length, "--max_length", length, "--max_length_ratio", 0, "--ban_unk_token"]
    words += ["--length_penalty", "none", "--precision", task.variant or "fp32"]
    given = translation_parser().parse_args([*map(str, words)])
    ArgumentParser.validate_translate_opts(given)
    ArgumentParser._get_all_transform_translate(given)
    ArgumentParser._validate_transforms_opts(given)
    ArgumentParser.validate_translate_opts_dynamic(given)
    set_random_seed(1, False)
    engine = InferenceEnginePY(given)
    lines = [" ".join(line) for line in pieces(source)]
    first = sorted(lines, key=len, reverse=True)[: shapes.BATCH_SENTENCES]

    def search(these: list[str], beam: int) -> list[list[str]]:
        engine.translator.beam_size = beam
        _, found = engine.infer_list(these)
        return [best.split(" ") for (best, *_) in found]

    return translated(lambda beam: search(lines, beam), lambda beam: search(first, beam), len(lines))


if __name__ == "__main__":
    adapter(model=model, train=train, translate=translate)

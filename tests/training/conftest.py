"""A task small enough to learn in a second, and a trainer on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from transformer.core.special import BOS, EOS, PAD
from transformer.model.transformer import Transformer
from transformer.training.config import TrainConfig
from transformer.training.logbook import Logbook
from transformer.training.loss import sequence_loss
from transformer.training.trainer import Trainer

VOCAB = 14


@dataclass(frozen=True)
class Batch:
    source: Tensor
    target_in: Tensor
    target_out: Tensor

    @property
    def target_tokens(self) -> int:
        return int((self.target_out != PAD).sum())

    def to(self, device: torch.device) -> Batch:
        return self

    def rows(self, rows: slice) -> Batch:
        return replace(
            self, source=self.source[rows], target_in=self.target_in[rows], target_out=self.target_out[rows]
        )


def make_batch(seed: int, rows: int = 4) -> Batch:
    """Sources of 2 to 5 tokens and their reverse, right-padded."""
    generator = torch.Generator().manual_seed(seed)
    source, target_in, target_out = (torch.full((rows, 6), PAD) for _ in range(3))
    for row in range(rows):
        length = int(torch.randint(2, 6, (), generator=generator))
        tokens = torch.randint(4, VOCAB, (length,), generator=generator)
        source[row, : length + 1] = torch.cat([tokens, torch.tensor([EOS])])
        target_in[row, : length + 1] = torch.cat([torch.tensor([BOS]), tokens.flip(0)])
        target_out[row, : length + 1] = torch.cat([tokens.flip(0), torch.tensor([EOS])])
    return Batch(source, target_in, target_out)


class Stream:
    """`batches` batches an epoch, a function of (epoch, position)."""

    def __init__(self, batches: int = 7) -> None:
        self.batches = batches

    def batches_in(self, epoch: int) -> int:
        return self.batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for position in range(start, self.batches):
            yield make_batch(1000 * epoch + position)


def validate(model: Transformer) -> Mapping[str, float]:
    batch = make_batch(seed=7, rows=8)
    loss, nll = sequence_loss(
        model.hidden(batch.source, batch.target_in), model.output_weight, batch.target_out
    )
    nll_per_token = nll.item() / batch.target_tokens
    return {
        "loss": loss.item() / batch.target_tokens,
        "nll": nll_per_token,
        "bleu": 100 / (1 + nll_per_token),
    }


@dataclass(frozen=True)
class Workshop:
    """Builds models and trainers; `run_dir` is fresh for each test."""

    run_dir: Path

    def model(self, **flags: Any) -> Transformer:
        shape = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 1, "decoder_layers": 1}
        return Transformer(VOCAB, VOCAB, **{**shape, "dropout": 0.1, "tie_embeddings": "all", **flags})

    def config(self, **options: Any) -> TrainConfig:
        common = {"updates": 12, "warmup": 3, "lr": 3e-3, "metric": "loss", "precision": "float32"}
        return TrainConfig(**{**common, "validate_every": 4, "log_every": 2, "average": 2, **options})

    def trainer(
        self,
        name: str = "run",
        *,
        model: Transformer | None = None,
        stream: Stream | None = None,
        validate: Callable[[Transformer], Mapping[str, float]] = validate,
        unigram_loss: float | None = None,
        tensorboard: bool = False,
        samples: Callable[[], str] | None = None,
        **options: Any,
    ) -> Trainer:
        directory = self.run_dir / name
        return Trainer(
            self.model() if model is None else model,
            Stream() if stream is None else stream,
            self.config(**options),
            directory,
            validate,
            unigram_loss=unigram_loss,
            samples=samples,
            logbook=Logbook(directory, tensorboard=tensorboard, quiet=True),
        )

    batch = staticmethod(make_batch)
    validation = staticmethod(validate)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    # No test pulls the plug, and waiting for the disk is half of their time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return Workshop(tmp_path)

"""Training without text: random ids in sentences of Multi30k's lengths, and a trainer on them.

What an update costs depends on lengths and sizes, not on which words there are; so each size, the vocabulary
too, can be changed by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from ..core.special import EOS
from ..data.batching import BatchStream
from ..data.encoded import EncodedCorpus
from ..model.config import ModelConfig
from ..model.transformer import Transformer
from ..training.config import TrainConfig
from ..training.logbook import Logbook
from ..training.trainer import Trainer

# Multi30k, English-German, 6,000 joint subwords: standard deviations of log S and of log (T / S).
_SPREAD, _RATIO = 0.29, 0.17
_PREFETCH = 4  # batches made ahead, as in train.py


def random_corpus(pairs: int, vocabulary: int, mean: float, seed: int = 1) -> EncodedCorpus:
    """Pairs whose lengths, EOS included, are log-normal about `mean`; uniform ids, no special ones."""
    generator = np.random.default_rng(seed)
    middle = np.log(mean) - _SPREAD**2 / 2
    source = np.exp(generator.normal(middle, _SPREAD, pairs))
    target = source * np.exp(generator.normal(-(_RATIO**2) / 2, _RATIO, pairs))
    first = EOS + 1

    def ids(length: float) -> list[int]:
        row: list[int] = generator.integers(first, vocabulary, max(round(length) - 1, 1)).tolist()
        return row

    return EncodedCorpus.of([(ids(s), ids(t)) for s, t in zip(source, target, strict=True)])


def random_trainer(
    vocabulary: int,
    model: Mapping[str, Any],
    train: Mapping[str, Any],
    corpus: EncodedCorpus,
    folder: Path,
    device: torch.device,
) -> Trainer:
    """A trainer of a fresh model, both with options as a configuration has them, on the corpus' batches.

    It has nothing to validate with: it is there for `step`, not for `fit`.
    """

    def validate(model: Transformer) -> NoReturn:
        raise AssertionError("there is nothing to validate with")

    config = TrainConfig(**train)
    return Trainer(
        Transformer(vocabulary, vocabulary, ModelConfig(**model), seed=1).to(device),
        BatchStream(corpus, config.batch_tokens, 1, prefetch=_PREFETCH),
        config,
        folder,
        validate,
        logbook=Logbook(folder, quiet=True),
    )

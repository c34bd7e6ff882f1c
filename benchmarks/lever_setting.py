"""What a lever of translation is timed on: a model, and lines that are ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transformer.decoding.config import DecodeConfig
from transformer.decoding.limits import Limits
from transformer.decoding.translation import Translation
from transformer.decoding.translator import Translator
from transformer.model.transformer import Transformer
from transformer.modules.precision import resolve_precision

Pair = tuple[list[int], list[int]]  # source and target, without EOS


class Numbers:
    """A tokenizer of lines that are ids: text takes no time."""

    def __init__(self, size: int) -> None:
        self.size = size

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.pieces(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [str(i) for i in ids]


class Task(Translator):
    """The product's translator, but each translation is as long as the reference.

    A model with initial weights knows no lengths; so those of a batch differ as they do in use.
    """

    def __init__(self, model: Transformer, pairs: Sequence[Pair], beam: int, precision: str) -> None:
        longest = max(max(len(source), len(target)) for source, target in pairs)
        options = {"max_length": longest, "max_source_length": longest, "beam": beam, "precision": precision}
        tokenizers = Numbers(model.source_vocab), Numbers(model.target_vocab)
        super().__init__([model], *tokenizers, DecodeConfig(**options), fork=True)  # type: ignore[arg-type]
        self.lines = [" ".join(map(str, source)) for source, _ in pairs]
        self.lengths = [len(target) for _, target in pairs]

    def _limits(self, line: Any) -> Limits:
        return Limits(self.lengths[line.number], self.lengths[line.number])

    def run(self, lines: int | None = None) -> list[Translation]:
        return list(self.translate(self.lines[:lines]))


@dataclass(frozen=True)
class Setting:
    """Of which model, in which way; `dtype` is that of products."""

    model: Transformer
    pairs: Sequence[Pair]
    beam: int
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        return resolve_precision(self.precision, self.model.output_weight.device)  # type: ignore[arg-type]

    def task(self, precision: str | None = None) -> Task:
        return Task(self.model, self.pairs, self.beam, precision or self.precision)

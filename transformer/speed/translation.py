"""Translation, timed: the product's own translator on lines of text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..decoding.config import DecodeConfig
from ..decoding.translator import LineTranslator


@dataclass(frozen=True)
class TranslationSpeed:
    """`rounds`: sentences/s, each over all lines; `lines`: (source subwords with EOS, steps) of each."""

    beam: int
    rounds: Sequence[float]
    lines: Sequence[tuple[int, int]]


def forced(config: DecodeConfig, beam: int, length: int | None) -> DecodeConfig:
    """Beam search with `beam`, and every translation `length` subwords long where that is given."""
    chosen: dict[str, object] = {"search": "beam", "beam": beam, "n_best": 1}
    if length is not None:
        chosen |= {"min_length": length, "max_length": length, "max_length_ratio": 0.0}
        chosen |= {"max_length_extra": length}
    return DecodeConfig.model_validate(config.model_dump() | chosen)


def measure_translation(
    translators: Sequence[LineTranslator], lines: Sequence[str], rounds: int
) -> list[TranslationSpeed]:
    """Translate all lines with each translator in turn, `rounds` times after one that does not count."""
    rates: list[list[float]] = [[] for _ in translators]
    shapes: list[list[tuple[int, int]]] = [[] for _ in translators]
    for turn in range(rounds + 1):
        for index, translator in enumerate(translators):
            begin = time.perf_counter()
            done = list(translator.translate(lines))
            took = time.perf_counter() - begin
            if turn:
                rates[index].append(len(lines) / took)
            shapes[index] = [
                (line.source_tokens + 1, len(line.hypotheses[0].tokens) + 1)
                for line in done
                if line.hypotheses
            ]
    return [
        TranslationSpeed(translator.config.beam, rate, shape)
        for translator, rate, shape in zip(translators, rates, shapes, strict=True)
    ]

"""Translation, timed: the product's own translator on lines of text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import DataError
from ..decoding.translator import LineTranslator


@dataclass(frozen=True)
class TranslationSpeed:
    """`rounds`: sentences/s, each over all lines; `lines`: (source subwords with EOS, steps) of each.

    Blank lines are none.
    """

    beam: int
    rounds: Sequence[float]
    lines: Sequence[tuple[int, int]]


def forced(length: int) -> dict[str, object]:
    """Options of `decode` that make every translation `length` subwords long."""
    return {"min_length": length, "max_length": length, "max_length_ratio": 0.0, "max_length_extra": length}


def measure_translation(
    translators: Sequence[LineTranslator], lines: Sequence[str], rounds: int
) -> list[TranslationSpeed]:
    """Translate all lines with each translator in turn, `rounds` times after one that does not count.

    DataError where no line is translated.
    """
    rates: list[list[float]] = [[] for _ in translators]
    shapes: list[list[tuple[int, int]]] = [[] for _ in translators]
    for turn in range(rounds + 1):
        for index, translator in enumerate(translators):
            begin = time.perf_counter()
            done = list(translator.translate(lines))
            took = time.perf_counter() - begin
            shapes[index] = [
                (line.source_tokens + 1, len(line.hypotheses[0].tokens) + 1)
                for line in done
                if line.hypotheses
            ]
            if not shapes[index]:
                raise DataError("no line is translated: all are blank, or the model has no text for them")
            if turn:
                rates[index].append(len(shapes[index]) / took)
    return [
        TranslationSpeed(translator.config.beam, rate, shape)
        for translator, rate, shape in zip(translators, rates, shapes, strict=True)
    ]

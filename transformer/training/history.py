"""What a run's own measurements say about when it went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..core.disk import content
from ..core.errors import CheckpointError
from ..core.reading import read_json

SPIKE = 10.0  # times the median of a gradient norm's last 50 values
EARLIER = 10  # values before one may be called a spike: gated layers start from nearly nothing
CALM = 5  # values in a row without a spike end an excursion


class Line(NamedTuple):
    """A log line: the mean nll a token since the line before, and the rate of its last update."""

    update: int
    nll: float
    rate: float


@dataclass
class Past:
    """Of metrics.jsonl: the log lines whose nll is finite, and the layers' gradient norms at each probe."""

    lines: list[Line] = field(default_factory=list)
    gradients: list[tuple[int, dict[str, float]]] = field(default_factory=list)


def read_past(path: Path) -> Past:
    """Empty where there is no such file; a line that cannot be read, as in a damaged one, is left out.

    CheckpointError where it is no regular file, or cannot be read.
    """
    past = Past()
    try:
        lines = content(path, most=None).splitlines() if path.exists() else []
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    for line in lines:
        with suppress(ValueError, OverflowError, KeyError, TypeError, AttributeError):
            _note(read_json(line), past)
    return past


def _note(values: Mapping[str, Any], past: Past) -> None:
    update = int(values["update"])
    if values.get("nll") is not None:
        past.lines.append(Line(update, float(values["nll"]), float(values["learning_rate"])))
    if "probe" in values:
        norms = {
            f"{stack} layer {layer}": math.inf if norm is None else float(norm)
            for stack, names in values["probe"].items()
            for layer, norm in enumerate(names.get("gradient", ()), start=1)
        }
        past.gradients.append((update, norms))


def level_of(past: Past, unigram_loss: float | None) -> float:
    """The nll of a model that knows nothing: the first one logged, or the unigram level if that is higher."""
    return max(past.lines[0].nll, unigram_loss or 0.0)


def last_rise(past: Past, above: float) -> Line | None:
    """The line from which on every nll was larger than `above`; None if the last one is not."""
    found = None
    for line in reversed(past.lines):
        if line.nll <= above:
            break
        found = line
    return found


def last_spike(
    history: Sequence[tuple[int, Mapping[str, float]]], times: float = SPIKE, earlier: int = EARLIER
) -> tuple[int, str, float] | None:
    """(update, layer, how many times) where the last excursion began: a norm above `times` its median.

    `history` has a norm for each layer, update by update. The median is of a layer's last 50 finite norms;
    there must be `earlier` of them, and it must not be 0. Of several layers at one update it is the one that
    rose most. Spikes with fewer than CALM updates between them are one excursion.
    """
    before: dict[str, list[float]] = {}
    began: tuple[int, str, float] | None = None
    calm = CALM
    for update, norms in history:
        risen: dict[str, float] = {}
        for layer, norm in norms.items():
            if not math.isfinite(norm):
                continue
            values = before.setdefault(layer, [])
            median = sorted(values[-50:])[len(values[-50:]) // 2] if len(values) >= earlier else 0.0
            if median > 0 and norm > times * median:
                risen[layer] = norm / median
            values.append(norm)
        if risen and calm >= CALM:
            layer = max(risen, key=risen.__getitem__)
            began = update, layer, risen[layer]
        calm = 0 if risen else calm + 1
    return began


def spread(update: int, norms: Mapping[str, float]) -> str:
    """A sentence on the smallest and the largest gradient norm of a probe."""
    least, most = (choose(norms, key=norms.__getitem__) for choose in (min, max))
    return (
        f"at the probe of update {update:,} gradient norms ran from {norms[least]:.2g} ({least})"
        f" to {norms[most]:.2g} ({most})"
    )

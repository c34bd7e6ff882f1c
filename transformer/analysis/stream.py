"""The residual stream: its scale, what branches add to it, how far a layer turns it, and how it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from ..modules.placements import Stack
from . import theory
from .finding import Finding, by_seed
from .laws import LayerLaw, law_of_layers
from .registry import PROBES, Probe, Say
from .setting import Arm, Batch, build
from .stream_figure import draw
from .watch import STACKS, Reading, watch

COLUMNS = ["arm", "stack", "layer", "part", "stream", "norm reads", "branch", "share", "cosine", "largest"]
PLACES = 4  # columns that say what a row is about
SUMMARY = ["arm", "stack", "bottom", "top", "law", "rate", "last norm reads", "theory from", "theory to"]
DEFINITIONS = {
    "stream": "mean square per dimension of the stream x before the site, over real tokens",
    "norm reads": "the same of what the first norm at the site reads; `top`: the norm above the stack",
    "branch": "the same of the branch f as the placement's dropout hands it on, before any factor after that",
    "share": "root of branch / stream: |f| / |x|",
    "cosine": "mean over tokens of the cosine of the stream below and above the layer, at its last site",
    "largest": "largest absolute value of the stream before the site",
    "stream of several tensors": "what the stack would hand on without a norm: resi_dual x + d, reversible"
    " (a + b) / 2, b2t and rezero x, hyper the mean of its streams",
}


@dataclass(frozen=True)
class StackOfStream:
    """What was read in one stack of one arm, by seed and averaged; the last reading is the top's."""

    label: str
    stack: Stack
    by_seed: Sequence[Sequence[Reading]]
    readings: list[Reading]
    law: LayerLaw
    last_norm_reads: float | None
    theory: tuple[list[float], list[float]] | None  # for a = 0 and a = 1: the last norm's, at depth 1, 2, ...

    @property
    def by_layer(self) -> list[float]:
        """Mean squares of the stream below layer 1, 2, ... and at the top."""
        return layer_values(self.readings)


@PROBES.register(
    "stream",
    title="The residual stream",
    equation="mean x^2, |f(x)| / |x|, cos(x_l, x_(l+1)), max |x|",
    paper="Xiong et al. 2020, arXiv 2002.04745, lemma 2; Liu et al. 2020, arXiv 2004.08249 (branch share)",
    note="At initialisation, or of a run's weights. Of several tensors what the stack would hand on.",
)
@final
class StreamProbe(Probe):
    """Mean square of the stream before each site, |f| / |x|, cosine between layers, and the law of growth."""

    checkpoint = True

    def run(
        self,
        arms: Sequence[Arm],
        batches: list[Batch],
        sizes: tuple[int, int],
        seeds: Sequence[int],
        say: Say,
    ) -> Finding:
        stacks: list[StackOfStream] = []
        for arm in arms:
            found = []
            for seed in seeds:
                say(f"{arm.label}: stream, seed {seed}")
                found.append(watch(build(arm, sizes, seed, batches[0]), batches))
            stacks += [
                _averaged(arm, stack, [one[stack] for one in found]) for stack in STACKS if found[0][stack]
            ]
        return Finding(
            "stream",
            COLUMNS,
            [row for each in stacks for row in _rows(each, each.readings)],
            SUMMARY,
            [_summary(each) for each in stacks],
            _words(stacks),
            {
                "definitions": DEFINITIONS,
                "by_seed": [
                    record
                    for each in stacks
                    for record in by_seed(COLUMNS, PLACES, [_rows(each, of) for of in each.by_seed])
                ],
            },
            draw=lambda figure: draw(figure, stacks),
        )


def layer_values(readings: Sequence[Reading]) -> list[float]:
    return [r.stream for r in readings if r.opens_layer]


def _averaged(arm: Arm, stack: Stack, found: Sequence[Sequence[Reading]]) -> StackOfStream:
    readings = [Reading.mean(same) for same in zip(*found, strict=True)]
    norms = [reading.last_norm_reads for reading in readings if reading.last_norm_reads is not None]
    told = None
    if arm.weights is None:
        depths = range(1, arm.config.layers_of(stack) + 1)
        ends = [
            [v for d in depths if (v := theory.last_norm_reads(arm.config, stack, d, a)) is not None]
            for a in (0.0, 1.0)
        ]
        told = (ends[0], ends[1]) if all(ends) else None
    return StackOfStream(
        arm.label,
        stack,
        found,
        readings,
        law_of_layers([layer_values(one) for one in found]),
        norms[-1] if norms else None,
        told,
    )


def _rows(each: StackOfStream, readings: Sequence[Reading]) -> list[list[Any]]:
    return [
        [
            *(each.label, each.stack, r.layer, r.part),
            *(r.stream, r.norm_reads, r.branch, r.share, r.cosine, r.largest),
        ]
        for r in readings
    ]


def _summary(each: StackOfStream) -> list[Any]:
    values = each.by_layer
    low, high = (sorted(end[-1] for end in each.theory)) if each.theory else (None, None)
    law = each.law
    return [
        each.label,
        each.stack,
        values[0],
        values[-1],
        law.kind,
        law.rate,
        each.last_norm_reads,
        low,
        high,
    ]


def _words(stacks: Sequence[StackOfStream]) -> list[str]:
    words = [
        "stream, branch: mean square per dimension over real tokens; share: |f| / |x|; cosine: of the stream"
        " below and above a layer."
    ]
    for each in stacks:
        text = f"{each.label}, {each.stack}: {each.law.words}."
        if each.theory is not None and each.last_norm_reads is not None:
            low, high = sorted(end[-1] for end in each.theory)
            told = f"{low:.3f}" if high - low < 5e-4 else f"{low:.2f} to {high:.2f}"
            text += f" Its last norm reads {each.last_norm_reads:.3f}; lemma 2 in these dimensions: {told}."
        words.append(text)
    return words

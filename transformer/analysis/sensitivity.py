"""How much the output moves when every weight moves a little, against depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, final

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.configuration import Count, Float
from ..core.seeding import derive_seed
from ..core.signature import Doc
from ..core.special import PAD
from ..model.transformer import Transformer
from .finding import Finding, estimate, look
from .interval import interval, known, mean
from .laws import FEWEST, DepthLaw, law_of_depth
from .registry import PROBES, Probe, Say
from .setting import Arm, Batch, build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STACKS = ("encoder", "decoder")
Outputs = tuple[Tensor, Tensor]  # of encoder and decoder at the real tokens: (n, D) each


@torch.no_grad()
def outputs(model: Transformer, batches: Sequence[Batch]) -> Outputs:
    """What the two stacks put out at the real tokens of all batches."""
    memories, decoded = [], []
    for source, target_in, target_out in batches:
        memory = model.encode(source)
        hidden = model.decode(target_in, memory, (source != PAD)[:, None, None, :])
        memories.append(memory[source != PAD])
        decoded.append(hidden[target_out != PAD])
    return torch.cat(memories), torch.cat(decoded)


@torch.no_grad()
def perturb(model: Transformer, size: float, seed: int) -> None:
    """W += size rms(W) z, z ~ N(0, 1), for every matrix of a sublayer: ||delta|| / ||W|| is about `size`.

    z depends on (seed, name) only: models of different placements, and the lower layers of different depths,
    are moved in the same directions.
    """
    branches = {id(m.weight) for _, sub in model.sites() for m in sub.modules() if isinstance(m, nn.Linear)}
    for name, parameter in model.named_parameters():
        if id(parameter) in branches:
            draws = torch.Generator().manual_seed(derive_seed(seed, "perturbation", name))
            noise = torch.randn(parameter.shape, generator=draws).to(parameter)
            parameter.add_(noise * (size * parameter.square().mean().sqrt()))


def moved(before: Tensor, after: Tensor) -> float:
    """E ||F' - F||^2 / E ||F||^2 over tokens."""
    return float((after - before).square().sum() / before.square().sum())


@dataclass(frozen=True)
class Point:
    """One arm: its family (what its label is without the depth), its depths, and a value for each seed."""

    arm: str
    family: str
    depths: tuple[int, int]
    values: tuple[list[float], list[float]]


@PROBES.register(
    "sensitivity",
    title="Sensitivity of the output to the weights",
    equation="E ||F(theta + delta) - F(theta)||^2 / (size^2 E ||F(theta)||^2), delta Gaussian",
    paper="Liu et al. 2020, arXiv 2004.08249: O(N) for Post-LN, O(log N) for Pre-LN",
    note="Give several depths: two for the power of N, four to tell N from log N: --depths 2,4,8,16.",
)
@final
class Sensitivity(Probe):
    """Moves every matrix by Gaussian noise of one relative size; how far encoder's and decoder's output go.

    In units of size^2, so that the number hardly depends on the size while that is small. The decoder's
    number holds what reaches it through the memory. Mean over `draws` and seeds.

    A `size` near float32's precision, 6e-8, would measure rounding, and one near 1 is no small change.
    """

    checkpoint = True

    def __init__(
        self,
        *,
        size: Annotated[
            Float, Field(ge=1e-4, le=0.5), Doc("of the noise, relative to each matrix: 1e-4 to 0.5")
        ] = 0.01,
        draws: Annotated[Count, Doc("perturbations for each seed")] = 4,
    ) -> None:
        self.size, self.draws = size, draws

    def run(
        self,
        arms: Sequence[Arm],
        batches: list[Batch],
        sizes: tuple[int, int],
        seeds: Sequence[int],
        say: Say,
    ) -> Finding:
        points = [self._point(arm, batches, sizes, seeds, say) for arm in arms]
        rows = [
            [point.arm, depth, stack, *(known(of(values)) for of in (mean, min, max))]
            for point in points
            for stack, depth, values in zip(STACKS, point.depths, point.values, strict=True)
            if depth
        ]
        laws = {
            (family, stack): law_of_depth(*_series(points, family, i))
            for family in dict.fromkeys(point.family for point in points)
            for i, stack in enumerate(STACKS)
        }
        summary = [
            [family, stack, *_power(law), law.linear, law.logarithmic, law.kind]
            for (family, stack), law in laws.items()
            if law
        ]
        return Finding(
            "sensitivity",
            ["arm", "layers", "stack", "moved", "lowest seed", "highest seed"],
            rows,
            ["arm", "stack", "power of N", "low", "high", "R2 of a + b N", "R2 of a + b ln N", "law"],
            summary,
            self._words(laws, len(seeds), trained=any(arm.weights is not None for arm in arms)),
            {
                "definition": (moved.__doc__ or "") + " In units of size^2.",
                "perturbed": "all matrices of attention and feed-forward; no embeddings, norms, biases",
                "by_seed": [
                    {"arm": point.arm, "layers": depth, "stack": stack, "moved": values}
                    for point in points
                    for stack, depth, values in zip(STACKS, point.depths, point.values, strict=True)
                    if depth
                ],
            },
            partial(_draw, points, laws),
        )

    def _point(
        self, arm: Arm, batches: list[Batch], sizes: tuple[int, int], seeds: Sequence[int], say: Say
    ) -> Point:
        depths = arm.config.encoder_layers, arm.config.decoder_layers
        values: tuple[list[float], list[float]] = [], []
        for seed in seeds:
            before = outputs(build(arm, sizes, seed, batches[0]), batches)
            sums = [0.0, 0.0]
            for draw in range(self.draws):
                model = build(arm, sizes, seed, batches[0])
                perturb(model, self.size, derive_seed(seed, draw))
                for i, after in enumerate(outputs(model, batches)):
                    sums[i] += moved(before[i], after)
            for held, total in zip(values, sums, strict=True):
                held.append(total / self.draws / self.size**2)
            say(f"{arm.label}, seed {seed}: encoder {values[0][-1]:.3g}, decoder {values[1][-1]:.3g}")
        return Point(arm.label, arm.family, depths, values)

    def _words(self, laws: dict[tuple[str, str], DepthLaw | None], seeds: int, trained: bool) -> list[str]:
        words = [
            "Mean square change of a stack's output, relative to its mean square, in units of size^2;"
            f" noise of {self.size:g}, {self.draws} draws, {seeds} seed{'s' * (seeds > 1)}.",
        ]
        words += [f"{' '.join(key)}: {_in_words(law)}." for key, law in laws.items() if law]
        if any(law and law.powers for law in laws.values()):
            spread = "mean and 95 % t interval over the seeds" if seeds > 1 else "of one seed, no interval"
            words.append(f"The power is the slope of the logarithm on ln N, {spread}.")
        if not any(laws.values()) and not trained:  # trained weights have the one depth
            words.append(f"A law of growth needs {FEWEST} depths or more: --depths 2,4,8,16.")
        return words


def _power(law: DepthLaw) -> list[float | None]:
    """Mean and interval of the power of N."""
    low, high = (interval(law.powers) if law.powers else None) or (None, None)
    return [mean(law.powers) if law.powers else None, low, high]


def _in_words(law: DepthLaw) -> str:
    if law.kind == "no law":
        return "no law: at some depth the change is 0 or not finite"
    text = f"~ N^{estimate(law.powers)}"
    if law.linear is None or law.logarithmic is None:
        few = f"fewer than {FEWEST} depths do not tell N from log N"
        return f"{text}; {few if law.kind != 'constant' else 'the same within 10 % at all depths'}"
    r2 = f"R2 {law.linear:.3f} for N, {law.logarithmic:.3f} for log N"
    if law.kind == "either":
        return f"{text}; N and log N are not told apart ({r2})"
    return f"{text}; along {law.kind} ({r2})"


def _series(points: Sequence[Point], family: str, stack: int) -> tuple[list[int], list[list[float]]]:
    """The depths of a family from the lowest, and for each seed the values there."""
    chosen = [point for point in points if point.family == family and point.depths[stack]]
    chosen.sort(key=lambda point: point.depths[stack])
    by_seed = zip(*(point.values[stack] for point in chosen), strict=True)
    return [point.depths[stack] for point in chosen], [list(values) for values in by_seed]


def _draw(points: Sequence[Point], laws: dict[tuple[str, str], DepthLaw | None], figure: Figure) -> None:
    figure.set_size_inches(10, 4.4)
    panels = figure.subplots(1, 2)
    families = list(dict.fromkeys(point.family for point in points))
    for i, (axes, stack) in enumerate(zip(panels, STACKS, strict=True)):
        for number, family in enumerate(families):
            depths, by_seed = _series(points, family, i)
            law = laws[family, stack]
            label = f"{family}: {law.kind}" if law else family
            label += f", N^{estimate(law.powers)}" if law and law.powers else ""
            axes.plot(depths, [mean(at) for at in zip(*by_seed, strict=True)], **look(number), label=label)
            for depth, at in zip(depths, zip(*by_seed, strict=True), strict=True):
                ends = [depth] * 2, [min(at), max(at)]
                axes.plot(*ends, color=look(number)["color"], linewidth=1, alpha=0.6)
        axes.set_title(f"Output of the {stack}", loc="left")
        axes.set(xlabel="layers of the stack", xticks=sorted({point.depths[i] for point in points}))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    panels[0].set_ylabel("relative mean square change / size²")

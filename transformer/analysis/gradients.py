"""Gradients at initialisation: by layer, and of the last feed-forward against depth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, final

from torch import Tensor

from ..core.configuration import Count
from ..core.signature import Doc
from ..model.transformer import Transformer
from ..modules.feedforward import FeedForward
from ..modules.placements import Site, Stack
from . import theory
from .finding import Finding, estimate, two_decimals
from .gradients_figure import draw
from .interval import interval, known, log_slope, mean
from .registry import PROBES, Probe, Say
from .setting import Arm, Batch, arms, build, mean_loss
from .watch import STACKS

LAST = "W2"  # the matrix that theorem 1 is about
THEORY: Stack = (
    "decoder"  # the stack whose last norm the loss stands on; the encoder's gradient comes by M layers
)
# The theory's share a of attention lies between these.
LEAST, MOST = 0.0, 1.0
STATISTIC = (
    "Frobenius norm of the mean over batches of dL/dW, L the sum of -log p over target tokens divided by"
    " their number; no dropout, no label smoothing, float32"
)


def matrices(model: Transformer) -> Iterator[tuple[Site, str, Tensor]]:
    """Every matrix of every sublayer: its site, its name (`W1`, `self W_Q`, ...) and itself."""
    for placement, sublayer in model.sites():
        site = placement.site
        if isinstance(sublayer, FeedForward):
            named = {"W1": sublayer.hidden, "Wg": sublayer.gate, "W2": sublayer.output}
        else:
            part = "cross" if site.is_cross_attention else "self"
            linears = (sublayer.query, sublayer.key, sublayer.value, sublayer.output)
            named = {f"{part} W_{letter}": linear for letter, linear in zip("QKVO", linears, strict=True)}
        for name, linear in named.items():
            if linear is not None:
                yield site, name, linear.weight


def mean_gradient(model: Transformer, batches: Sequence[Batch], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The mean over the batches of each parameter's gradient of `mean_loss`, element by element."""
    wanted = {id(parameter) for parameter in parameters}
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(id(parameter) in wanted)
    for batch in batches:
        (mean_loss(model, batch) / len(batches)).backward()  # type: ignore[no-untyped-call]
    found = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters]
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(True)
    return found


def gradient_norms(model: Transformer, batches: Sequence[Batch]) -> dict[tuple[Stack, int, str], float]:
    """The norm of each matrix's mean gradient, by stack, layer (from 1) and name."""
    found = list(matrices(model))
    gradients = mean_gradient(model, batches, [weight for _, _, weight in found])
    return {
        (site.stack, site.layer + 1, name): gradient.norm().item()
        for (site, name, _), gradient in zip(found, gradients, strict=True)
    }


def last_norms(model: Transformer, batches: Sequence[Batch]) -> dict[Stack, float]:
    """The norm of the mean gradient of W2 in the last feed-forward of each stack that has layers."""
    last = {site.stack: weight for site, name, weight in matrices(model) if name == LAST}
    gradients = mean_gradient(model, batches, list(last.values()))
    return {stack: gradient.norm().item() for stack, gradient in zip(last, gradients, strict=True)}


@dataclass
class DepthLine:
    """|dL/dW2| of one arm's last feed-forward in one stack: a row of values, by depth, for each seed."""

    label: str
    stack: Stack
    depths: Sequence[int]
    by_seed: list[list[float]] = field(default_factory=list)
    theory: dict[float, list[float]] = field(default_factory=dict)  # by a: values up to one factor

    @property
    def means(self) -> list[float]:
        return [mean(values) for values in zip(*self.by_seed, strict=True)]

    @property
    def slopes(self) -> list[float]:
        """One for each seed: the slope of ln |dL/dW2| on ln depth; none where some seed has none."""
        return _all(log_slope(self.depths, values) for values in self.by_seed)

    @property
    def blank(self) -> str:
        """What the gradient is where there is no slope."""
        return "0" if all(math.isfinite(norm) for norms in self.by_seed for norm in norms) else "not finite"

    def theory_slopes(self) -> list[float]:
        return _all(log_slope(self.depths, values) for values in self.theory.values())


def _all(slopes: Iterable[float | None]) -> list[float]:
    found = list(slopes)
    numbers = [slope for slope in found if slope is not None]
    return numbers if len(numbers) == len(found) else []


@PROBES.register(
    "init",
    title="Gradients at initialisation",
    equation="|mean over batches of dL/dW|_F",
    paper="Xiong et al. 2020, arXiv 2002.04745, figure 3 and theorem 1",
    note="By layer for each matrix; and of the last feed-forward's W2 against depth, with its slope.",
)
@final
class InitProbe(Probe):
    """|mean over batches of dL/dW|_F of each matrix by layer; and of the last W2 against depth N = M.

    Of a run it measures the trained weights, by layer alone.
    """

    checkpoint = True

    def __init__(
        self,
        *,
        depths: Annotated[tuple[Count, ...], Doc("N = M of the curve against depth; empty: none")] = (
            6,
            8,
            10,
            12,
            14,
        ),
        depth_batches: Annotated[Count, Doc("batches that the curve's gradients are averaged over")] = 1,
    ) -> None:
        super().__init__()
        self.depths = tuple(dict.fromkeys(depths)) if len(set(depths)) > 1 else ()
        self.lonely = len(set(depths)) == 1
        self.depth_batches = depth_batches

    def run(
        self,
        arms: Sequence[Arm],
        batches: list[Batch],
        sizes: tuple[int, int],
        seeds: Sequence[int],
        say: Say,
    ) -> Finding:
        layers = {arm.label: self._by_layer(arm, batches, sizes, seeds, say) for arm in arms}
        lines = self._against_depth(arms, batches[: self.depth_batches], sizes, seeds, say)
        names = list(dict.fromkeys(name for norms in layers.values() for _, _, name in norms))
        facts = {
            "statistic": STATISTIC,
            "batches": {"by layer": len(batches), "against depth": min(self.depth_batches, len(batches))},
            "by_seed": [
                {"arm": label, "stack": stack, "layer": layer, "matrix": name, "norms": norms}
                for label, found in layers.items()
                for (stack, layer, name), norms in found.items()
            ],
            "depth": [
                {
                    "arm": line.label,
                    "stack": line.stack,
                    "depths": list(line.depths),
                    "norms_by_seed": line.by_seed,
                    "intervals": [interval(values) for values in zip(*line.by_seed, strict=True)],
                    "slopes_by_seed": line.slopes,
                    "theory": {str(a): values for a, values in line.theory.items()},
                }
                for line in lines
            ],
        }
        return Finding(
            "init",
            ["arm", "stack", "layer", *names],
            _layer_rows(layers, names),
            ["arm", "stack", *(f"{d}+{d}" for d in self.depths), "slope", "low", "high"] if lines else [],
            [row for line in lines for row in _depth_rows(line)],
            self._words(lines, len(seeds)),
            facts,
            draw=lambda figure: draw(figure, layers, lines),
        )

    def _by_layer(
        self, arm: Arm, batches: list[Batch], sizes: tuple[int, int], seeds: Sequence[int], say: Say
    ) -> dict[tuple[Stack, int, str], list[float]]:
        """Norms of each matrix, one for each seed."""
        found: dict[tuple[Stack, int, str], list[float]] = {}
        for seed in seeds:
            say(f"{arm.label}: gradients by layer, seed {seed}")
            for place, norm in gradient_norms(build(arm, sizes, seed, batches[0]), batches).items():
                found.setdefault(place, []).append(norm)
        return found

    def _against_depth(
        self,
        chosen: Sequence[Arm],
        batches: list[Batch],
        sizes: tuple[int, int],
        seeds: Sequence[int],
        say: Say,
    ) -> list[DepthLine]:
        """Curves of each arm; arms that differ in depth alone have the same one."""
        lines: dict[str, list[DepthLine]] = {}
        for arm in chosen if self.depths else ():
            if arm.weights is not None:  # a trained model has the one depth
                continue
            deep = arms(arm.config, depths=self.depths)
            key = deep[0].config.model_dump_json()
            if key in lines:
                continue
            drawn = {stack: DepthLine(arm.family, stack, self.depths) for stack in STACKS}
            for seed in seeds:
                say(f"{arm.family}: depths {', '.join(map(str, self.depths))}, seed {seed}")
                norms = [last_norms(build(one, sizes, seed, batches[0]), batches) for one in deep]
                for stack, line in drawn.items():
                    line.by_seed.append([norm[stack] for norm in norms])
            drawn[THEORY].theory = _theory(deep)
            lines[key] = list(drawn.values())
        return [line for pair in lines.values() for line in pair]

    def _words(self, lines: Sequence[DepthLine], seeds: int) -> list[str]:
        words = [f"{STATISTIC[0].upper()}{STATISTIC[1:]}."]
        if self.lonely:
            words.append("One depth makes no curve: probe.depths takes two or more.")
        if not lines:
            return words
        if seeds > 1:
            words.append(
                f"slope, low, high: mean and 95 % t interval over {seeds} seeds of the slope of log"
                " norm on log depth."
            )
        else:
            words.append("slope: of log norm on log depth; with one seed there is no interval.")
        for line in lines:
            text = f"{line.label}, last W2 of the {line.stack}: "
            if line.slopes:
                text += f"norm ~ depth^{estimate(line.slopes)}"
            else:
                text += f"no slope: the gradient is {line.blank}"
            if told := line.theory_slopes():
                low, high = sorted(told)
                text += f"; theory {two_decimals(low)}"
                text += f" to {two_decimals(high)}" if high - low > 5e-3 else ""
            words.append(text + ".")
        if any(line.theory for line in lines):
            words.append(
                "theory: 1 / root of what the decoder's last norm reads, 1 + v_ff (Post-LN) or x0 + l c"
                " (Pre-LN); averaging leaves attention a share of its variance between 0 and 1."
            )
        return words


def _theory(deep: Sequence[Arm]) -> dict[float, list[float]]:
    """The law at each depth, for both ends of a; empty where none was derived."""
    told = {
        a: [theory.last_gradient(arm.config, THEORY, arm.config.decoder_layers, a) for arm in deep]
        for a in (LEAST, MOST)
    }
    return {a: [v for v in values if v is not None] for a, values in told.items() if None not in values}


def _layer_rows(
    layers: dict[str, dict[tuple[Stack, int, str], list[float]]], names: Sequence[str]
) -> list[list[Any]]:
    rows = []
    for label, found in layers.items():
        for stack, layer in dict.fromkeys((stack, layer) for stack, layer, _ in found):
            norms = (found.get((stack, layer, name)) for name in names)
            rows.append([label, stack, layer, *(None if n is None else known(mean(n)) for n in norms)])
    return rows


def _depth_rows(line: DepthLine) -> Iterator[list[Any]]:
    sure = (interval(line.slopes) if line.slopes else None) or (None, None)
    slope = mean(line.slopes) if line.slopes else None
    yield [line.label, line.stack, *map(known, line.means), slope, *sure]

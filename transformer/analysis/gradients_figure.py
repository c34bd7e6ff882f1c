"""The figure of the gradients: both stacks by layer, and the last feed-forward against depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..modules.placements import Stack
from .finding import estimate, look, plain, whole_numbers
from .interval import interval, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BY_LAYER = ("W1", "W2")
Layers = Mapping[tuple[Stack, int, str], Sequence[float]]


class Curve(Protocol):
    """What is drawn of an arm against depth."""

    label: str
    depths: Sequence[int]
    by_seed: list[list[float]]
    theory: dict[float, list[float]]

    @property
    def stack(self) -> str: ...
    @property
    def slopes(self) -> list[float]: ...
    @property
    def blank(self) -> str: ...


def draw(figure: Figure, layers: Mapping[str, Layers], curves: Sequence[Curve]) -> None:
    """Left: W1 above W2 by layer, encoder beside decoder. Right: the last W2 against depth."""
    stacks = list(dict.fromkeys(stack for found in layers.values() for stack, _, _ in found))
    against = [curve for curve in curves if curve.stack == stacks[-1]]
    figure.set_size_inches(3.6 * len(stacks) + (5.0 if against else 0.6), 6.0 + 0.1 * len(layers))
    widths = [1.0] * len(stacks) + ([1.25] if against else [])
    grid = figure.add_gridspec(len(BY_LAYER), len(widths), width_ratios=widths)
    first: Axes | None = None
    for row, name in enumerate(BY_LAYER):
        for column, stack in enumerate(stacks):
            ax = figure.add_subplot(grid[row, column], sharey=first)
            first = first or ax
            _by_layer(ax, stack, name, layers)
            if column == 0:
                ax.set_ylabel("norm of the mean gradient")
            if row == len(BY_LAYER) - 1:
                ax.set_xlabel("layer, from the bottom")
                if column == 0:
                    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.25), ncols=2)
    assert first is not None
    first.set_ylim(bottom=0)
    if against:
        _against_depth(figure.add_subplot(grid[:, -1]), against)


def _by_layer(ax: Axes, stack: str, name: str, layers: Mapping[str, Layers]) -> None:
    for number, (label, found) in enumerate(layers.items()):
        points = [(layer, mean(norms)) for (s, layer, n), norms in found.items() if (s, n) == (stack, name)]
        ax.plot(*zip(*points, strict=True), label=label, **look(number))
    ax.set_title(f"{name} of the {stack}, by layer", fontsize=11)
    whole_numbers(ax)
    plain(ax)


def _against_depth(ax: Axes, curves: Sequence[Curve]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    for number, curve in enumerate(curves):
        style, by_depth = look(number), list(zip(*curve.by_seed, strict=True))
        means = [mean(values) for values in by_depth]
        if not curve.slopes:  # zeros have no place on a logarithmic axis
            ax.plot([], [], label=f"{curve.label}: no slope, the gradient is {curve.blank}", **style)
            continue
        sure = [interval(values) for values in by_depth]
        text = f"slope {estimate(curve.slopes)}".replace("-", "\N{MINUS SIGN}")
        ax.plot(curve.depths, means, label=f"{curve.label}: {text}", **style)
        if all(sure):
            low, high = zip(*(pair for pair in sure if pair), strict=True)
            error: Any = [
                [m - b for m, b in zip(means, low, strict=True)],
                [b - m for m, b in zip(means, high, strict=True)],
            ]
            ax.errorbar(curve.depths, means, yerr=error, fmt="none", ecolor=style["color"], capsize=3)
        _theory(ax, curve, means, style["color"])
    if any(curve.theory for curve in curves):
        ax.plot([], [], color="0.35", linewidth=6, alpha=0.3, label="theory, through the first mean")
    depths = list(dict.fromkeys(depth for curve in curves for depth in curve.depths))
    ax.set_xticks(depths, [f"{depth}+{depth}" for depth in depths])
    ax.minorticks_off()
    lowest, highest = ax.get_ylim()
    ticks = [t * 10.0**e for e in range(-12, 12) for t in (1, 1.5, 2, 3, 5, 7)]
    ticks = [t for t in ticks if lowest <= t <= highest]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_title(f"last W2 of the {curves[0].stack}, against depth", fontsize=11)
    ax.set_xlabel("layers, encoder + decoder (log scale)")
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.1))
    plain(ax)


def _theory(ax: Axes, curve: Curve, means: Sequence[float], colour: str) -> None:
    """The band between both ends of the theory, each through the first point that was measured."""
    scaled = [[means[0] * value / values[0] for value in values] for values in curve.theory.values()]
    if scaled:
        low, high = zip(*((min(v), max(v)) for v in zip(*scaled, strict=True)), strict=True)
        ax.fill_between(curve.depths, low, high, color=colour, alpha=0.18, linewidth=0)
        for values in (low, high):
            ax.plot(curve.depths, values, color=colour, linewidth=0.9, linestyle=":")

"""The figures of a report; each is drawn only where the study has its axes.

gains        the differences that the questions ask for, with intervals
grid         loss at every warm-up and rate, a panel for each arm
rates        loss against the learning rate, a line for each arm, with its sensitivity
divergence   share of the seeds that diverged, with intervals
curves       validation loss over updates, a band over seeds
target       updates to a validation loss
bleu         BLEU of each arm, with intervals over seeds
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .config import RATE, Study
from .derived import seed_sensitivities
from .drawing import (
    DARK,
    GREY,
    LINE,
    PALE,
    Line,
    fold,
    grid_of,
    label_ends,
    lines_in,
    lines_of,
    new_figure,
    panels_of,
    png,
    rate_ticks,
    rates_of,
    style,
)
from .grids import draw_grid
from .groups import Group, plain, rate_text
from .rows import draw_bleu, draw_divergence, draw_gains, draw_target
from .statistics import mean_of
from .verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawn = tuple["Figure", str] | None
COUNTS = 0.24  # inches of a row of counts
GREY_LINES = " Grey: the lines of the other panels."
__all__ = ["Picture", "line_sensitivity", "pictures"]


@dataclass(frozen=True)
class Picture:
    """A figure as PNG bytes; `title` names it and `caption` says how it is read."""

    name: str
    title: str
    caption: str
    data: bytes


def pictures(study: Study, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> list[Picture]:
    """All figures for which there is something to show, in the order of a report."""
    drawings: list[tuple[str, str, Callable[[], Drawn]]] = [
        ("gains", "Differences asked for", lambda: draw_gains(verdicts)),
        ("grid", "Warm-up and learning rate", lambda: draw_grid(groups)),
        ("rates", "Loss against learning rate", lambda: draw_rates(groups)),
        ("divergence", "Runs that diverged", lambda: draw_divergence(groups)),
        ("curves", "Learning curves", lambda: draw_curves(groups)),
        ("target", "Updates to the target", lambda: draw_target(study, groups)),
        ("bleu", "BLEU", lambda: draw_bleu(groups)),
    ]
    found = []
    with style():
        for name, title, draw in drawings:
            if (drawn := draw()) is not None:
                found.append(Picture(name, title, drawn[1], png(drawn[0])))
    return found


def draw_curves(groups: Sequence[Group]) -> Drawn:
    """Mean validation loss over seeds at each line's best rate; what diverged ends in a cross."""
    lines = [
        line for line in lines_of(groups) if any(run.curve for g in line.groups for run in g.runs.values())
    ]
    if not lines:
        return None
    panels = panels_of(lines)
    several = len(rates_of(groups)) > 1
    names = {line.label: _curve_name(line, len(panels) > 1, several) for line in lines}
    figure, axes, height = _frame(panels, names, 2, 2.9 if len(panels) == 1 else 1.8)
    trained = [
        loss for line in lines for run in line.best.runs.values() if not run.diverged for _, loss in run.curve
    ]
    every = [loss for line in lines for run in line.best.runs.values() for _, loss in run.curve]
    shown = [loss for loss in trained or every if math.isfinite(loss)] or [0.0, 1.0]
    low, high = min(shown), max(max(shown), min(shown) + 1e-3)
    for panel, (_, held) in zip(axes.flat, panels, strict=False):
        panel.set_ylim(low - 0.04 * (high - low), high + 0.06 * (high - low))
        panel.grid(axis="y")
        panel.locator_params(axis="x", nbins=6, integer=True)
        for other in _others(lines, held):
            updates, values = _common(other.best)
            panel.plot(updates, [math.fsum(v) / len(v) for v in values], color=PALE, linewidth=1)
        ends = [(_curve(panel, line), names[line.label], line.look) for line in held]
        label_ends(panel, [end for end in ends if end[1]], height)  # a title may say it all
    _tidy(axes, len(panels), "update", "validation loss (nats a token)")
    seeds = max(len(line.best.runs) for line in lines)
    caption = f"Mean over seeds (at most {seeds}); the band reaches from the lowest seed to the highest."
    if several:
        caption += " Each line is its arm at the learning rate with the lowest validation loss."
    if any(line.best.failed for line in lines):
        caption += " A thin line that ends in a cross is a seed that diverged."
    return figure, caption + (GREY_LINES if len(panels) > 1 else "")


def _curve_name(line: Line, titled: bool, several: bool) -> str:
    group = line.best
    told = [line.short if titled else line.label]
    told += [rate_text(group.values[RATE])] if several and RATE in group.values else []
    parts = [fold(", ".join(part for part in told if part), 26)]
    parts += [f"diverged {len(group.failed)} of {len(group.runs)}"] if group.failed else []
    return "\n".join(part for part in parts if part)


def _common(group: Group) -> tuple[list[int], list[list[float]]]:
    """Updates at which all seeds that trained were validated, and their losses there."""
    good = [dict(run.curve) for run in group.runs.values() if not run.diverged and run.curve]
    updates = sorted(set.intersection(*(set(curve) for curve in good))) if good else []
    return updates, [sorted(curve[update] for curve in good) for update in updates]


def _curve(axes: Axes, line: Line) -> float:
    """Draw one line; the height at which it ends."""
    group, colour, top = line.best, line.colour, axes.get_ylim()[1]
    updates, values = _common(group)
    end = math.nan
    if updates:
        means = [math.fsum(held) / len(held) for held in values]
        every = max(1, len(updates) // 6)
        axes.plot(updates, means, linewidth=1.8, markersize=4.5, markevery=every, **line.look)
        lows, highs = [held[0] for held in values], [held[-1] for held in values]
        axes.fill_between(updates, lows, highs, color=colour, alpha=0.18, linewidth=0)
        end = means[-1]
    for seed in group.failed:
        run = group.runs[seed]
        points = [(update, min(loss, top)) for update, loss in run.curve if math.isfinite(loss)]
        xs, ys = zip(*(points or [(run.updates, top)]), strict=True)
        axes.plot(xs, ys, color=colour, linewidth=0.8, linestyle=line.look["linestyle"])
        axes.plot(xs[-1], ys[-1], "x", markersize=8, markeredgewidth=2, color=colour, clip_on=False)
        end = ys[-1] if math.isnan(end) else end
    return top if math.isnan(end) else end


def draw_rates(groups: Sequence[Group]) -> Drawn:
    """Best validation loss against the peak rate; above, how many seeds diverged at each."""
    from matplotlib.ticker import MaxNLocator

    rates = rates_of(groups)
    lines = [line for line in lines_of(groups) if len(rates_of(line.groups)) > 1]
    if len(rates) < 2 or not lines:
        return None
    panels = panels_of(lines)
    names = {line.label: _rate_name(line, len(panels) > 1) for line in lines}
    counted = [[line.label for line in held if any(g.failed for g in line.groups)] for _, held in panels]
    deepest = max(len(held) for held in counted)
    strip = COUNTS * (deepest + 1) if deepest else 0.0  # inches above the curves
    across = 2 if len(rates) <= 6 else 1
    figure, axes, height = _frame(panels, names, across, strip + (3.0 if len(panels) == 1 else 1.8))
    losses = [v for line in lines for g in line.groups for v in g.scores("valid_loss").values()]
    low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
    span = (high - low) or 1.0
    top = high + 0.08 * span
    inch = 1.14 * span / (height - strip)
    ticks = MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]).tick_values(low, top)
    for i, (panel, (_, held)) in enumerate(zip(axes.flat, panels, strict=False)):
        panel.set_ylim(low - 0.06 * span, top + inch * strip)
        panel.set_yticks([tick for tick in ticks if low - 0.06 * span <= tick <= top])
        panel.spines["left"].set_bounds(low - 0.06 * span, top)
        panel.grid(axis="y")
        rate_ticks(panel, rates, 4.9 if len(panels) == 1 or across == 1 else 2.0)
        for other in _others(lines, held):
            xs, means, *_ = _rate_points(other)
            panel.plot(xs, means, color=PALE, linewidth=1)
        ends = []
        for line in held:
            row = counted[i].index(line.label) if line.label in counted[i] else 0
            place = top + inch * COUNTS * (deepest - row - 0.5)
            ends.append((_rate_line(panel, line, place), names[line.label], line.look))
        ends = [end for end in ends if end[1]]
        if deepest:
            panel.axhline(top, color=PALE, linewidth=0.8)
            frame: dict[str, Any] = {"transform": panel.transAxes, "fontsize": 8.5, "color": GREY}
            told = "seeds that diverged" if counted[i] else "no seed diverged"
            panel.text(0.015, 0.985, told, va="top", **frame)
        label_ends(panel, ends, height)
    _tidy(axes, len(panels), "peak learning rate (log axis)", "best validation loss")
    caption = (
        "Mean over the seeds that trained; bars reach from the lowest seed to the highest."
        " S is the sensitivity to the rate: the mean over log rate of min(loss, loss at initialisation)"
        " less the best loss, seed by seed, a diverged run counting as the latter, the lowest of all arms;"
        " it is small where all rates do alike, well or badly."
    )
    caption += " Counts above: seeds that diverged at that rate." if deepest else ""
    return figure, caption + (GREY_LINES if len(panels) > 1 else "")


def _rate_name(line: Line, titled: bool) -> str:
    found = line_sensitivity(line)
    parts = [fold(line.short if titled else line.label, 26)]
    parts += [] if found is None else [f"S = {found:.2f}"]
    return "\n".join(part for part in parts if part)


def _rate_points(line: Line) -> list[tuple[float, ...]]:
    """Rates; means, lowest and highest losses of the seeds that trained there."""
    held = [(float(plain(g.values[RATE])), sorted(g.scores("valid_loss").values())) for g in line.groups]
    points = sorted((rate, math.fsum(v) / len(v), v[0], v[-1]) for rate, v in held if v)
    return list(zip(*points, strict=True)) or [(), (), (), ()]


def _rate_line(axes: Axes, line: Line, place: float) -> float:
    """Draw one line, its counts at the height `place`; the height at which it ends."""
    for group in line.groups:
        if group.failed:
            text, rate = f"{len(group.failed)}/{len(group.runs)}", float(plain(group.values[RATE]))
            box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": line.colour}
            axes.text(rate, place, text, color=DARK, ha="center", va="center", fontsize=8, bbox=box)
    xs, means, lows, highs = _rate_points(line)
    if not xs:
        return place
    axes.vlines(xs, lows, highs, color=line.colour, linewidth=1.2)
    axes.plot(xs, means, linewidth=1.8, markersize=5.5, **line.look)
    return means[-1]


def line_sensitivity(line: Line) -> float | None:
    """The sensitivity of a line to the rate, a mean over seeds; None where no seed ran at all rates."""
    found = mean_of(list(seed_sensitivities(line.groups, line.start).values()))
    return None if found is None else found.mean


def _others(lines: Sequence[Line], held: Sequence[Line]) -> list[Line]:
    """The lines of other panels."""
    return [line for line in lines if line.label not in {own.label for own in held}]


def _frame(
    panels: Sequence[tuple[str, Sequence[Line]]], names: Mapping[str, str], across: int, least: float
) -> tuple[Figure, Any, float]:
    """A figure, its panels with their titles, and their height in inches, with room for all names."""
    rows, columns = grid_of(len(panels), across)
    room = max(sum(LINE * lines_in([names[line.label]]) + 0.06 for line in held) for _, held in panels)
    height = max(least, room)
    titles = [fold(title, 28 if columns > 1 else 60) for title, _ in panels]
    above = 0.17 * lines_in(titles) + 0.12 if any(titles) else 0.05
    figure = new_figure(rows * (height + above) + 0.55)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel, title in zip(axes.flat, titles, strict=False):
        panel.set_title(title)
    return figure, axes, height


def _tidy(axes: Any, used: int, x: str, y: str) -> None:
    """Hide panels that hold nothing; name the axes at the edges."""
    columns = axes.shape[1]
    for i, panel in enumerate(axes.flat):
        panel.set_visible(i < used)
        if i + columns >= used:
            panel.set_xlabel(x)
            panel.tick_params(labelbottom=True)
        if i % columns == 0:
            panel.set_ylabel(y)

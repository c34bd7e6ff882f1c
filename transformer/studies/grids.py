"""The heat map: loss at every warm-up and learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import RATE
from .drawing import WIDTH, fold, grid_of, lines_in, new_figure
from .groups import WARMUP, Group, best_of, family_keys, label, plain, rate_text, split_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure


def draw_grid(groups: Sequence[Group]) -> tuple[Figure, str] | None:
    """A panel for each arm; a cell's number is the mean loss, and what diverged is hatched."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, PowerNorm

    held = [g for g in groups if RATE in g.values and WARMUP in g.values]
    rates = sorted({float(plain(g.values[RATE])) for g in held})
    warmups = sorted({float(plain(g.values[WARMUP])) for g in held})
    losses = [g.loss.mean for g in held if g.loss is not None]
    if len(rates) < 2 or len(warmups) < 2 or not losses:
        return None
    families = [key for key in family_keys(groups) if key not in (RATE, WARMUP)]
    panels = split_by(held, families)
    rows, columns = grid_of(len(panels), min(3, max(1, int(6.2 / (0.6 * len(rates))))))
    width = WIDTH if columns > 1 or len(rates) > 5 else 5.2
    cell = (width - 1.4) / columns / len(rates)  # inches
    titles = [fold(label(values), int(cell * len(rates) * 9)) if families else "" for values, _ in panels]
    figure = new_figure(rows * (0.46 * len(warmups) + 0.55 + 0.2 * lines_in(titles)) + 0.45, width)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    low, high = min(losses), max(losses)
    norm = PowerNorm(0.5, low, high if high > low else low + 1e-9)
    light = colormaps["YlGnBu"](np.linspace(0.1, 0.66, 256))  # black text has contrast on all of it
    colours = ScalarMappable(norm, ListedColormap(light))
    for i, panel in enumerate(axes.flat):
        if i >= len(panels):
            panel.set_visible(False)
            continue
        _, members = panels[i]
        best = best_of(members)
        for group in members:
            at = (
                rates.index(float(plain(group.values[RATE]))),
                warmups.index(float(plain(group.values[WARMUP]))),
            )
            _cell(panel, group, at, colours, group is best and group.loss is not None, cell)
        panel.set_xlim(-0.5, len(rates) - 0.5)
        panel.set_ylim(-0.5, len(warmups) - 0.5)
        panel.set_xticks(range(len(rates)), [rate_text(r) for r in rates], rotation=90 * (cell < 0.45))
        panel.set_yticks(range(len(warmups)), [f"{warmup:g}" if warmup else "none" for warmup in warmups])
        panel.tick_params(length=0, labelcolor="black")
        panel.spines[:].set_visible(False)
        panel.set_title(titles[i])
        if i + columns >= len(panels):
            panel.set_xlabel("peak learning rate")
            panel.tick_params(labelbottom=True)
        if i % columns == 0:
            panel.set_ylabel("warm-up (updates)")
    bar = figure.colorbar(colours, ax=list(axes.flat), shrink=0.8, pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    bar.set_label("best validation loss")
    caption = (
        "Mean over the seeds that trained of the best validation loss, ± half of Student's 95 % interval"
        " where there is room; light is low, the scale is the same in all panels and stretched at its"
        " low end. Framed: the best of the panel."
    )
    if any(group.failed for group in held):
        caption += " Hatched: seeds diverged, so many of so many."
    missing = len(panels) * len(rates) * len(warmups) - len(held)
    return figure, caption + (" White: not run, or not finished." if missing else "")


def _cell(
    axes: Axes, group: Group, at: tuple[int, int], colours: ScalarMappable, best: bool, width: float
) -> None:
    """One setting: its mean, and below how many seeds diverged, or else the interval; `width` in inches."""
    from matplotlib.patches import Rectangle

    (x, y), loss, failed = at, group.loss, len(group.failed)
    face = (0.9, 0.9, 0.9, 1.0) if loss is None else tuple(colours.to_rgba(np.asarray(loss.mean)))
    edge, hatch = ("#888888", "///") if failed else ("white", "")
    corner = (x - 0.5, y - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor=edge, hatch=hatch, linewidth=0))
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=1.5))
    if best:
        inner = (x - 0.46, y - 0.46)
        axes.add_patch(Rectangle(inner, 0.92, 0.92, fill=False, edgecolor="black", linewidth=2))
    below = ""
    if failed:
        below = f"{failed}/{len(group.runs)}" + (" div." if width > 0.55 else "")
    elif loss is not None and loss.half is not None and width > 0.45:
        below = f"±{loss.half:.2f}"
    frame: dict[str, Any] = {
        "ha": "center",
        "color": "black",
        "weight": "bold" if best else "normal",
        "bbox": {"facecolor": face, "edgecolor": "none", "pad": 0.8} if failed else None,
    }
    if below:
        axes.text(x, y - (0.06 if loss else 0), below, va="top" if loss else "center", fontsize=7, **frame)
    if loss is not None:
        low = y - 0.04 if below else y
        axes.text(x, low, f"{loss.mean:.2f}", va="bottom" if below else "center", fontsize=8.5, **frame)

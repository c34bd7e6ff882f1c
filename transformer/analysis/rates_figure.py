"""The figure of the ramps: the loss while the rate rises, and the largest rates beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Protocol

from .failing import BY_HEART, REACHED_THE_TOP, SMOOTH
from .finding import COLOURS, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Curve(Protocol):
    """One run."""

    @property
    def rate(self) -> float: ...
    @property
    def update(self) -> int: ...
    @property
    def ended(self) -> str: ...
    @property
    def failed(self) -> bool: ...
    @property
    def learned(self) -> bool: ...
    @property
    def rates(self) -> list[float]: ...
    @property
    def losses(self) -> list[float]: ...


def draw(by_arm: Mapping[str, Sequence[Curve]], level: float, figure: Figure) -> None:
    """Left: medians of the last five losses. Right: rates of the runs that learned anything."""
    figure.set_size_inches(10, max(4.2, 1.8 + 0.45 * len(by_arm)))
    curves, strip = figure.subplots(1, 2, width_ratios=(1.3, 1))

    def bound(loss: float) -> float:
        return min(loss, 2 * level) if math.isfinite(loss) else 2 * level

    for number, (label, runs) in enumerate(by_arm.items()):
        style = look(number)
        for run in runs:
            first = run is runs[0]
            kept = range(len(run.losses))
            losses = [bound(median(run.losses[max(i - SMOOTH + 1, 0) : i + 1])) for i in kept]
            curves.plot(
                run.rates[: len(losses)],
                losses,
                **{**style, "marker": "", "linewidth": 1.8 if first else 0.8, "alpha": 1 if first else 0.5},
                label=label if first else None,
            )
            if run.failed:
                at = losses[run.update - 1]
                curves.plot(run.rate, at, "X", color=style["color"], markeredgecolor="white", markersize=9)
        rates = [run.rate for run in runs if run.learned]
        strip.plot(rates, [number] * len(rates), **{**style, "linestyle": "", "alpha": 0.75})
        if rates:
            strip.plot([median(rates)] * 2, [number - 0.3, number + 0.3], color=style["color"], linewidth=3)
        else:
            middle = strip.get_yaxis_transform()
            strip.text(
                0.5, number, "none: no run learned anything", transform=middle, ha="center", va="center"
            )
        for rate in (run.rate for run in runs if run.ended in (REACHED_THE_TOP, BY_HEART)):
            strip.annotate("≥  ", (rate, number), ha="right", va="center", color=style["color"], fontsize=13)
    curves.axhline(level, color=COLOURS[-1], linewidth=0.8, linestyle=":", label="unigram level")
    curves.set(xscale="log", xlabel="learning rate (rises with every update)")
    curves.set_ylabel(f"training loss (nats), median of {SMOOTH}")
    curves.set_title("Loss while the rate rises, cut at twice the unigram level", loc="left", fontsize=11)
    curves.plot([], [], "X", color="gray", label="before the failure", linestyle="")
    if any(len(runs) > 1 for runs in by_arm.values()):
        curves.plot([], [], color="gray", linewidth=0.8, alpha=0.5, label="thin: the other seeds")
    curves.legend(frameon=False)
    strip.set(
        xscale="log",
        xlim=curves.get_xlim(),
        xlabel="learning rate before the failure",
        yticks=range(len(by_arm)),
    )
    strip.set_yticklabels(list(by_arm))
    strip.set_ylim(len(by_arm) - 0.4, -0.6)
    strip.set_title("Largest rate that trains; bar: median", loc="left", fontsize=11)
    strip.grid(axis="x", alpha=0.3)

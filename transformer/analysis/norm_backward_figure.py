"""The figure of the gradients through the norms: a row of panels for each stack, its norms in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from .finding import look, whole_numbers
from .watch import STACKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 1e-9  # a mean of 0 has no place on a logarithmic axis
TITLES = ("mean of the gradient", "share of its variance taken away", "‖J‖₂ ‖x‖ / √D")


class Point(Protocol):
    """One norm of one arm."""

    @property
    def stack(self) -> str: ...
    @property
    def of_tokens(self) -> bool: ...
    @property
    def jacobian(self) -> float: ...
    def mean(self, statistic: str) -> float: ...


def draw(found: Mapping[str, Sequence[Point]], figure: Figure) -> None:
    """Places count the norms of a stack from 1: arms that differ in the other stack keep theirs."""
    stacks = [
        stack for stack in STACKS if any(norm.stack == stack for norms in found.values() for norm in norms)
    ]
    if not stacks:
        return
    figure.set_size_inches(12, 0.8 + 3.6 * len(stacks))
    panels = figure.subplots(len(stacks), len(TITLES), sharey="col", squeeze=False)
    for row, stack in zip(panels, stacks, strict=True):
        for number, (label, norms) in enumerate(found.items()):
            _curves(row, label, [norm for norm in norms if norm.stack == stack], number)
        for axes, title in zip(row, TITLES, strict=True):
            axes.set_title(f"{stack}: {title}", loc="left", fontsize=11)
            axes.set_xlabel("norm of the stack, from the first")
            whole_numbers(axes)
            axes.grid(axis="y", alpha=0.25)
        row[0].set(yscale="log", ylabel="|mean over D| / size")
        row[1].axhline(0, color="black", linewidth=0.8, linestyle=":")
        row[2].axhline(1, color="black", linewidth=0.8, linestyle=":")
    panels[0, 2].set_ylim(0, max(panels[0, 2].get_ylim()[1], 1.3))
    panels[0, 0].legend(frameon=False, fontsize=8)
    panels[0, 1].legend(frameon=False, fontsize=8)


def _curves(row: Sequence[Axes], label: str, norms: Sequence[Point], number: int) -> None:
    places = range(1, len(norms) + 1)
    style = look(number)
    hollow = {**style, "fillstyle": "none", "linestyle": ":"}
    row[0].plot(places, [norm.mean("mean_in") for norm in norms], **hollow, label=f"{label}, enters")
    row[0].plot(
        places, [max(norm.mean("mean_out"), LEAST) for norm in norms], **style, label=f"{label}, leaves"
    )
    known = [(place, norm) for place, norm in zip(places, norms, strict=True) if norm.of_tokens]
    row[1].plot(
        [place for place, _ in known], [norm.mean("taken") for _, norm in known], **style, label=label
    )
    row[2].plot([place for place, _ in known], [norm.jacobian for _, norm in known], **style, label=label)

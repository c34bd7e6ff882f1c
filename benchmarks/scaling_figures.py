"""The figures of benchmarks/scaling.py: sizes on log axes, ratios as dots with their range."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from transformer.analysis.finding import COLOURS, look, new_figure, plain

AXES = {
    "width": "width d_model (channels)",
    "depth": "layers of each stack",
    "length": "mean sentence length (tokens)",
    "vocabulary": "vocabulary (entries)",
    "batch": "tokens of a batch, padding counted",
    "memory": "layers of each stack",
}
RATIOS = {
    "placements": "time of an update, relative to Pre-LN",
    "norms": "time of an update, relative to LayerNorm",
    "observing": "time of an update, relative to one without",
}


def draw(part: str, entries: Sequence[dict[str, Any]], file: Path) -> None:
    """One part's figure; none for a part without points."""
    if not entries:
        return
    if part in AXES:
        figure = new_figure(9.0, 3.8)
        speeds(*figure.subplots(1, 2), part, entries)
    elif part in RATIOS:
        figure = new_figure(7.0, 1.4 + 0.26 * len(entries))
        ratios(figure.subplots(), part, entries)
    else:
        figure = new_figure(7.0, 3.2)
        preparation(figure.subplots(), entries)
    figure.savefig(file, dpi=130, metadata={"Software": None})


def speeds(left: Axes, right: Axes, part: str, entries: Sequence[dict[str, Any]]) -> None:
    """Left target tokens/s and their limit, right peak memory beyond what was there before training."""
    names = list(dict.fromkeys(entry["name"] for entry in entries))
    for number, name in enumerate(names):
        own = sorted((entry for entry in entries if entry["name"] == name), key=lambda entry: entry["x"])
        x = [entry["x"] for entry in own]
        style = look(number) | {"label": name}
        left.plot(x, [entry["speed"] for entry in own], **style)
        left.fill_between(
            x,
            [e["least"] for e in own],
            [e["most"] for e in own],
            color=style["color"],
            alpha=0.2,
            linewidth=0,
        )
        if number == 0:
            limit = [entry["limit"] for entry in own]
            left.plot(x, limit, color="0.45", linestyle="--", linewidth=1.2, label="limit of the products")
        memory = [(entry["memory"] - entry["memory_before"]) / 2**20 for entry in own]
        right.plot(x, memory, **style)
    ticks = sorted({entry["x"] for entry in entries})
    for axes, label in ((left, "target tokens/s"), (right, "peak memory of training (MiB)")):
        axes.set(xlabel=AXES[part], ylabel=label, xscale="log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        log_numbers(axes)
        plain(axes)
    left.legend(frameon=False, fontsize=8)
    if len(names) > 1:
        right.legend(frameon=False, fontsize=8)


def log_numbers(axes: Axes) -> None:
    """A logarithmic y axis with 1, 2 and 5 of each decade written out."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=30))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", labelsize=8)


def ratios(axes: Axes, part: str, entries: Sequence[dict[str, Any]]) -> None:
    """A row for each name, the first on top, then by cost: median over the rounds, and their range."""
    rows = [entries[0], *sorted(entries[1:], key=lambda entry: entry["ratio"])]
    for y, entry in enumerate(rows):
        axes.plot([entry["least"], entry["most"]], [y, y], color=COLOURS[0], alpha=0.4, linewidth=4)
        axes.plot(entry["ratio"], y, "o", color=COLOURS[0] if y else COLOURS[1], markersize=5)
    axes.axvline(1.0, color="0.45", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [entry["name"] for entry in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(RATIOS[part])
    plain(axes)


def preparation(axes: Axes, entries: Sequence[dict[str, Any]]) -> None:
    """Pairs a second, on a log axis: nothing there, the tokenizer there, everything there."""
    labels = [f"{entry['name']}\n{entry['pairs']:,.0f} pairs" for entry in entries]
    words = {"whole": "nothing kept", "encoding": "tokenizer kept", "cached": "encoded text kept"}
    for number, (key, label) in enumerate(words.items()):
        style = look(number) | {"linestyle": ""}
        axes.plot(range(len(entries)), [entry[key] for entry in entries], label=label, **style)
    log_numbers(axes)
    axes.set_xticks(range(len(entries)), labels, fontsize=8)
    axes.set(ylabel="sentence pairs/s", xlim=(-0.5, len(entries) - 0.5))
    plain(axes)
    axes.legend(frameon=False, fontsize=8)

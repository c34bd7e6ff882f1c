"""What a measurement found: a table, its summary and a figure, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from .interval import interval, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours (2008), told apart by colour-blind readers; the yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LARGEST_FIGURE = 22.0  # inches
FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Finding:
    """A table with its summary, sentences about both, and the facts behind them.

    `facts` hold the definition of the statistic and its numbers seed by seed; what else it takes to repeat a
    measurement is the same for all of them, and the command adds it. `draw` draws into an empty figure.
    """

    name: str
    columns: list[str]
    rows: list[list[Any]]
    summary_columns: list[str] = field(default_factory=list)
    summary: list[list[Any]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    draw: Callable[[Figure], None] | None = None


def by_seed(
    columns: Sequence[str], places: int, tables: Sequence[Sequence[Sequence[Any]]]
) -> list[dict[str, Any]]:
    """Make a record of each row: its places as they are, each number as a list in the order of the seeds.

    `tables` has the rows of each seed; their first `places` columns say what a row is about, and are the same
    for all.
    """
    records = []
    for same in zip(*tables, strict=True):
        assert all(row[:places] == same[0][:places] for row in same)
        record = dict(zip(columns[:places], same[0], strict=False))
        records.append(
            record | {name: [row[i] for row in same] for i, name in enumerate(columns) if i >= places}
        )
    return records


def as_text(finding: Finding) -> str:
    """Table, summary and words, for a terminal."""
    parts = [table(finding.columns, finding.rows)] if finding.rows else []
    parts += [table(finding.summary_columns, finding.summary)] if finding.summary else []
    parts += ["\n".join(finding.words)] if finding.words else []
    return "\n\n".join(parts)


def as_json(finding: Finding) -> dict[str, Any]:
    """The finding without its figure, of plain values; numbers that JSON does not have become text."""
    plain: dict[str, Any] = _plain(
        {
            "probe": finding.name,
            "facts": finding.facts,
            "columns": finding.columns,
            "rows": finding.rows,
            "summary_columns": finding.summary_columns,
            "summary": finding.summary,
            "words": finding.words,
        }
    )
    return plain


def save_figure(finding: Finding, path: Path | str) -> None:
    """Draw it into a file of the format that its ending says. ConfigError where that cannot be."""
    if finding.draw is None:
        raise ConfigError(f"{finding.name} draws no figure; its numbers are in the table and in --json FILE")
    figure = new_figure()
    finding.draw(figure)
    chosen = figure_format(path)
    # Without the date and the version of the library, equal findings make equal files.
    silent = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}[chosen]
    figure.savefig(path, format=chosen, dpi=150, metadata={silent: None})


def figure_format(path: Path | str) -> str:
    """What the ending says: png (no ending too), svg or pdf. ConfigError for another."""
    ending = Path(path).suffix.lstrip(".").lower() or "png"
    if ending not in FORMATS:
        raise ConfigError(f"{path}: a figure is a .{', a .'.join(FORMATS[:-1])} or a .{FORMATS[-1]}")
    return ending


def new_figure(width: float = 8.0, height: float = 4.5) -> Figure:
    """An empty figure. ConfigError when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        remedy = "install it with `pip install prepost-transformer[report]`"
        raise ConfigError(f"a figure needs matplotlib: {remedy}") from None
    return Figure(figsize=(min(width, LARGEST_FIGURE), min(height, LARGEST_FIGURE)), layout="constrained")


def look(number: int) -> dict[str, Any]:
    """Colour and marker of the arm with this number, for `Axes.plot`: a pair of its own up to 49 arms.

    Where the colours repeat the lines are dashed too.
    """
    round_ = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + round_) % len(MARKERS)],
        "linestyle": ("-", "--", ":")[round_ % 3],
        "markersize": 5,
        "linewidth": 1.8,
    }


def plain(ax: Axes) -> None:
    """No frame, a faint grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)


def whole_numbers(ax: Axes) -> None:
    """Ticks of the x axis at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns: numbers to the right, words to the left."""
    cells = [[shown(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in (columns, *cells)) for i in range(len(columns))]
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]

    def line(texts: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(columns), *(line(row) for row in cells)])


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same as a Markdown table."""
    lines = [list(columns), ["---"] * len(columns), *([shown(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def shown(value: Any) -> str:
    """A cell: four digits of a number, `-` for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def two_decimals(value: float) -> str:
    """Two decimals, with no sign before a zero."""
    text = f"{value:.2f}"
    return text.lstrip("-") if float(text) == 0 else text


def estimate(values: Sequence[float]) -> str:
    """`-0.54 [-0.60, -0.47]`: mean and t interval over the seeds; of one seed the value."""
    sure = interval(values)
    return two_decimals(mean(values)) + (f" [{', '.join(map(two_decimals, sure))}]" if sure else "")


def of_seeds(count: int) -> str:
    """What a number over seeds is, in words."""
    return "one seed" if count == 1 else f"medians of {count} seeds"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)

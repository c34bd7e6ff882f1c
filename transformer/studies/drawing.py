"""How figures look: one palette (Okabe and Ito's), plain axes, labels beside what they name."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from ..core.errors import ConfigError
from .config import RATE
from .derived import lowest_start
from .groups import WARMUP, Group, axes_of, best_of, family_keys, label, plain, rate_text, split_by
from .judging import MIXED, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by readers who do not see red or green; marker and line style say the same again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
STYLES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.4)), (0, (6, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
VERDICTS = {  # dark enough for white text
    REPRODUCED: "#00598C",
    NOT_REPRODUCED: "#A34300",
    MIXED: "#7A5C00",
    NOT_TESTABLE: "#555555",
}
DARK, GREY, PALE = "#222222", "#555555", "#DDDDDD"
WIDTH, DPI = 7.6, 150
LINE = 0.155  # inches that a line of small text takes
MOST_LINES, MOST_ARMS = 6, 10  # in one panel, with and without a warm-up axis
# What is used of these where it is installed, for letters that the first does not have.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "Hiragino Sans",
    "Arial Unicode MS",
)

RC: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "grid.color": PALE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.dpi": DPI,
    "text.parse_math": False,  # a $ in an arm's name is a $
}


@dataclass(frozen=True)
class Line:
    """What one line of a figure shows: the settings that differ in the learning rate alone."""

    family: str
    label: str  # within the study
    short: str  # within a panel of its family
    groups: list[Group]
    look: Mapping[str, Any]
    start: float | None = None  # the lowest loss at initialisation of the study's runs

    @property
    def best(self) -> Group:
        best = best_of(self.groups)
        assert best is not None
        return best

    @property
    def colour(self) -> str:
        return str(self.look["color"])


def lines_of(groups: Sequence[Group]) -> list[Line]:
    """Colour tells arms apart and line style warm-ups; where only one of them varies, both follow it."""
    start = lowest_start(groups)
    families, warmups = family_keys(groups), [WARMUP] if WARMUP in axes_of(groups) else []
    inner = [key for key in warmups if key not in families]
    found: list[Line] = []
    levels = sorted({float(plain(g.values[WARMUP])) for g in groups if WARMUP in g.values}, reverse=True)
    for i, (values, members) in enumerate(split_by(groups, families)):
        for own, held in split_by(members, inner):
            style = levels.index(float(plain(own[WARMUP]))) if own else i
            short = label(own) if own else ""
            look = _look(i, style, hollow=bool(own and style))
            found.append(Line(label(values), label({**values, **own}), short, held, look, start))
    return found


def panels_of(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """(title, lines) of each panel: one for all where they are few, else one for each arm.

    Within an arm's panel colours tell warm-ups apart, the same ones in all panels.
    """
    families = list(dict.fromkeys(line.family for line in lines))
    if len(lines) <= (MOST_LINES if len(families) < len(lines) else MOST_ARMS):
        return [("", list(lines))]
    names = list(dict.fromkeys(line.short for line in lines))
    own = [replace(line, look=_look(names.index(line.short), names.index(line.short))) for line in lines]
    return [(name, [line for line in own if line.family == name]) for name in families]


def _look(colour: int, dashes: int, hollow: bool = False) -> dict[str, Any]:
    return {
        "color": COLOURS[colour % len(COLOURS)],
        "linestyle": STYLES[dashes % len(STYLES)],
        "marker": MARKERS[(colour + colour // len(COLOURS)) % len(MARKERS)],
        "markerfacecolor": "white" if hollow else COLOURS[colour % len(COLOURS)],
    }


@contextmanager
def style() -> Iterator[None]:
    """The library's defaults and ours, whatever a user has set up. ConfigError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("figures need matplotlib: pip install prepost-transformer[report]") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, {**RC, "font.family": list(_fonts())}))
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def grid_of(count: int, across: int = 3) -> tuple[int, int]:
    """(rows, columns) for some panels."""
    columns = min(count, across if count != 4 else 2)
    return -(-count // columns), columns


def png(figure: Figure) -> bytes:
    """The figure's bytes, without a date or a version in them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None}, facecolor="white")
    return buffer.getvalue()


@cache
def _fonts() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return (FONTS[0], *(name for name in FONTS[1:] if name in installed))


@cache
def _width(letter: str) -> float:
    """How many common letters wide it is; 0 where a font is wanting, in either weight."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    found = []
    for weight in ("normal", "bold"):
        files = [findfont(FontProperties(family=[name], weight=weight)) for name in _fonts()]
        font = next((font for font in map(get_font, files) if font.get_char_index(ord(letter))), None)
        if font is None:
            return 0.0
        font.set_size(10, 72)
        found.append(font.load_char(ord(letter)).linearHoriAdvance / 65536 / 10)
    return max(found) / 0.7


def fold(text: str, width: int = 34, most: int = 2) -> str:
    """The text on few lines of about `width` letters; what is too long loses its middle.

    A letter that no font has becomes `?`.
    """
    text = "".join(letter if _width(letter) else "?" for letter in " ".join(text.split()))
    if text:
        width = int(width / max(1.0, sum(map(_width, text)) / len(text)))
    cut, room = text, width * most
    while len(lines := textwrap.wrap(cut, width, break_on_hyphens=False)) > most:
        room -= 1
        cut = f"{text[: room - room // 3]}…{text[len(text) - room // 3 :]}"
    return "\n".join(lines)


def lines_in(texts: Sequence[str]) -> int:
    """How many lines the tallest text takes."""
    return 1 + max((text.count("\n") for text in texts), default=0)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, Mapping[str, Any]]], height: float) -> None:
    """Write (height in data, text, look) to the right of the axes, moved apart where they would touch.

    The text is dark beside a sample of its line; `height` is that of the axes in inches.
    """
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[0])
    room = [(LINE * lines_in([text]) + 0.04) / height for _, text, _ in ends]
    apart = [0.0, *((room[i] + room[i - 1]) / 2 for i in range(1, len(room)))]
    starts = [min(max((end[0] - low) / ((high - low) or 1.0), 0.0), 1.0) for end in ends]
    up, down = list(starts), list(starts)
    for i in range(1, len(up)):
        up[i] = max(up[i], up[i - 1] + apart[i])
    for i in reversed(range(1, len(down))):
        down[i - 1] = min(down[i - 1], down[i] - apart[i])
    places = [(above + below) / 2 for above, below in zip(up, down, strict=True)]
    bottom, top = 0.0, 1.0
    for i in range(len(places)):
        places[i] = max(places[i], bottom + apart[i])
        bottom = places[i]
    for i in reversed(range(len(places))):
        places[i] = min(places[i], top)
        top = places[i] - apart[i]
    inches = axes.figure.dpi_scale_trans + ScaledTranslation(
        1, 0, cast(Any, axes.transAxes)
    )  # from the right
    frame: dict[str, Any] = {
        "transform": blended_transform_factory(inches, axes.transAxes),
        "clip_on": False,
    }
    still = {**frame, "scalex": False, "scaley": False}
    for start, place, (_, text, look) in zip(starts, places, ends, strict=True):
        axes.plot([0.04, 0.13], [start, place], color=look["color"], linewidth=0.8, **still)
        axes.plot([0.15, 0.3, 0.45], [place] * 3, linewidth=1.6, markersize=5, markevery=[1], **look, **still)
        axes.text(0.51, place, text, color=DARK, va="center", ha="left", fontsize=9, **frame)


def rate_ticks(axes: Axes, rates: Sequence[float], width: float) -> None:
    """A log axis with room for all rates and a tick at each; names where `width` inches have room."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(rates[0] / (rates[-1] / rates[0]) ** 0.06, rates[-1] * (rates[-1] / rates[0]) ** 0.06)
    apart = 0.4 / width * 1.12 * math.log10(rates[-1] / rates[0])
    named: list[float] = []
    for rate in sorted(
        rates, key=lambda r: (r not in (rates[0], rates[-1]), f"{r:.6e}"[:8] != "1.000000", r)
    ):
        if all(abs(math.log10(rate / other)) >= apart for other in named):
            named.append(rate)
    axes.xaxis.set_major_locator(FixedLocator(list(rates)))
    axes.xaxis.set_major_formatter(FixedFormatter([rate_text(r) if r in named else "" for r in rates]))
    axes.xaxis.set_minor_locator(NullLocator())


def row_height(labels: Sequence[str], least: float) -> float:
    """Inches for each row, so that the tallest label does not touch the next."""
    return max(least, LINE * lines_in(labels) + 0.08)


def rows_axes(axes: Axes, labels: Sequence[str]) -> None:
    """Horizontal rows with names, the first on top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0, labelcolor="black")
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x")


def rates_of(groups: Sequence[Group]) -> list[float]:
    return sorted({float(plain(g.values[RATE])) for g in groups if RATE in g.values})

"""Figures of rows: one arm or question a line, a dot and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .config import RATE, Study
from .drawing import (
    COLOURS,
    DARK,
    GREY,
    PALE,
    VERDICTS,
    Line,
    fold,
    grid_of,
    lines_in,
    lines_of,
    new_figure,
    rates_of,
    row_height,
    rows_axes,
)
from .groups import TO_TARGET, Group, axes_of, label, metric_name, plain, rate_text
from .judging import REPRODUCED, Comparison
from .statistics import mean_of, wilson
from .verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 24


def draw_divergence(groups: Sequence[Group]) -> tuple[Figure, str] | None:
    """Share of diverged seeds of each setting, with Wilson's interval; None where no run diverged."""
    if not any(group.failed for group in groups):
        return None
    axes_keys = list(axes_of(groups))
    shown = list(groups)
    left_out = 0
    if len(shown) > MOST_ROWS:
        shown = [group for group in groups if group.failed]
        left_out = len(groups) - len(shown)
    look = {id(group): line for line in lines_of(groups) for group in line.groups}
    names = [fold(label(group.only(axes_keys)), 40) for group in shown]
    figure = new_figure(row_height(names, 0.26) * len(shown) + 0.9)
    axes = figure.subplots()
    for row, group in enumerate(shown):
        failed, count = len(group.failed), len(group.runs)
        low, high = wilson(failed, count)
        line = look[id(group)]
        axes.hlines(row, 100 * low, 100 * high, color=line.colour, linewidth=1.6)
        dot: dict[str, Any] = {"color": line.colour, "marker": line.look["marker"], "clip_on": False}
        axes.plot(100 * failed / count, row, markersize=6, **dot)
        axes.text(104, row, f"{failed} of {count}", va="center", fontsize=9, clip_on=False)
    rows_axes(axes, names)
    axes.set_xlim(-2, 100)
    axes.set_xlabel("runs that diverged (%)")
    caption = (
        "Dots: share of the seeds that diverged. Lines: Wilson's 95 % interval, wide where seeds are few."
    )
    return figure, caption + (f" In the other {left_out} settings no run diverged." if left_out else "")


def draw_target(study: Study, groups: Sequence[Group]) -> tuple[Figure, str] | None:
    """Updates to the target loss at each line's best rate: every seed, and their mean."""
    if study.target is None:
        return None
    lines = lines_of(groups)
    names = _named(lines, groups)
    figure = new_figure(row_height(names, 0.36) * len(lines) + 0.8)
    axes = figure.subplots()
    furthest = 0.0
    for row, line in enumerate(lines):
        group = line.best
        held = sorted(group.scores(TO_TARGET).values())
        mean = mean_of(held)
        if mean is not None:
            axes.plot(held, [row] * len(held), "|", color=line.colour, markersize=11, markeredgewidth=1.3)
            axes.plot(mean.mean, row, color=line.colour, marker=line.look["marker"], markersize=7)
            furthest = max(furthest, held[-1])
        missed = len(group.fell_short(TO_TARGET))
        bound = "≤ " if group.bounded(TO_TARGET) else ""
        told = [] if mean is None else [f"{bound}{mean.mean:,.0f}"]
        told += [f"{missed} of {len(group.runs)} never"] if missed else []
        axes.annotate(
            ", ".join(told),
            (held[-1] if held else 0, row),
            (10, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=GREY if mean is None else "black",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )
    rows_axes(axes, names)
    longest = max(run.updates for line in lines for run in line.best.runs.values())
    axes.set_xlim(0, 1.22 * furthest if furthest else longest)
    axes.set_xlabel(f"updates to a validation loss of {study.target:g}")
    caption = (
        "Bars: seeds. Markers and numbers: their mean, over the seeds that reached the target."
        " Between validations the loss is taken to fall in a straight line; ≤: a seed was there by its first"
        " validation."
    )
    return figure, caption


def draw_bleu(groups: Sequence[Group]) -> tuple[Figure, str] | None:
    """BLEU of each test set (of the validation set where there is none) at each line's best rate."""
    tests = sorted({name for g in groups for run in g.runs.values() for name in run.tests})
    metrics = {f"test.{name}.bleu": name for name in tests} or {"valid_bleu": "validation set"}
    metrics = {m: name for m, name in metrics.items() if any(g.scores(m) for g in groups)}
    lines = lines_of(groups)
    if not metrics:
        return None
    names = _named(lines, groups)
    longest = max(len(line) for name in names for line in name.split("\n"))
    rows, columns = grid_of(len(metrics), 3 if longest < 24 else 2)
    figure = new_figure(rows * (row_height(names, 0.34) * len(lines) + 0.6) + 0.4)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for i, panel in enumerate(panels.flat):
        panel.set_visible(i < len(metrics))
    for panel, (metric, name) in zip(panels.flat, metrics.items(), strict=False):
        for row, line in enumerate(lines):
            held = sorted(line.best.scores(metric).values())
            mean = mean_of(held)
            if mean is None:
                told = "diverged" if line.best.failed else "no score"
                frame: dict[str, Any] = {"transform": panel.get_yaxis_transform(), "va": "center"}
                panel.text(0.02, row, told, fontsize=8.5, color=GREY, **frame)
                continue
            if mean.low is not None and mean.high is not None:
                panel.hlines(row, max(0.0, mean.low), min(100.0, mean.high), color=line.colour, linewidth=2)
            panel.plot(held, [row] * len(held), "|", color=line.colour, markersize=9)
            panel.plot(mean.mean, row, color=line.colour, marker=line.look["marker"], markersize=6)
            above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8.5}
            panel.annotate(f"{mean.mean:.1f}", (mean.mean, row), (0, 6), **above)
        rows_axes(panel, names)
        panel.set_ylim(len(lines) - 0.5, -0.7)
        panel.set_title(fold(name, 16 if columns > 2 else 28))
        panel.set_xlabel("BLEU")
        panel.margins(x=0.12)
        panel.locator_params(axis="x", nbins=8 - 2 * columns if columns > 1 else 8)
    caption = "Markers: means over the seeds that trained; bars: seeds; lines: Student's 95 % interval."
    return figure, f"{caption} The learning rate is the best on validation loss."


def draw_gains(verdicts: Sequence[Verdict]) -> tuple[Figure, str] | None:
    """How much better `this` is than `that` in the question's metric; a panel for each question."""
    asked = [(n, v, [c for c in v.comparisons if c.seeds]) for n, v in enumerate(verdicts, 1)]
    told = [f"Question {n}: no runs to compare." for n, _, held in asked if not held]
    told += [
        f"Question {n}: the first {MOST_ROWS} of {len(held)} settings."
        for n, _, held in asked
        if len(held) > MOST_ROWS
    ]
    asked = [(n, v, held[:MOST_ROWS]) for n, v, held in asked if held]
    if not asked:
        return None
    names = [[fold(c.setting) if c.setting else _sides(v) for c in held] for _, v, held in asked]
    asks = [fold(v.question.ask, 66) for _, v, _ in asked]
    measured = [any(_has_amount(c) for c in held) for _, _, held in asked]
    rows = [sum(row_height([name], 0.24) for name in held) for held in names]
    above = [0.17 * lines_in([ask]) for ask in asks]
    figure = new_figure(sum(rows) + sum(above) + sum(0.5 if scale else 0.2 for scale in measured))
    panels = figure.subplots(len(asked), 1, squeeze=False, height_ratios=rows)
    for panel, (n, verdict, held), own, ask in zip(panels.flat, asked, names, asks, strict=True):
        _gains(panel, verdict, held, own)
        panel.set_title("\n".join(" " for _ in ask.split("\n")), fontsize=10)  # keeps the room
        frame = {"xycoords": ("figure fraction", "axes fraction"), "textcoords": "offset points"}
        bold = {"weight": "bold", "fontsize": 9.5}
        panel.annotate(f"{n}" + "\n " * ask.count("\n"), (0, 1), (4, 7), **bold, **frame)
        panel.annotate(ask, (0, 1), (22, 7), **bold, **frame)
        look = {"ha": "right", "fontsize": 9.5, "color": VERDICTS[verdict.verdict]}
        panel.annotate(verdict.verdict, (1, 1), (-4, 7), **look, **frame)
    caption = (
        "A panel for each question, with a scale of its own. Dots: mean gain of the first over the second,"
        " within seeds; lines: Student's 95 % interval, with an arrow where it goes on beyond the panel,"
        " none with one seed. Right of zero the first is better. Filled: as the claim has it."
        " Grey: the margin. A divergence has no amount: it is said in words, to the side to which the seeds"
        " lean."
    )
    return figure, " ".join([caption, *told])


def _gains(axes: Axes, verdict: Verdict, comparisons: Sequence[Comparison], names: Sequence[str]) -> None:
    measured = [c.gain for c in comparisons if c.gain is not None and _has_amount(c)]
    margin = verdict.question.margin
    reach = [abs(bound) for g in measured for bound in (g.low, g.high) if bound is not None]
    centre = max((abs(g.mean) for g in measured), default=0.0)
    limit = 1.15 * max([*reach, centre, margin]) or 1.0
    if centre:  # the interval of two seeds is endless
        limit = min(limit, max(4 * centre, 2 * margin))
    if margin and measured:
        axes.axvspan(-margin, margin, color="#ECECEC", linewidth=0)
    axes.axvline(0, color=GREY if measured else PALE, linewidth=1)
    for row, c in enumerate(comparisons):
        if not _has_amount(c) or c.gain is None:
            place, align = ((0.98, "right") if c.lean > 0 else (0.02, "left")) if c.lean else (0.5, "center")
            frame: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "fontsize": 8.5, "va": "center"}
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            axes.text(place, row, c.counts(), ha=align, color=DARK, bbox=box, **frame)
            continue
        if c.gain.low is not None and c.gain.high is not None:
            low, high = max(-limit, c.gain.low), min(limit, c.gain.high)
            axes.hlines(row, low, high, color=COLOURS[0], linewidth=1.8)
            for end, arrow in ((low, "<"), (high, ">")):
                if abs(end) == limit:
                    axes.plot(end, row, arrow, color=COLOURS[0], markersize=6, clip_on=False)
        filled = COLOURS[0] if c.verdict == REPRODUCED else "white"
        look: dict[str, Any] = {"markerfacecolor": filled, "markersize": 7, "markeredgewidth": 1.6}
        axes.plot(c.gain.mean, row, "o", color=COLOURS[0], **look)
    rows_axes(axes, names)
    axes.tick_params(axis="y", pad=8)  # beside an arrow
    axes.set_xlim(-limit, limit)
    axes.locator_params(axis="x", nbins=6)
    if not measured:  # no scale, and nothing to read off one
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        return
    metric = fold(metric_name(comparisons[0].metric), 44, 1)
    axes.set_xlabel(f"worse  ←  gain in {metric}  →  better", fontsize=9)


def _has_amount(c: Comparison) -> bool:
    return c.gain is not None and not any(c.failed)


def _sides(verdict: Verdict) -> str:
    this, that = verdict.question.this, verdict.question.that
    shared = [key for key in this if key in that and plain(this[key]) == plain(that[key])]
    names = [label({key: value for key, value in side.items() if key not in shared}) for side in (this, that)]
    return f"{fold(names[0])}\n{fold(f'against {names[1]}')}"


def _named(lines: Sequence[Line], groups: Sequence[Group]) -> list[str]:
    """The name of each line, with its best rate where the study has several."""
    several = len(rates_of(groups)) > 1
    return [
        fold(
            f"{line.label}, {rate_text(line.best.values[RATE])}"
            if several and RATE in line.best.values
            else line.label
        )
        for line in lines
    ]

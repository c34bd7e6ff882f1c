"""Medians over rounds, as tables.

Training: `target tokens/s` without padding, over the timed updates; `padding`, its share in the sources and
in the targets of these; `tokens an update`, of the target, again without padding: over a pass of the text
they are the same for all within 2 %, and what differs here is which batches a system drew; `parameters`, that
are trained; `first update`, seconds from the start of the process to the end of its first update, so imports,
reading the text and building the model; `memory`, the most the process held until its last update.

Translation: test2016, in batches of 64 sentences of like length, each forced to sixteen steps of the decoder:
16 pieces, or 15 and EOS in a system that always ends in one. One batch goes before the clock starts.
`start-up`, seconds from the start of the process to its first batch, model and text read.

`of others`: their share of the processors' time that was asked for while the process ran: other processes,
and what the host of a virtual machine gave to another one; median of the rounds.

`ours x`: how many times as fast the first system is, the median of the rounds' own ratios, since only what
ran in the same round saw the same machine.

`limit`: what the matrix products without padding take at the fastest rate of products in that number format,
or the bytes of weights, optimizer and cache at the rate of copies, whichever is longer; both rates measured
by the process of the system that the row names when it is done. On a shared machine they vary several times
over, and a low one is no limit: the highest of the rounds stands there, and `ours x` is the share that the
system's median has of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .shapes import BEAMS, SHAPES

GIB = 1 << 30


class Trial(NamedTuple):
    """What one process of one round found, or why it could not."""

    shape: str
    task: str
    system: str
    round: int
    found: dict[str, Any]
    failure: str = ""

    def summary(self) -> str:
        rates = [f"{self.found[name]:,.1f}" for name in speeds(self.task)]
        told = f"{' and '.join(rates)} {'target tokens/s' if self.task == 'train' else 'sentences/s'}"
        return told + (f", {self.found['others']:.0%} of others" if "others" in self.found else "")


class Column(NamedTuple):
    """A measured number: its key in a trial, its title and how it is shown."""

    key: str
    title: str
    form: str
    scale: float = 1.0

    @property
    def is_rate(self) -> bool:
        """Does it get a range and a ratio?"""
        return "per_second" in self.key


COLUMNS = {
    "train": [
        Column("tokens_per_second", "target tokens/s", ",.0f"),
        Column("source_padding", "padding, source", ".1%"),
        Column("target_padding", "padding, target", ".1%"),
        Column("tokens_per_update", "tokens an update", ",.0f"),
        Column("parameters", "parameters, M", ",.2f", 1e-6),
        Column("seconds_to_first_update", "first update, s", ".1f"),
        Column("peak_bytes", "memory, GiB", ".2f", 1 / GIB),
        Column("others", "of others", ".0%"),
    ],
    "translate": [
        *(Column(f"sentences_per_second_beam_{b}", f"beam {b}, sentences/s", ",.1f") for b in BEAMS),
        Column("seconds_to_ready", "start-up, s", ".1f"),
        Column("peak_bytes", "memory, GiB", ".2f", 1 / GIB),
        Column("others", "of others", ".0%"),
    ],
}
TITLES = {"train": "training", "translate": "translation"}


def speeds(task: str) -> list[str]:
    """Keys of the numbers that are rates."""
    return [column.key for column in COLUMNS[task] if column.is_rate]


def tables(trials: Sequence[Trial], systems: Sequence[str]) -> str:
    """A table for each shape and task, in the order of the trials."""
    kinds = dict.fromkeys((trial.shape, trial.task) for trial in trials)
    return "\n\n".join("\n".join(table(trials, systems, shape, task)) for shape, task in kinds)


def table(trials: Sequence[Trial], systems: Sequence[str], shape: str, task: str) -> Iterator[str]:
    here = {
        name: [t for t in trials if (t.shape, t.task, t.system) == (shape, task, name)] for name in systems
    }
    first = next(iter(here))
    found = [trial.found for own in here.values() for trial in own]
    columns = [c for c in COLUMNS[task] if c.is_rate or any(c.key in each for each in found)]
    head = ["system"]
    for column in columns:
        head += [column.title, f"{first} x"] if column.is_rate else [column.title]
    yield f"### {shape}, {TITLES[task]}\n"
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for name, own in here.items():
        if own:
            yield "| " + " | ".join([f"`{name}`", *cells(own, here[first], columns, len(head) - 1)]) + " |"
    for name, own in here.items():
        for kind in dict.fromkeys(kind for trial in own for kind in trial.found.get("limits", ())):
            rates = [trial.found["limits"][kind] for trial in own if kind in trial.found.get("limits", ())]
            row = [f"limit, {kind} (`{name}`)", *limit_cells(rates, own, columns)]
            yield "| " + " | ".join(row) + " |"


def summary(trials: Sequence[Trial], systems: Sequence[str]) -> str:
    """How many times as fast the first system is, one row for each other; nothing where it is alone."""
    first, *others = systems
    kinds = [
        (shape, task, column)
        for task, columns in COLUMNS.items()
        for column in columns
        if column.key in speeds(task)
        for shape in SHAPES
        if any((t.shape, t.task) == (shape, task) for t in trials)
    ]

    def cell(name: str, shape: str, task: str, key: str) -> str:
        mine, theirs = (
            [t for t in trials if (t.shape, t.task, t.system) == (shape, task, system)]
            for system in (first, name)
        )
        if any(trial.failure for trial in theirs):
            return "could not be run"
        return ratio(theirs, mine, key)

    rows = [
        [f"`{name}`", *(cell(name, shape, task, column.key) for shape, task, column in kinds)]
        for name in others
    ]
    rows = [row for row in rows if any(row[1:])]
    if not rows:
        return ""
    head = ["", *(f"{TITLES[t]}{'' if t == 'train' else f', {c.title}'}, {s}" for s, t, c in kinds)]
    head = [title.replace(", sentences/s", "") for title in head]
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return f"### How many times as fast `{first}` is\n\n" + "\n".join(lines)


def cells(own: Sequence[Trial], first: Sequence[Trial], columns: Sequence[Column], width: int) -> list[str]:
    if failures := [trial.failure for trial in own if trial.failure]:
        return [f"could not be run: {failures[0].replace('|', '/')}", *[""] * (width - 1)]
    row = []
    for column in columns:
        values = [trial.found[column.key] * column.scale for trial in own if column.key in trial.found]
        if not values:
            row += [""] * (2 if column.is_rate else 1)
            continue
        shown = format(statistics.median(values), column.form)
        if not column.is_rate:
            row.append(shown)
            continue
        if len(values) > 1:
            shown += f" ({min(values):{column.form}} to {max(values):{column.form}})"
        row += [shown, ratio(own, first, column.key)]
    return row


def limit_cells(
    rates: Sequence[dict[str, float]], own: Sequence[Trial], columns: Sequence[Column]
) -> list[str]:
    """The highest limit that a round found, and the system's share of it, by its median."""
    row = []
    for column in columns:
        values = [each[column.key] for each in rates if column.key in each]
        shown = f"{max(values, default=0.0):{column.form}}"
        if len(values) > 1:
            shown += f" (from {min(values):{column.form}})"
        reached = [trial.found[column.key] for trial in own if column.key in trial.found]
        share = f"{statistics.median(reached) / max(values):.2f}" if values else ""
        row += [shown, share] if values and column.is_rate else [""] * (1 + column.is_rate)
    return row


def ratio(own: Sequence[Trial], first: Sequence[Trial], key: str) -> str:
    """How many times as fast the first system is, over the rounds both have."""
    rates = {trial.round: trial.found[key] for trial in first if not trial.failure}
    ratios = [rates[trial.round] / trial.found[key] for trial in own if trial.round in rates]
    return f"{statistics.median(ratios):.2f}" if ratios else ""

"""Medians over rounds, as tables.

Training: `target tokens/s` without padding, over the timed updates; `padding`, its share in the targets of
these; `tokens an update`, again without padding; `parameters`, that are trained; `first update`, seconds from
the start of the process to the end of its first update, so imports, reading the text and building the model;
`memory`, the most the process held until its last update.

Translation: test2016, forced to 16 pieces a sentence, in batches of 64 sentences of like length; one batch
goes before the clock starts. `start-up`, seconds from the start of the process to its first batch, model and
text read.

`ours x`: how many times as fast the first system is, the median of the rounds' own ratios, since only what
ran in the same round saw the same machine.
"""

from __future__ import annotations

import ast
import platform
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from .environments import ROOT, TORCH
from .shapes import BEAMS, SHAPES
from .systems import SYSTEMS

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
        return f"{' and '.join(rates)} {'target tokens/s' if self.task == 'train' else 'sentences/s'}"


class Column(NamedTuple):
    """A measured number: its key in a trial, its title and how it is shown."""

    key: str
    title: str
    form: str
    scale: float = 1.0


COLUMNS = {
    "train": [
        Column("tokens_per_second", "target tokens/s", ",.0f"),
        Column("padding", "padding", ".1%"),
        Column("tokens_per_update", "tokens an update", ",.0f"),
        Column("parameters", "parameters, M", ",.2f", 1e-6),
        Column("seconds_to_first_update", "first update, s", ".1f"),
        Column("peak_bytes", "memory, GiB", ".2f", 1 / GIB),
    ],
    "translate": [
        *(Column(f"sentences_per_second_beam_{b}", f"beam {b}, sentences/s", ",.1f") for b in BEAMS),
        Column("seconds_to_ready", "start-up, s", ".1f"),
        Column("peak_bytes", "memory, GiB", ".2f", 1 / GIB),
    ],
}
TITLES = {"train": "training", "translate": "translation"}


def speeds(task: str) -> list[str]:
    """Keys of the numbers that are rates: they get a range and a ratio."""
    return [column.key for column in COLUMNS[task] if "per_second" in column.key]


def tables(trials: Sequence[Trial], systems: Sequence[str]) -> str:
    """A table for each shape and task, in the order of the trials."""
    kinds = dict.fromkeys((trial.shape, trial.task) for trial in trials)
    return "\n\n".join("\n".join(table(trials, systems, shape, task)) for shape, task in kinds)


def table(trials: Sequence[Trial], systems: Sequence[str], shape: str, task: str) -> Iterator[str]:
    here = {
        name: [t for t in trials if (t.shape, t.task, t.system) == (shape, task, name)] for name in systems
    }
    first = next(iter(here))
    head = ["system"]
    for column in COLUMNS[task]:
        head += [column.title, f"{first} x"] if column.key in speeds(task) else [column.title]
    yield f"### {shape}, {TITLES[task]}\n"
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for name, own in here.items():
        if own:
            yield "| " + " | ".join([f"`{name}`", *cells(own, here[first], task, len(head) - 1)]) + " |"


def cells(own: Sequence[Trial], first: Sequence[Trial], task: str, width: int) -> list[str]:
    if failures := [trial.failure for trial in own if trial.failure]:
        return [f"could not be run: {failures[0].replace('|', '/')}", *[""] * (width - 1)]
    row = []
    for column in COLUMNS[task]:
        values = [trial.found[column.key] * column.scale for trial in own]
        shown = format(statistics.median(values), column.form)
        if column.key not in speeds(task):
            row.append(shown)
            continue
        if len(values) > 1:
            shown += f" ({min(values):{column.form}} to {max(values):{column.form}})"
        row += [shown, ratio(own, first, column.key)]
    return row


def ratio(own: Sequence[Trial], first: Sequence[Trial], key: str) -> str:
    """How many times as fast the first system is, over the rounds both have."""
    theirs = {trial.round: trial.found[key] for trial in first if not trial.failure}
    ratios = [theirs[trial.round] / trial.found[key] for trial in own if trial.round in theirs]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def facts(command: str, threads: int, rounds: int, updates: int) -> dict[str, Any]:
    """What the figures depend on besides the systems."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return {
        "command": command,
        "date": str(date.today()),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown",
        "machine": platform.machine(),
        "processor": processor(),
        "python": platform.python_version(),
        "torch": TORCH.partition("==")[2],
        "threads": threads,
        "rounds": rounds,
        "updates": updates,
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (named or [platform.processor() or "unknown"])[0]


PAGE = """# Beside the peers

    {command}

The same Multi30k text (English to German) in the same pieces, the same shape, about as many target tokens an
update, one process at a time. Medians over the rounds, every second one in reverse order; least and most in
brackets.

{processor} ({machine}), Python {python}, torch {torch}, commit {commit}, {date}; rounds: {rounds},
threads: {threads}.

{shapes}

{tables}

## What is measured

{meaning}

## How each system was run

{systems}
"""


def page(trials: Sequence[Trial], systems: Sequence[str], known: dict[str, Any]) -> str:
    """A page that tells what was measured, and how."""
    meaning = ast.get_docstring(ast.parse(Path(__file__).read_text(encoding="utf-8"))) or ""
    used = dict.fromkeys(trial.shape for trial in trials)
    return PAGE.format(
        **known,
        shapes="\n".join(f"- {describe(name, known['updates'])}" for name in used),
        tables=tables(trials, systems),
        meaning=meaning.partition("\n\n")[2],
        systems="\n\n".join(how(name) for name in systems),
    )


def describe(name: str, updates: int) -> str:
    shape = SHAPES[name]
    return (
        f"`{name}`: width {shape.d_model}, feed-forward {shape.d_ff}, {shape.heads} heads, {shape.layers} +"
        f" {shape.layers} layers, {shape.vocabulary:,} pieces; {updates or shape.timed} timed updates"
    )


def how(name: str) -> str:
    """A system's version and wiring, and what its adapter's first lines say."""
    system = SYSTEMS[name]
    file = Path(__file__).with_name(f"{system.module}.py")
    told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    version = ", ".join(filter(None, (system.version, system.wiring, system.variant)))
    return f"`{name}` ({version}). {' '.join(told.split())}"

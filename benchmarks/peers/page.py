"""What was measured, as a page: the facts of each run, the tables, and what they mean."""

from __future__ import annotations

import ast
import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from . import report
from .environments import ROOT, TORCH
from .report import Trial, summary, tables
from .shapes import SHAPES
from .systems import SYSTEMS


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


def saved(files: Sequence[Path]) -> tuple[list[Trial], list[dict[str, Any]]]:
    """Trials of several runs, and what each depends on; rounds of one file are not those of another.

    Raises OSError, and ValueError for a file that `--json` did not write.
    """
    trials: list[Trial] = []
    known: list[dict[str, Any]] = []
    for file in files:
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
            found = [Trial(**trial) for trial in run.pop("trials")]
            passed = sum(before["rounds"] for before in known)
            trials += [trial._replace(round=passed + trial.round) for trial in found]
            FACTS.format(**run)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(f"{file}: not what --json writes") from None
        known.append(run)
    return trials, known


FACTS = """    {command}

{processor} ({machine}), Python {python}, torch {torch}, commit {commit}, {date}; rounds: {rounds},
threads: {threads}."""

PAGE = """# Beside the peers

{facts}

The same Multi30k text (English to German) in the same pieces, the same shape, about as many target tokens an
update, one process at a time. Medians over the rounds, every second one in reverse order; least and most in
brackets.

{shapes}

{tables}

## What is measured

{meaning}

## How each system was run

{systems}
"""


def page(trials: Sequence[Trial], systems: Sequence[str], known: Sequence[dict[str, Any]]) -> str:
    """A page that tells what was measured, and how; `known` are the facts of each run."""
    meaning = report.__doc__ or ""
    measured = {trial.system for trial in trials}
    modules = dict.fromkeys(SYSTEMS[name].module for name in systems if name in measured)
    return PAGE.format(
        facts="\n\n".join(FACTS.format(**each) for each in known),
        shapes="\n".join(f"- {describe(name, trials)}" for name in dict.fromkeys(t.shape for t in trials)),
        tables="\n\n".join(filter(None, (summary(trials, systems), tables(trials, systems)))),
        meaning=meaning.partition("\n\n")[2],
        systems="\n\n".join(
            how(module, [name for name in systems if name in measured]) for module in modules
        ),
    )


def describe(name: str, trials: Sequence[Trial]) -> str:
    """A shape, and how many updates were timed in it."""
    shape = SHAPES[name]
    timed = {t.found["updates_timed"] for t in trials if t.shape == name and "updates_timed" in t.found}
    return (
        f"`{name}`: width {shape.d_model}, feed-forward {shape.d_ff}, {shape.heads} heads, {shape.layers} +"
        f" {shape.layers} layers, {shape.vocabulary:,} pieces"
        + (f"; {' or '.join(map(str, sorted(timed)))} timed updates" if timed else "")
    )


def how(module: str, systems: Sequence[str]) -> str:
    """Version, wiring and variant of the systems an adapter runs, and what its first lines say."""
    own = [(name, SYSTEMS[name]) for name in systems if SYSTEMS[name].module == module]
    named = [
        f"`{name}` ({', '.join(filter(None, (system.version, system.wiring, system.variant)))})"
        for name, system in own
    ]
    file = Path(__file__).with_name(f"{module}.py")
    told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return f"{', '.join(named)}. {' '.join(told.split())}"

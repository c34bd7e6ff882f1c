"""How long a study will take: from its finished cells, or from timing a few updates."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.rundir import METRICS
from .cells import FINISHED, Cell, State, flat, read_result
from .runner import Slots, command_of, environment, threads_of

WARM, TIMED = 2, 8  # the updates between these are timed
# A timing trains for a few updates, at no particular rate, and measures nothing.
TIMING: Mapping[str, Any] = {
    "train.updates": TIMED,
    "train.epochs": None,
    "train.minutes": None,
    "train.warmup": 0,
    "train.schedule": "constant",
    "train.validate_every": 10 * TIMED,
    "train.validate_bleu": False,
    "train.metric": "loss",
    "train.average": 0,
    "train.log_every": WARM,
    "data.test": {},
}
# What the time of an update hangs on, much more than on the rest.
SHAPE = ("model.encoder_layers", "model.decoder_layers", "model.d_model", "model.d_ff", "train.batch_tokens")


@dataclass(frozen=True)
class Timing:
    """Seconds of an update, and of what a training does before the first and after the last one."""

    update: float
    around: float


@dataclass(frozen=True)
class Estimate:
    """Seconds that are left, one cell after the other, and how that is known."""

    seconds: float | None
    updates: int | None
    how: str

    def text(self, places: int, cells: int) -> str:
        """`9 cells to run, 9,000 updates: about 2 h 10 min, 2 at a time`, and how it was obtained."""
        updates = f", {self.updates:,} updates" if self.updates is not None else ""
        head = f"{cells} cells to run{updates}"
        if not cells or self.seconds is None:
            return f"{head}; no estimate: {self.how}" if cells else "nothing to run"
        beside = f", {places} at a time" if places > 1 else ""
        return f"{head}: about {duration(self.seconds / min(places, cells))}{beside}\n{self.how}"


def estimate(cells: Sequence[Cell], known: Mapping[str, State], slots: Slots) -> Estimate:
    """The time of the cells that are not finished, as if each began anew.

    Where cells of the same shape are finished, their seconds per update count; otherwise one cell of
    each shape is timed, alone, in a temporary directory. One is timed in any case, for what goes on around
    the updates.
    """
    left = [cell for cell in cells if known[cell.name] not in FINISHED]
    updates = [int(flat_of(cell).get("train.updates") or 0) for cell in left]
    total = sum(updates) if all(updates) else None
    if not left or total is None:
        return Estimate(None, total, "no number of updates is set (train.updates)")
    measured: dict[tuple[Any, ...], list[float]] = {}
    for cell in cells:
        result = read_result(cell.run_dir) if known[cell.name] == "completed" else {}
        if result.get("updates") and result.get("seconds"):
            measured.setdefault(shape(cell), []).append(result["seconds"] / result["updates"])
    rates = {key: sum(values) / len(values) for key, values in measured.items()}
    words = []
    if finished := sum(map(len, measured.values())):
        mean = sum(sum(values) for values in measured.values()) / finished
        words.append(f"{mean:.3g} s an update in {finished} finished cells, validation counted")
    else:
        timed(left[0], slots)  # prepares the data, which only the first cell has to do
    around: list[float] = []
    for cell in left:
        if around and shape(cell) in rates:
            continue
        timing = timed(cell, slots)
        if isinstance(timing, str):
            return Estimate(None, total, timing)
        around.append(timing.around)
        if shape(cell) not in rates:
            rates[shape(cell)] = timing.update
            words.append(
                f"{timing.update:.3g} s an update, timed over {TIMED - WARM} updates of {cell.name}, alone"
                f" and without validation (threads: {threads_of(cell, slots.threads)})"
            )
    mean = sum(around) / len(around)
    words.append(f"{mean:.3g} s for each cell to start and to end")
    words.append("the translation of the test sets is not counted")
    seconds = sum(mean + rates[shape(cell)] * count for cell, count in zip(left, updates, strict=True))
    return Estimate(seconds, total, "\n".join(words))


def timed(cell: Cell, slots: Slots) -> Timing | str:
    """What a few updates of a cell take, or why there is no number."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        overrides = {**cell.overrides, **TIMING}
        short = Cell(cell.name, overrides, run_dir, cell.seed, cell.values, cell.base, cell.config)
        done = subprocess.run(
            command_of(short, False, slots.devices[0], slots.threads),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment(threads_of(short, slots.threads)),
            check=False,
        )
        metrics = run_dir / METRICS
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
        at = {r["update"]: r["seconds"] for r in map(json.loads, lines) if "seconds" in r}
        if WARM not in at or TIMED not in at:
            said = done.stderr.strip().splitlines()
            return f"the timing of {cell.name} failed: {said[-1] if said else f'code {done.returncode}'}"
        update = float(at[TIMED] - at[WARM]) / (TIMED - WARM)
        return Timing(update, max(0.0, time.monotonic() - begun - TIMED * update))


def shape(cell: Cell) -> tuple[Any, ...]:
    """What the time of an update hangs on most."""
    return tuple(flat_of(cell).get(key) for key in SHAPE)


def flat_of(cell: Cell) -> dict[str, Any]:
    """The cell's resolved options, dotted."""
    return {} if cell.config is None else flat(cell.config.model_dump(mode="json"))


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"

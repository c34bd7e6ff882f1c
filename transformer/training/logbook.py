"""One write, four readers: a person at the console, log.txt, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..core.disk import not_through_a_link, regular
from ..core.errors import CheckpointError
from ..core.holding import require_held
from ..core.rundir import LOG, METRICS, TENSORBOARD
from .monitor import Reading

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD_NAMES = {
    "loss": "train/loss",
    "nll": "train/nll",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "tokens_per_second": "train/tokens_per_second",
}


class Logbook:
    """Writes what happens in a run to its directory and to stderr.

    On a terminal there is a progress bar and lines are printed above it; elsewhere there are plain lines.
    A console that goes away (a closed pipe, a full disk behind it) ends its part, and nothing else.
    `tensorboard=False` leaves the event files out.
    """

    def __init__(self, run_dir: Path, *, tensorboard: bool = True, quiet: bool = False) -> None:
        self.run_dir = run_dir
        self.quiet = quiet
        self.tensorboard = tensorboard
        self.bar: tqdm[Any] | None = None
        self.events: SummaryWriter | None = None
        run_dir.mkdir(parents=True, exist_ok=True)
        self.metrics_path = run_dir / METRICS

    def open(self, update: int = 0, total: int | None = None, position: int = 0) -> None:
        """Begin, or go on after `update`: what stands past byte `position` of metrics.jsonl is dropped."""
        if self.metrics_path.exists() and self.metrics_path.stat().st_size > position:
            _cut(self.metrics_path, position)
        if self.tensorboard:
            try:
                self.events = _summary_writer(self.run_dir / TENSORBOARD, update)
            except (OSError, ImportError) as error:
                self._undrawn(error)
        self._show(lambda: self._open_bar(update, total))

    def _open_bar(self, update: int, total: int | None) -> None:
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=update, unit="update", dynamic_ncols=True, smoothing=0.05)

    def close(self) -> None:
        if self.bar is not None:
            self._show(self.bar.close)
            self.bar = None
        if (events := self.events) is not None:
            self._draw(lambda _: events.close())
            self.events = None

    def position(self) -> int:
        """Bytes of metrics.jsonl so far, which are on the disk afterwards.

        CheckpointError where it cannot be read, or is no regular file.
        """
        try:
            with open(self.metrics_path, "rb", opener=regular) as file:
                os.fsync(file.fileno())
                return os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise CheckpointError(f"{self.metrics_path}: cannot be read ({error.strerror})") from error

    def say(self, text: str) -> None:
        """A line for people: log.txt and console."""
        self._write(text)
        if self.bar is not None:
            self._show(lambda: tqdm.write(text, file=sys.stderr))
        else:
            self._show(lambda: print(text, file=sys.stderr, flush=True))

    def remark(self, text: str) -> None:
        """A line about this process, of several."""
        self.say(text)

    def tick(self, update: int) -> None:
        """Move the progress bar."""
        if (bar := self.bar) is not None:
            self._show(lambda: bar.update(update - bar.n))

    def _write(self, text: str) -> None:
        append(self.run_dir / LOG, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def _draw(self, write: Callable[[SummaryWriter], object]) -> None:
        """Write to TensorBoard's events. Once they cannot be written the run goes on without them."""
        if self.events is None:
            return
        try:
            write(self.events)
        except (OSError, MemoryError) as error:  # its writer's thread hands its own on
            self._undrawn(error)

    def _undrawn(self, error: OSError | MemoryError | ImportError) -> None:
        self.events = None
        with suppress(CheckpointError):  # the disk is full, say, which the next write tells
            self.say(f"TensorBoard's events cannot be written ({error}); the run goes on without them")

    def _show(self, write: Callable[[], object]) -> None:
        """Write to the console. Once that is gone it is left alone: the run goes on without it."""
        if self.quiet:
            return
        try:
            write()
        except (OSError, ValueError) as error:
            self.quiet = True
            if self.bar is not None:
                self.bar.disable, self.bar = True, None
            self._write(f"the console cannot be written ({error}); only this file tells what happens")

    def record(self, update: int, values: Mapping[str, float | int], text: str) -> None:
        """Numbers of one update: a line for people, an object in metrics.jsonl, points in TensorBoard.

        JSON has no NaN: what is not finite is null.
        """
        self.say(text)
        finite = {name: _finite(value) for name, value in values.items()}
        self._measured(update, finite)
        for name, value in finite.items():
            tag = TENSORBOARD_NAMES.get(name, f"valid/{name[6:]}" if name.startswith("valid_") else None)
            if tag is not None and value is not None:
                self._draw(partial(_scalar, tag, value, update))

    def _measured(self, update: int, values: Mapping[str, Any]) -> None:
        append(self.metrics_path, json.dumps({"update": update, **values}, allow_nan=False) + "\n")

    def probe(self, update: int, reading: Reading) -> None:
        """What the layers look like from within: an object under `probe`, and a curve for each number."""
        finite = {
            stack: {name: [_finite(value) for value in values] for name, values in names.items()}
            for stack, names in reading.items()
        }
        self._measured(update, {"probe": finite})
        if self.events is None:
            return
        for stack, names in finite.items():
            for name, values in names.items():
                for layer, value in enumerate(values, start=1):
                    if value is not None:
                        self._draw(partial(_scalar, f"probe_{name}/{stack}_{layer}", value, update))

    def training(self, update: int, values: Mapping[str, float]) -> None:
        """The means over the updates since the last such line."""
        text = "update {update:,}  epoch {epoch}  loss {loss:.4f}  nll {nll:.4f}  lr {learning_rate:.3g}"
        text += "  norm {gradient_norm:.3g}  {tokens_per_second:,.0f} tokens/s"
        self.record(update, values, text.format(update=update, **values))

    def validation(
        self, update: int, metrics: Mapping[str, float], averaged: int = 0, samples: str = ""
    ) -> None:
        """A validation, of the mean of `averaged` checkpoints if not 0; samples go to TensorBoard as text."""
        values = {f"valid_{name}": value for name, value in metrics.items()}
        text = f"update {update:,}  validation  " + "  ".join(f"{n} {v:.4g}" for n, v in metrics.items())
        if averaged:
            values, text = {**values, "averaged": averaged}, f"{text}  (average of {averaged})"
        self.record(update, values, text)
        if samples:
            self._draw(lambda events: events.add_text("valid/samples", samples, update))


def append(path: Path, text: str) -> None:
    """Add text to a file; CheckpointError where that fails, and then no half of it stays."""
    require_held(path)
    try:
        size = path.stat().st_size if path.exists() else 0
        with open(path, "a", encoding="utf-8", errors="backslashreplace", opener=not_through_a_link) as file:
            file.write(text)
    except OSError as error:
        with suppress(CheckpointError):
            _cut(path, size)
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


def _cut(path: Path, size: int) -> None:
    """Drop what stands past byte `size`; CheckpointError where that fails."""
    try:
        with open(path, "r+b", opener=not_through_a_link) as file:
            file.truncate(size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be cut ({error.strerror})") from error


def _scalar(tag: str, value: float, update: int, events: SummaryWriter) -> None:
    events.add_scalar(tag, value, update)


class Mute(Logbook):
    """Of the ranks that are not the first: it writes nothing, and knows where the first one writes."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.metrics_path = run_dir, run_dir / METRICS

    def open(self, update: int = 0, total: int | None = None, position: int = 0) -> None: ...

    def close(self) -> None: ...

    def say(self, text: str) -> None: ...

    def remark(self, text: str) -> None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)

    def tick(self, update: int) -> None: ...

    def record(self, update: int, values: Mapping[str, float | int], text: str) -> None: ...

    def probe(self, update: int, reading: Reading) -> None: ...

    def validation(
        self, update: int, metrics: Mapping[str, float], averaged: int = 0, samples: str = ""
    ) -> None: ...


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _summary_writer(directory: Path, update: int) -> SummaryWriter:
    # Imported here: it takes a second, and its own dependencies warn about themselves.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as error:  # what a package raises that does not fit the others is nowhere promised
            raise ImportError(f"{type(error).__name__}: {error}") from error
        begun = directory.is_dir() and any(directory.iterdir())
        return SummaryWriter(str(directory), purge_step=update + 1 if begun else None)

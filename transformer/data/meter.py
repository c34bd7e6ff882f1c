"""How far long work has come: a bar on a terminal, and elsewhere now and then a line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tqdm import tqdm

_SECONDS = 30.0  # between lines


class Meter:
    """`with Meter("encoding train", 5_000_000, "pairs", log) as meter: meter.add(10_000)`.

    `done` of the total were there before. Work that takes longer than one interval ends with a line that
    says how long it took.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        log: Callable[[str], None],
        *,
        done: int = 0,
        seconds: float = _SECONDS,
    ) -> None:
        self._what, self._total, self._unit, self._log, self._every = what, total, unit, log, seconds
        self._first = self._done = done
        self._began = self._told = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=done, desc=what, unit=f" {unit}", unit_scale=True, leave=False, delay=1.0
            )

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            with suppress(OSError, ValueError):  # the console is gone
                self._bar.close()
        took = time.monotonic() - self._began
        if kind is None and took >= self._every:
            self._log(
                f"{self._what}: {self._done:,} {self._unit} in {took:.0f} s, {self._rate(took):,.0f} a second"
            )

    def _rate(self, took: float) -> float:
        return (self._done - self._first) / max(took, 1e-9)

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.update(count)
        elif now - self._told >= self._every and self._done < self._total:
            self._told = now
            rate = self._rate(now - self._began)
            left = (self._total - self._done) / max(rate, 1e-9)
            self._log(
                f"{self._what}: {self._done:,} of {self._total:,} {self._unit} "
                f"({100 * self._done / self._total:.0f} %), {rate:,.0f} a second, {_duration(left)} left"
            )


def _duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

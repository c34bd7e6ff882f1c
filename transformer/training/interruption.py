"""Signals as a request: what is under way is finished or broken off, and the state is saved."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar

from .launch import supervised
from .ranks import ALONE, Ranks

LISTEN = 0.5  # seconds between two looks for a signal of another rank
# Seconds in which another signal than SIGINT, and under torchrun any, is the first one come another way:
# who signals a whole job reaches a rank directly and through torchrun, which passes its own on.
ECHO = 5.0
CARRIER = signal.SIGURG  # one that means nothing to a process by default


class Interrupted(BaseException):
    """A signal has broken off what may be broken off (`Interruption.breaking`)."""


class Interruption:
    """A context in which a first SIGINT, SIGTERM or SIGHUP only raises a flag; a second acts as before.

    A second SIGTERM or SIGHUP within `ECHO` seconds does not count, under torchrun no signal within them.

    A signal that was ignored before, as a shell sets SIGINT for what it starts in the background, does on the
    second time what it does by default, since that is what is announced; a SIGHUP that was, as by `nohup`,
    stays ignored. `name` is the signal's name once there was one. The chief of several `ranks` hears of
    theirs at each vote (`heard`), and while they wait for it in `breaking`. Outside the main thread, where
    Python delivers no signals, it does nothing.
    """

    DEFAULTS: ClassVar[dict[signal.Signals, Any]] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }

    def __init__(
        self, meanwhile: str = "finishing these passes", ranks: Ranks = ALONE, begins: bool = True
    ) -> None:
        """`meanwhile`: what a signal does not break off, in words. `begins`: at once, else with `begin`.

        Entered again, by `Trainer.fit`, it begins at the latest.
        """
        self.name, self.ranks, self.meanwhile = "", ranks, meanwhile
        self._begins, self._entered = begins, 0
        self._breaks = ""
        self._before: dict[signal.Signals, Any] = {}
        self._at: float | None = None  # when the first one came

    def join(self, ranks: Ranks) -> None:
        """From now on this is one of `ranks`, whose chief hears as well of a signal that came before."""
        self.ranks = ranks
        if self.name:
            ranks.tell(self.name)

    def heard(self, ranks: Ranks) -> str:
        """The name of a signal that any rank has got so far; empty while there is none. Collective."""
        (number,) = ranks.largest(signal.Signals[self.name] if self.name else 0)
        if number:
            self.name = signal.Signals(number).name
        return self.name if number else ""

    def __enter__(self) -> Interruption:
        self._entered += 1
        if self._begins or self._entered > 1:
            self.begin()
        return self

    def begin(self) -> None:
        """From now on, if not before, signals are requests, until the outermost context is left."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for number in self.DEFAULTS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        self._entered -= 1
        if self._entered:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextmanager
    def breaking(self, what: str = "the validation") -> Iterator[None]:
        """A context that a signal, also one that came before it, leaves at once by raising `Interrupted`."""
        self._breaks = what
        with self._listening():
            try:
                if self.name:
                    raise Interrupted
                yield
            finally:
                self._breaks = ""

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """A context in which the chief takes a signal that another rank tells of as one of its own.

        It comes to the main thread as CARRIER, which Python only says to have come: another of the signals
        themselves, after the first one, would stop at once.
        """
        main = threading.current_thread() is threading.main_thread()
        if self.ranks.size == 1 or not main:
            yield
            return
        over, words = threading.Event(), list[str]()

        def listen() -> None:
            while not (words or over.wait(LISTEN)):
                words.extend(filter(None, [self.ranks.told()]))
            if words:
                _thread.interrupt_main(CARRIER)

        def hear(number: int, frame: FrameType | None) -> None:
            if words and not self.name:
                self._handle(signal.Signals[words[0]], frame)

        before = signal.signal(CARRIER, hear)
        listener = threading.Thread(target=listen, name="signals of other ranks", daemon=True)
        listener.start()
        try:
            yield
        finally:
            over.set()
            listener.join(LISTEN)  # not for ever: the store may be on a machine that is gone
            signal.signal(CARRIER, signal.SIG_DFL if before is None else before)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._at is not None and number in self._before:
            if time.monotonic() - self._at >= _echo(number):
                self._act(number)
            return
        self._at = time.monotonic()
        self.name = signal.Signals(number).name
        self.ranks.tell(self.name)
        what = f"breaking off {self._breaks}" if self._breaks else self.meanwhile
        later = f" after {_echo(number):.0f} seconds" if _echo(number) else ""
        # The bare descriptor: a handler may run while the log or the progress bar is being written.
        with suppress(OSError):  # nobody need be listening
            os.write(2, f"\n{self.name}: {what}, then saving; once more{later} stops at once\n".encode())
        if self._breaks:
            self._breaks = ""
            raise Interrupted

    def _act(self, number: int) -> None:
        """Do with a second signal what was done before, and without a flag in the way of a third."""
        for each, before in self._before.items():
            signal.signal(each, self.DEFAULTS[each] if before == signal.SIG_IGN else before)
        signal.raise_signal(number)


def _echo(number: int) -> float:
    """Seconds after a first signal in which another of this number is the same."""
    return 0.0 if number == signal.SIGINT and not supervised() else ECHO

"""Ctrl-C where Python itself would answer with a traceback, or a process with one that is not its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def end_quietly() -> None:
    """From here on Ctrl-C ends this process at once and in silence, until a command takes it up.

    For programs, before they import anything heavy. Who has it ignored, as a shell for what it starts in the
    background, keeps that.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def held(*numbers: signal.Signals) -> Iterator[None]:
    """Processes started meanwhile never see these signals; here they come afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deadly() -> Iterator[None]:
    """A context in which signals that would raise KeyboardInterrupt end the process at once, without a word.

    For calls of a library that may wait for long: Python hears no signal before they return. Who has made of
    signals something else than KeyboardInterrupt keeps that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is signal.default_int_handler
    ]
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.default_int_handler)

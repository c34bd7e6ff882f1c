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
def hangup_interrupts() -> Iterator[None]:
    """A context in which SIGHUP raises KeyboardInterrupt, unless it is ignored or has a handler."""
    number = getattr(signal, "SIGHUP", None)  # not every system has it
    main = threading.current_thread() is threading.main_thread()
    if number is None or not main or signal.getsignal(number) != signal.SIG_DFL:
        yield
        return
    signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)

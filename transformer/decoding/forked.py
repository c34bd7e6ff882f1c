"""Several batches at a time by forked processes: threads of one interpreter wait for each other.

A search is thousands of short operators, and after each its thread needs the interpreter again. A forked
process has its own, begins at once and shares the parameters. It is for programs that do little else, as
translate.py: a process that is forked while other threads hold locks may wait for these forever, and those
that end hold some of MKL's. So few batches are for few processes, not for threads, after which a larger
chunk would be forked. Whoever forks a process of his own after torch has worked, a daemon say, gives it one
thread: torch's are not forked.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait

import torch

from ..core.signals import held
from .answers import answer_of, receive, send
from .config import DecodeConfig
from .engine import Models, Request
from .hypothesis import Hypothesis

Found = list[list[Hypothesis]]


class ForkedModels(Models):
    """`Models` whose `search_all`, on Linux and a CPU, has one process of one thread for each torch has.

    There are no more of them than batches; a single batch is searched here, on all threads. Processes live as
    long as `working`, so that they have the weights of that time. Raises what searching raises, and
    WorkerLost when a process is killed.
    """

    _workers: list[_Worker]

    @contextmanager
    def working(self) -> Iterator[None]:
        self._workers = []
        with super().working():
            try:
                yield
            finally:
                if self._workers:
                    with held(*_SIGNALS):
                        for worker in self._workers:
                            worker.end()

    def search_all(self, batches: Sequence[Sequence[Request]], config: DecodeConfig) -> list[Found]:
        processes = min(torch.get_num_threads(), len(batches))
        forks = sys.platform == "linux" and not multiprocessing.current_process().daemon
        if not (self._packed and forks and processes > 1):
            return super().search_all(batches, config)
        if sys.stdout is not None:
            sys.stdout.flush()  # what is wrong with it is not the fork's fault
        with suppress(OSError), held(*_SIGNALS):  # no more processes: those that are there do it
            while len(self._workers) < processes:
                self._workers.append(_Worker(self, self._workers))
        if not self._workers:
            return super().search_all(batches, config)
        return _share(batches, config, self._workers)


def _share(
    batches: Sequence[Sequence[Request]], config: DecodeConfig, workers: Sequence[_Worker]
) -> list[Found]:
    """Each batch goes, in order, to the first worker that is free."""
    found: dict[int, Found] = {}
    busy: dict[Connection, tuple[_Worker, int]] = {}
    free = list(workers)
    for number, batch in enumerate(batches):
        if not free:
            free += _answered(busy, found)
        worker = free.pop()
        worker.ask((batch, config))
        busy[worker.pipe] = worker, number
    while busy:
        _answered(busy, found)
    return [found[number] for number in range(len(batches))]


def _answered(busy: dict[Connection, tuple[_Worker, int]], found: dict[int, Found]) -> list[_Worker]:
    """Wait for at least one worker, and take its answer."""
    freed = []
    for pipe in wait(list(busy)):
        worker, number = busy.pop(pipe)  # type: ignore[call-overload]
        found[number] = worker.answer()
        freed.append(worker)
    return freed


class _Worker:
    """A forked process and the pipe to it: one question at a time."""

    def __init__(self, models: Models, others: Sequence[_Worker]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        ours = [self.pipe, *(other.pipe for other in others)]
        self.process = context.Process(target=_serve, args=(theirs, ours, models), daemon=True)
        self.process.start()
        theirs.close()  # else the pipe would stay open when the process dies

    def ask(self, question: object) -> None:
        send(self.process, self.pipe, question, _UNTIL, _REMEDY)

    def answer(self) -> Found:
        return receive(self.process, self.pipe, _UNTIL, _REMEDY)  # type: ignore[no-any-return]

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


_UNTIL, _REMEDY = "before it had answered its lines, of which nothing is written", "--threads"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _serve(pipe: Connection, inherited: Sequence[Connection], models: Models) -> None:
    """Answer questions until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that writes; it ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    for other in inherited:  # open here, they would keep others waiting when that process dies
        other.close()
    torch.set_num_threads(1)  # also: torch's threads were not forked, and nobody may wait for them
    while True:
        try:
            batch, config = pipe.recv()
            pipe.send(answer_of(partial(models.search, batch, config)))
        except (EOFError, OSError):
            os._exit(0)  # nobody is there any more
        except MemoryError:  # of the pipe: who asked tells that this process is gone
            os._exit(1)

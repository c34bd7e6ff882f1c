"""Several batches at a time by forked processes: threads of one interpreter wait for each other.

A search is thousands of short operators, and after each its thread needs the interpreter again. A forked
process has its own, begins at once and shares the parameters. It is for programs that do little else, as
translate.py: a process that is forked while other threads hold locks may wait for these forever. Whoever
forks a process of his own after torch has worked, a daemon say, gives it one thread: torch's are not forked.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ..core.errors import UserError, is_out_of_memory
from .config import DecodeConfig
from .engine import Models, Request
from .hypothesis import Hypothesis

Found = list[list[Hypothesis]]


class WorkerLost(UserError):
    """A process ended before it had answered."""


class ForkedModels(Models):
    """`Models` whose `search_all`, on Linux and a CPU, has one process of one thread for each torch has.

    They live as long as `working`, so that they have the weights of that time. Raises what searching raises,
    and WorkerLost when a process is killed.
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
                    with _signals_held():
                        for worker in self._workers:
                            worker.end()

    def search_all(self, batches: Sequence[Sequence[Request]], config: DecodeConfig) -> list[Found]:
        processes = torch.get_num_threads()
        forks = sys.platform == "linux" and not multiprocessing.current_process().daemon
        if not (self._packed and forks and 1 < processes <= len(batches)):
            return super().search_all(batches, config)
        if sys.stdout is not None:
            sys.stdout.flush()  # what is wrong with it is not the fork's fault
        with suppress(OSError), _signals_held():  # no more processes: those that are there do it
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

    def ask(self, question: Any) -> None:
        try:
            self.pipe.send(question)
        except OSError as error:
            raise self._lost() from error

    def answer(self) -> Found:
        try:
            done, value = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if done:
            return value  # type: ignore[no-any-return]
        if isinstance(value, Exception):
            raise value
        raise RuntimeError(f"in a process of its own:\n{value}")

    def _lost(self) -> WorkerLost:
        self.process.join(5)
        code = self.process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
        return WorkerLost(
            f"translating process {self.process.pid} ended {how} with lines unanswered, of which nothing is"
            " written; if memory ran out, give fewer --threads or a smaller --batch-tokens"
        )

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait, until a forked process has handlers of its own and all are known here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, held: Sequence[Connection], models: Models) -> None:
    """Answer questions until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that writes; it ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    for other in held:  # inherited; open here, they would keep others waiting when that process dies
        other.close()
    torch.set_num_threads(1)  # also: torch's threads were not forked, and nobody may wait for them
    while True:
        try:
            batch, config = pipe.recv()
            pipe.send(_found(models, batch, config))
        except (EOFError, OSError):
            os._exit(0)  # nobody is there any more
        except MemoryError:  # of the pipe: who asked tells that this process is gone
            os._exit(1)


def _found(models: Models, batch: Sequence[Request], config: DecodeConfig) -> tuple[bool, object]:
    """What is found, or why nothing is."""
    try:
        return True, models.search(batch, config)
    except UserError as error:
        return False, error
    except Exception as error:
        if is_out_of_memory(error):
            return False, MemoryError(str(error) or "in a process of its own")
        return False, traceback.format_exc()

"""Translation by several processes, each with models of its own: for several devices, or very many cores.

Lines are cut into the chunks of one process, so batches, and with them translations, are the same. A chunk
goes to whichever process is free; answers are given in the order of the lines. At most twice as many chunks
as there are processes are under way, so memory does not grow with the input.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Literal

import torch

from ..core.errors import UserError
from ..core.signals import held
from .answers import WorkerLost, answer_of, receive, send
from .config import DecodeConfig
from .translation import Score, Translation
from .translator import Chunk, LineTranslator, chunks, paired

Build = Callable[[], LineTranslator]
Method = Literal["translate_chunk", "score_chunk"]

AHEAD = 2  # chunks under way for each process


class SpreadTranslator:
    """What `LineTranslator` offers, by one process for each of `builds`, which make its translator there.

    To be used as a context; the processes end with it. Raises what building a translator raises, what
    translating raises, and WorkerLost when a process is killed: never is a line left out.
    """

    def __init__(self, builds: Sequence[Build], config: DecodeConfig, threads: int = 0) -> None:
        """`threads`: of each process; 0 shares out what torch takes for one."""
        self.config = config
        each = threads or max(1, torch.get_num_threads() // len(builds))
        self.workers = [_Worker(build, each) for build in builds]
        self.pool = ThreadPoolExecutor(len(builds))
        self.free: SimpleQueue[_Worker] = SimpleQueue()

    def __enter__(self) -> SpreadTranslator:
        try:
            for worker in self.workers:
                worker.answer("while it loaded its models")  # that it is ready
                self.free.put(worker)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.end()
        self.pool.shutdown(cancel_futures=True)

    def translate(self, lines: Iterable[str], prefixes: Iterable[str] | None = None) -> Iterator[Translation]:
        """As `LineTranslator.translate`."""
        return self._answers("translate_chunk", chunks(paired(lines, prefixes), self.config.chunk_lines))

    def score(self, sources: Iterable[str], targets: Iterable[str]) -> Iterator[Score]:
        """As `LineTranslator.score`."""
        pairs = paired(sources, targets, "sources", "targets")
        return self._answers("score_chunk", chunks(pairs, self.config.chunk_lines))

    def _answers(self, method: Method, parts: Iterable[Chunk]) -> Iterator[Any]:
        waiting: deque[Future[list[Any]]] = deque()
        # With chunks of one line somebody waits for each answer.
        ahead = 1 if self.config.chunk_lines == 1 else AHEAD * len(self.workers)
        failure: UserError | None = None
        try:
            for chunk in parts:
                waiting.append(self.pool.submit(self._ask, method, chunk))
                if len(waiting) >= ahead:
                    yield from waiting.popleft().result()
        except WorkerLost:
            raise
        except UserError as error:  # of what is read: the lines before it are answered first
            failure = error
        while waiting:
            yield from waiting.popleft().result()
        if failure is not None:
            raise failure

    def _ask(self, method: Method, chunk: Chunk) -> list[Any]:
        worker = self.free.get()
        try:
            answers: list[Any] = worker.ask(method, chunk)
        finally:
            self.free.put(worker)
        assert len(answers) == len(chunk)
        return answers


class _Worker:
    """A process and the pipe to it: one question at a time."""

    def __init__(self, build: Build, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share CUDA's state, which it cannot
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, threads), daemon=True)
        resource_tracker.ensure_running()  # starting it would let through the signal that is held
        with held(signal.SIGINT):  # Ctrl-C is for the process that writes; it ends this one
            self.process.start()
        theirs.close()  # else the pipe would stay open when the process dies

    def ask(self, method: Method, chunk: Chunk) -> Any:
        first, last = chunk[0][0] + 1, chunk[-1][0] + 1
        what = f"before it had answered lines {first} to {last}, of which nothing is written"
        send(self.process, self.pipe, (method, chunk), what, "--processes")
        return self.answer(what)

    def answer(self, what: str) -> Any:
        return receive(self.process, self.pipe, what, "--processes")

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, build: Build, threads: int) -> None:
    """Answer questions until the other end is closed."""
    torch.set_num_threads(threads)
    made: list[LineTranslator] = []
    try:
        pipe.send(answer_of(lambda: made.append(build())))
        while made:
            method, chunk = pipe.recv()
            pipe.send(answer_of(partial(getattr(made[0], method), chunk)))
    except (EOFError, OSError):
        os._exit(0)  # nobody is there any more

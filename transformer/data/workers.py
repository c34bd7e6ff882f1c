"""Processes that encode chunks side by side; the parts come back in the order of the chunks.

They are programs of their own that speak over two pipes: a fork would copy the threads' locks of a process
that has computed already, and a worker has to end when its master is killed, which it sees as the end of its
input. Ctrl-C is the master's alone to see.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path

from ..core.errors import DataError
from ..core.signals import held
from .chunks import Chunk, Encoder, Part, Recipe

_MOST = 16  # one process reads for all of them, and can feed no more
_PATIENCE = 10.0  # seconds that a worker gets to end


def encode_all(recipe: Recipe, chunks: Iterable[Chunk], workers: int) -> Iterator[Part]:
    """The part of each chunk, in order; by this process alone where there are fewer than two workers.

    Raises DataError when a worker is killed.
    """
    if workers < 2:
        encoder = Encoder(recipe, threads=-1)
        yield from map(encoder.encode, chunks)
        return
    with _started(recipe, min(workers, _MOST)) as team:
        at_work: deque[_Worker] = deque()
        turns = cycle(team)
        for chunk in chunks:
            worker = next(turns)
            part = None
            if len(at_work) == len(team):  # then the oldest chunk is with this worker
                part = at_work.popleft().receive()
            worker.send(chunk)
            at_work.append(worker)
            if part is not None:
                yield part
        while at_work:
            yield at_work.popleft().receive()


class _Worker:
    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with held(signal.SIGINT, signal.SIGTERM):
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path},
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to = Connection(os.dup(self.process.stdin.fileno()), readable=False)
        self._from = Connection(os.dup(self.process.stdout.fileno()), writable=False)
        self.process.stdin.close()
        self.process.stdout.close()

    def send(self, what: Recipe | Chunk) -> None:
        try:
            self._to.send(what)
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> Part:
        try:
            part: Part = self._from.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        return part

    def _ended(self) -> DataError:
        return DataError(
            f"a process that encodes text has ended (exit code {self.process.wait()}): killed, or out of "
            "memory? Start again: what is encoded already is kept"
        )

    def close(self) -> None:
        self._to.close()
        self._from.close()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def _started(recipe: Recipe, count: int) -> Iterator[list[_Worker]]:
    team: list[_Worker] = []
    try:
        for _ in range(count):
            team.append(_Worker())
        for worker in team:
            worker.send(recipe)
        yield team
    finally:
        for worker in team:
            worker.close()


def _serve() -> None:
    """Be a worker: a recipe and then chunks come in, parts go out, until there are no more."""
    source, sink = Connection(0, writable=False), Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # what is printed by mistake must not come between the parts
    try:
        encoder = Encoder(source.recv(), threads=1)
        while True:
            sink.send(encoder.encode(source.recv()))
    except (EOFError, BrokenPipeError):
        return  # the master has all it wanted, or is gone


if __name__ == "__main__":
    _serve()

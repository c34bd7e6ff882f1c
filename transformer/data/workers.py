"""Processes that encode chunks side by side; the parts come back in the order of the chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle

from .chunks import Chunk, Encoder, Part, Recipe
from .programs import Program, pipes

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


class _Worker(Program):
    def __init__(self) -> None:
        super().__init__(__name__, "encodes text", "Start again: what is encoded already is kept")

    def receive(self) -> Part:
        part: Part = super().receive()
        return part


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
            worker.close(_PATIENCE)


def serve() -> None:
    """Be a worker: a recipe and then chunks come in, parts go out, until there are no more."""
    source, sink = pipes()
    try:
        encoder = Encoder(source.recv(), threads=1)
        while True:
            sink.send(encoder.encode(source.recv()))
    except (EOFError, BrokenPipeError):
        return  # the master has all it wanted, or is gone

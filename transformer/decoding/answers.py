"""Questions to a process of its own, and what comes back: an answer, an error, or that it is gone."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from ..core.errors import UserError, is_out_of_memory


class WorkerLost(UserError):
    """A process ended before it had answered."""


def answer_of(find: Callable[[], object]) -> tuple[bool, object]:
    """There: what `find` returns, or why it does not; made to be sent."""
    try:
        return True, find()
    except UserError as error:
        return False, error
    except Exception as error:
        if is_out_of_memory(error):
            return False, MemoryError(str(error) or "in a process of its own")
        return False, traceback.format_exc()


def send(process: BaseProcess, pipe: Connection, question: object, what: str, option: str) -> None:
    """Here: WorkerLost if it is gone, with `what` it had not done and the `option` that needs less memory."""
    try:
        pipe.send(question)
    except OSError as error:
        raise _lost(process, what, option) from error


def receive(process: BaseProcess, pipe: Connection, what: str, option: str) -> Any:
    """Here: the answer; raises the error it consists of, and WorkerLost as `send` does."""
    try:
        done, value = pipe.recv()
    except (EOFError, OSError) as error:
        raise _lost(process, what, option) from error
    if done:
        return value
    if isinstance(value, Exception):
        raise value
    raise RuntimeError(f"in process {process.pid}:\n{value}")


def _lost(process: BaseProcess, what: str, option: str) -> WorkerLost:
    process.join(5)
    code = process.exitcode
    how = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
    return WorkerLost(
        f"translating process {process.pid} ended {how} {what};"
        f" if memory ran out, give fewer {option} or a smaller --batch-tokens"
    )

"""Standard output, whose errors say that it is that."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import UnsupportedOperation
from typing import Any, TextIO

from .errors import DataError

STDOUT = "standard output"


@contextmanager
def written(name: str) -> Iterator[None]:
    """A context whose OSErrors are DataErrors about what has this name; a reader that is gone is none."""
    try:
        yield
    except BrokenPipeError:
        raise
    except UnsupportedOperation as error:
        raise DataError(f"{name}: cannot be written: it is closed") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be written: {error.strerror or error}") from error


class Output:
    """Standard output; raises DataError where it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """What the stream's encoding has no sign for is escaped."""
        with written(STDOUT):
            try:
                return self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
                return len(text)

    def flush(self) -> None:
        with written(STDOUT):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def show(text: str) -> int:
    """Print it all: 0, or 1 with a message; that nobody reads it is no error."""
    try:
        with written(STDOUT):
            print(text, flush=True)
    except (BrokenPipeError, DataError) as error:
        discard_stdout()
        if isinstance(error, DataError):
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    return 0


def discard_stdout() -> None:
    """Let the interpreter's last flush succeed."""
    try:
        sys.stdout.flush()
    except (OSError, DataError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

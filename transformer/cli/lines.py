r"""Lines of text in and out: bytes are split on \n only, so N lines in are N lines out.

U+2028, U+0085, lone \r and the like are characters within a line. One \r before the \n is stripped.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from ..core.errors import ConfigError, DataError
from ..core.streams import STDOUT, written
from ..data.corpus import Oddities, lines_of, unpacked


def read_lines(path: str | None) -> Iterator[str]:
    """Lines of a file (plain or gzip), or of stdin for None and `-`; none for an empty one.

    Bad bytes become U+FFFD; that, and all else that is odd, is reported on stderr once the end is reached.
    Raises DataError with the file's name when it cannot be read.
    """
    shown = "stdin" if path is None or path == "-" else path
    oddities = Oddities(shown)
    try:
        with _opened(path) as file:
            yield from lines_of(file, shown, oddities, strict=False)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise DataError(f"{shown}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for message in oddities.messages():
        say(message)


@contextmanager
def _opened(path: str | None) -> Iterator[BinaryIO]:
    if path is None or path == "-":
        # What the shell has closed is a text file that cannot be read.
        if not sys.stdin.readable():
            raise DataError("stdin is closed; give --input FILE")
        yield sys.stdin.buffer
        return
    with unpacked(path) as file:
        yield file


@contextmanager
def output(path: str | None) -> Iterator[BinaryIO]:
    """Where lines go: a file, compressed for `.gz`, or stdout for None and `-`. DataError if it cannot."""
    if path is None or path == "-":
        with written(STDOUT):
            yield sys.stdout.buffer
        return
    with written(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with _created(path) as file:
            yield file


def require_apart(output: str | None, read: Sequence[str | None]) -> None:
    """ConfigError where lines would go to a file that something is read from; `read` begins with the input.

    None and `-` are the standard streams, which the shell may have taken from files.
    """
    there = _file_of(output, sys.stdout)
    if there is None:
        return
    what = "standard output" if output in (None, "-") else f"--output {output}"
    inputs = [_file_of(path, sys.stdin) for path in (read[0] or "-", *read[1:]) if path is not None]
    if any(each is not None and os.path.samestat(there, each) for each in inputs):
        raise ConfigError(f"{what} would overwrite what is read; choose another file")


def _file_of(path: str | None, stream: TextIO) -> os.stat_result | None:
    """The file of that name, or of a standard stream; None for what is none: a terminal, a pipe, nothing."""
    with suppress(OSError, ValueError):
        found = os.fstat(stream.fileno()) if path in (None, "-") else os.stat(str(path))
        return found if stat.S_ISREG(found.st_mode) else None
    return None


def require_writable(flag: str, path: Path) -> None:
    """ConfigError unless a file of this name can be written; what is there stays as it is."""
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: it is a directory; name a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{flag} {path}: it cannot be written there")


def _created(path: str) -> BinaryIO:
    if path.endswith(".gz"):  # without a time in it: the same lines are the same bytes
        return cast(BinaryIO, gzip.GzipFile(path, "wb", mtime=0))
    return open(path, "wb")


def write_line(file: BinaryIO, text: str) -> None:
    """One line, whatever the text holds."""
    file.write(text.replace("\n", " ").encode("utf-8", "replace") + b"\n")


def json_line(value: Any) -> str:
    """JSON on one line for every reader's idea of a line; what is not a number becomes null."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"})


def finite(value: Any) -> Any:
    """The same with null for every number that JSON has no words for."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(text: str) -> None:
    """A remark on stderr, which never mixes with the lines; lines are not lost where nobody reads remarks."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)

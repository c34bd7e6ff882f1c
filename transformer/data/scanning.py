"""Read a file of lines once: how many, what is odd, and the hash of its text; not again while it is the same.

Most text has nothing odd in it. A piece of it that is plain goes into the hash as it stands, at the speed of
the hash; any other piece is read line by line, as `corpus.lines_of` does.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from ..core.disk import replace
from ..core.errors import DataError
from .cache import TEXTS, key_of
from .checksums import REMADE, checked, read_checked
from .corpus import LONGEST_LINE, Oddities, decompressed, lines_of, reading

_FORMAT = 1  # raise it when the same bytes come to have another hash or other remarks
_PIECE = 1 << 20
_ODD_BYTES = b"\x00\x0b\x0c\r\x1c\x1d\x1e"
_ODD_CHARACTERS = "\x85".encode(), "\u2028".encode(), "\u2029".encode()
_SETTLED = 2.0  # seconds: a file changed later may change again within one tick of its file system's clock


Identity = tuple[str, int, int, int]  # what tells a file from another one, and from what it was


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def scan_lines(
    path: Path, digest: Hash, oddities: Oddities, read: Callable[[int], object], piece: int = _PIECE
) -> int:
    """Number of lines of a plain or compressed file, whose text without odd line ends goes into `digest`.

    `read` is called with the bytes of the file as they are read. Raises DataError as `corpus.read_lines`.
    """
    number = at = 0
    with reading(path, lambda: number), open(path, "rb") as raw, decompressed(raw) as stream:
        while data := stream.read(piece):
            if not data.endswith(b"\n"):
                data += stream.readline(LONGEST_LINE + 1)
            if number and _is_plain(data):
                digest.update(data)
                number += data.count(b"\n")
            else:
                for line in lines_of(io.BytesIO(data), str(path), oddities, first=number + 1):
                    digest.update(line.encode() + b"\n")
                    number += 1
            read(raw.tell() - at)
            at = raw.tell()
    if number == 0:
        raise DataError(f"{path}: the file is empty")
    return number


def _is_plain(data: bytes) -> bool:
    """Would `lines_of` give these bytes back as they are, without a remark?"""
    if not data.endswith(b"\n") or len(data) > LONGEST_LINE:
        return False
    if len(data.translate(None, _ODD_BYTES)) < len(data) or any(odd in data for odd in _ODD_CHARACTERS):
        return False
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


@dataclass(frozen=True)
class Scan:
    """What a text was found to be: pairs, hash, and remarks on what is odd."""

    count: int
    digest: str
    oddities: list[str]


def remembered(
    cache: Path,
    what: object,
    files: Iterable[Path],
    scan: Callable[[], Scan],
    log: Callable[[str], None] = lambda _: None,
) -> Scan:
    """`scan()`, or what it gave when these very files were scanned before, for the same `what`.

    A file is the same while its size, times and inode are. One that was changed in the last moments before it
    was read is not remembered. A cache that cannot be written remembers nothing, and what is damaged there is
    made anew.
    """
    files = list(files)
    began = time.time()
    before = [identity(file) for file in files]
    entry = cache / TEXTS / f"{key_of(kind='text', format=_FORMAT, what=what, files=before)}.json"
    with suppress(OSError):
        try:
            return Scan(**read_checked(entry))
        except (ValueError, TypeError):
            log(f"{entry} {REMADE}")
    found = scan()
    settled = all(max(times) < (began - _SETTLED) * 1e9 for _, _, *times in before)
    if settled and before == [identity(file) for file in files]:
        with suppress(OSError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            temporary = entry.with_name(f".{entry.name}.{os.getpid()}")
            temporary.write_text(checked(asdict(found)), encoding="utf-8")
            replace(temporary, entry)
    return found


def identity(path: Path) -> Identity:
    """Path with inode, size, and the times of the last change of content and of anything."""
    state = path.stat()
    return (
        f"{path.resolve()} {state.st_dev} {state.st_ino}",
        state.st_size,
        state.st_mtime_ns,
        state.st_ctime_ns,
    )

r"""Read parallel text byte-exactly: N lines in the file are N lines here.

A line ends at `\n` and nowhere else; one trailing `\r` is taken off. U+2028, U+0085, form feeds and lone
carriage returns are part of a line. A UTF-8 byte order mark at the start of a file is dropped, bytes that
are not UTF-8 become U+FFFD; both are noted, with line numbers, and so is everything else that looks odd.
Everything streams: memory holds one line of each side.
"""

from __future__ import annotations

import codecs
import difflib
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from ..core.errors import DataError

DEMO = "demo"
DEMO_LANGUAGES = ("en", "de")
Split = Literal["train", "valid", "test"]

# Bytes; a "line" beyond this is not text, and reading on would fill the memory. What is translated is longer
# in no case: decode.max_source_length goes to 100,000 subwords.
LONGEST_LINE = 1 << 24
LONGEST_SCORED = 1_000_000  # characters of a reference
_FIRST_LINES = 5
_PIECE = 1 << 20

# Looked for in the bytes, so that a clean line costs one search.
_ODD = re.compile(rb"\x00|[\x0b\x0c\r\x1c-\x1e]|\xc2\x85|\xe2\x80[\xa8\xa9]")
INVALID = "invalid UTF-8, replaced by U+FFFD"
NUL = "a NUL character, kept but unseen by the tokenizer"
SEPARATOR = "a separator that is not a line end (U+2028, U+0085, lone CR and the like), kept inside the line"
BOM = "a byte order mark at the start of the file, dropped"
UTF16 = "a UTF-16 byte order mark, read as broken UTF-8 (convert it: iconv -f UTF-16 -t UTF-8)"
TOO_LONG = "more bytes than any text has, cut short"


class Pair(NamedTuple):
    """One line of each side. `line` counts from 1 in each file."""

    line: int
    source: str
    target: str


@dataclass
class Oddities:
    """What a file held that a reader should know of: kind -> how often, and the first few lines."""

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)

    def note(self, kind: str, line: int) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        first = self.lines.setdefault(kind, [])
        if len(first) < _FIRST_LINES:
            first.append(line)

    def messages(self) -> list[str]:
        """`train.en: 2 lines with invalid UTF-8, replaced by U+FFFD: lines 3, 17`, one text a kind."""
        texts = []
        for kind, count in self.counts.items():
            shown = ", ".join(str(line) for line in self.lines[kind])
            more = ", ..." if count > len(self.lines[kind]) else ""
            if count == 1:
                texts.append(f"{self.name}: 1 line with {kind}: line {shown}")
            else:
                texts.append(f"{self.name}: {count} lines with {kind}: lines {shown}{more}")
        return texts


def lines_of(
    stream: BinaryIO, name: str, oddities: Oddities | None = None, *, strict: bool = True, first: int = 1
) -> Iterator[str]:
    """Yield the lines of an open byte stream (a file, standard input) as text.

    Raises DataError when a line is longer than `LONGEST_LINE` bytes or the text is UTF-16. Without `strict`
    the line is cut there and the text read as it stands, so that N lines in stay N lines out; both are noted.
    `first`: number of the stream's first line, if the stream is a part of the file.
    """
    number = first - 1
    while raw := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
            if strict:
                raise DataError(
                    f"{name}: line {number} is longer than {LONGEST_LINE:,} bytes; is this a text file?"
                )
            raw = _cut(stream, raw)
            if oddities:
                oddities.note(TOO_LONG, number)
        if number == 1:
            if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                if strict:
                    raise DataError(
                        f"{name}: this is UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
                    )
                if oddities:
                    oddities.note(UTF16, 1)
            if raw.startswith(codecs.BOM_UTF8):
                raw = raw[len(codecs.BOM_UTF8) :]
                if oddities:
                    oddities.note(BOM, 1)
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = raw.decode(errors="replace")
            if oddities:
                oddities.note(INVALID, number)
        if oddities and (match := _ODD.search(raw)):
            _note_odd(oddities, raw, match.group(), number)
        yield text


def _cut(stream: BinaryIO, raw: bytes) -> bytes:
    """The first `LONGEST_LINE` bytes, ending between characters; the line's rest is read and forgotten."""
    end = raw
    while end and not end.endswith(b"\n"):
        end = stream.readline(_PIECE)
    # The byte at the cut may continue a character of at most four bytes.
    cut = LONGEST_LINE
    while cut > LONGEST_LINE - 3 and raw[cut] & 0xC0 == 0x80:
        cut -= 1
    return raw[:cut]


def _note_odd(oddities: Oddities, raw: bytes, first: bytes, number: int) -> None:
    if b"\x00" in raw:
        oddities.note(NUL, number)
    if first != b"\x00" or any(found != b"\x00" for found in _ODD.findall(raw)):
        oddities.note(SEPARATOR, number)


def find(prefix: str, language: str) -> Path:
    """`prefix.language`, or `prefix.language.gz` when the plain file is not there.

    Raises DataError that says what was tried and which files of that directory have a similar name.
    """
    plain = Path(f"{prefix}.{language}")
    packed = Path(f"{prefix}.{language}.gz")
    for path in (plain, packed):
        if path.is_file():
            return path
    for path in (plain, packed):
        if path.exists():
            raise DataError(
                f"no such file: {path}: what has that name is no regular file; text is read twice, so"
                " it cannot be a pipe"
            )
    message = f"no such file: {plain} (nor {packed.name})"
    folder = plain.parent
    if not folder.is_dir():
        raise DataError(f"{message}; the directory {folder} does not exist")
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise DataError(f"{message}; cannot list {folder}: {error.strerror}") from error
    near = difflib.get_close_matches(plain.name, names, n=3, cutoff=0.5)
    if near:
        raise DataError(f"{message}; {folder} has {', '.join(near)}")
    raise DataError(f"{message}; a prefix is a path without its language, as data/multi30k/train")


def packed_beside(files: Iterable[Path]) -> list[Path]:
    """The compressed files that `find` passes over, because the plain ones are there."""
    packed = [path.with_name(f"{path.name}.gz") for path in files if path.suffix != ".gz"]
    return [path for path in packed if path.is_file()]


@contextmanager
def unpacked(path: str | Path) -> Iterator[BinaryIO]:
    """The bytes of a plain or gzip-compressed file; its first two bytes say which it is, not its name."""
    with open(path, "rb") as raw, decompressed(raw) as stream:
        yield stream


@contextmanager
def decompressed(raw: io.BufferedReader) -> Iterator[BinaryIO]:
    """The bytes of an open file, as `unpacked`."""
    if raw.peek(2)[:2] != b"\x1f\x8b":
        yield raw
        return
    with io.BufferedReader(gzip.GzipFile(fileobj=raw), _PIECE) as stream:
        yield stream


def read_lines(path: str | Path, oddities: Oddities | None = None) -> Iterator[str]:
    """Yield the lines of a plain or compressed file. Raises DataError with the file's name and the line."""
    path = Path(path)
    number = 0
    with reading(path, lambda: number), unpacked(path) as stream:
        for line in lines_of(stream, str(path), oddities):
            number += 1
            yield line
    if number == 0:
        raise DataError(f"{path}: the file is empty")


@contextmanager
def reading(path: Path, line: Callable[[], int]) -> Iterator[None]:
    """A context in which what is wrong with a file becomes a DataError that tells the last line read."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except EOFError:
        raise DataError(
            f"{path}: the compressed file is cut short somewhere after line {line()}; copy it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file somewhere after line {line()}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from None


def read_pairs(
    prefix: str,
    source: str,
    target: str,
    split: Split = "test",
    oddities: tuple[Oddities, Oddities] | None = None,
) -> Iterator[Pair]:
    """Yield the pairs of `prefix.source` and `prefix.target`, or of a split of the embedded corpus (`demo`).

    Raises DataError when a file is missing, empty or damaged, and when the sides differ in length.
    """
    if prefix == DEMO:
        yield from _demo(source, target, split)
        return
    paths = find(prefix, source), find(prefix, target)
    notes = oddities or (None, None)
    sides = tuple(read_lines(path, note) for path, note in zip(paths, notes, strict=True))
    number = 0
    while True:
        left, right = next(sides[0], None), next(sides[1], None)
        if left is None or right is None:
            break
        number += 1
        yield Pair(number, left, right)
    if left is not None or right is not None:
        more = 1 + sum(1 for _ in (sides[0] if left is not None else sides[1]))
        require_same_length(paths, (number + more, number) if left is not None else (number, number + more))


def require_same_length(paths: tuple[Path, Path], lines: tuple[int, int]) -> None:
    """Raise DataError when the two sides of a text have different numbers of lines."""
    if lines[0] == lines[1]:
        return
    longer, number = (0 if lines[0] > lines[1] else 1), min(lines)
    raise DataError(
        f"the sides differ in length: {paths[1 - longer]} has {number} lines, "
        f"{paths[longer]} has {lines[longer]}; line {number + 1} of {paths[longer]} has no partner"
    )


def read_parallel(prefix: str, source: str, target: str, split: Split = "test") -> list[tuple[str, str]]:
    """All pairs of a test or validation set as they stand in the files, for scoring against the raw text."""
    return [(pair.source, pair.target) for pair in read_pairs(prefix, source, target, split)]


def too_long_to_score(references: Iterable[str]) -> str:
    """`line 3 has ...` of the first on which TER, whose time is quadratic, would hardly end; else empty."""
    for number, line in enumerate(references, 1):
        if len(line) > LONGEST_SCORED:
            return f"line {number} has {len(line):,} characters, more than {LONGEST_SCORED:,}"
    return ""


def require_scorable(references: Iterable[str], name: str) -> None:
    """Raise DataError for a file that somebody names as references and that has such a line."""
    if found := too_long_to_score(references):
        raise DataError(f"{name}: {found}; is this one translation a line?")


def _demo(source: str, target: str, split: Split) -> Iterator[Pair]:
    from .demo import demo_pairs  # the grammar is only built by those who ask for it

    if {source, target} != set(DEMO_LANGUAGES):
        raise DataError(f"the demo corpus is English-German: it has no {source}-{target}")
    forward = (source, target) == DEMO_LANGUAGES
    for number, (english, german) in enumerate(demo_pairs(split), 1):
        yield Pair(number, english, german) if forward else Pair(number, german, english)

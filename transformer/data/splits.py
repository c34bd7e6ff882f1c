"""The text of a split: read once to check and to hash it, again to use it; never held in memory.

What is used has to be what was hashed. It is not hashed again: its files are those that were scanned while
they have the same size, times and inode, and they have as many pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import DataError
from .cache import Changed
from .config import DataConfig
from .corpus import DEMO, Oddities, Pair, Split, find, packed_beside, read_pairs, require_same_length
from .meter import Meter
from .scanning import Identity, Scan, identity, remembered, scan_lines

Log = Callable[[str], None]


def _changed(path: Path) -> Changed:
    return Changed(
        f"{path}: it changed while the data was prepared; give the command again when nothing writes there"
        " any more"
    )


def _not_read(path: Path) -> str:
    return f"{path}: not read, since the plain file is beside it"


class SplitText:
    """The text of a split: one or more prefixes, one after the other."""

    def __init__(self, config: DataConfig, prefixes: tuple[str, ...], split: Split) -> None:
        self.prefixes, self.split = prefixes, split
        self.source, self.target = config.source, config.target
        self.count = 0
        self.digest = ""
        self.oddities: list[str] = []
        self._seen: dict[tuple[str, str], tuple[Path, Identity]] = {}  # the files, since they were scanned
        self._read = 0  # pairs, when the text was last read to its end

    def scan(self, cache: Path, log: Log) -> None:
        """Read everything once: sides equally long, text readable, and the hash that addresses the cache.

        Files that were scanned before and have not changed are not read. Raises DataError.
        """
        what = self.prefixes, self.split, self.source, self.target
        sides = [(prefix, language) for prefix in self.prefixes for language in what[2:] if prefix != DEMO]
        files = [find(*side) for side in sides]
        try:
            self._seen = {side: (file, identity(file)) for side, file in zip(sides, files, strict=True)}
            with self.unchanged():
                if DEMO in self.prefixes:  # made by this program's own grammar, which may change
                    found = self._scan(files, log)
                else:
                    found = remembered(cache, what, files, lambda: self._scan(files, log), log)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot read: {error.strerror or error}") from None
        self.count = self._read = found.count
        self.digest, self.oddities = found.digest, [*found.oddities, *map(_not_read, packed_beside(files))]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """A context at whose end, and at whose errors, `require_unchanged`."""
        try:
            yield
        except DataError:
            self.require_unchanged()
            raise
        self.require_unchanged()

    def require_unchanged(self) -> None:
        """Raise Changed, with the file's name, when the text is not what was scanned any more.

        Where a time alone is another one, as after a `chmod` or a new hard link, the text is hashed again.
        """
        touched = {}
        for side, (path, state) in self._seen.items():
            try:
                now = identity(path) if find(*side) == path else None
            except (OSError, DataError):
                now = None  # it is gone
            if now is None or now[:-1] != state[:-1] or self._read != self.count:
                raise _changed(path)
            if now != state:
                touched[side] = path, now
        if touched:
            files = [path for path, _ in self._seen.values()]
            if self._scan(files, lambda _: None).digest != self.digest:
                raise _changed(next(iter(touched.values()))[0])
            self._seen |= touched

    def _scan(self, files: list[Path], log: Log) -> Scan:
        digests = hashlib.sha256(), hashlib.sha256()
        count, remarks = 0, []
        with Meter(
            f"reading {self.split}", sum(path.stat().st_size for path in files), "bytes", log
        ) as meter:
            for prefix in self.prefixes:
                if prefix == DEMO:
                    for pair in read_pairs(prefix, self.source, self.target, self.split):
                        digests[0].update(pair.source.encode() + b"\n")
                        digests[1].update(pair.target.encode() + b"\n")
                        count += 1
                    continue
                paths = self._paths(prefix)
                notes = Oddities(str(paths[0])), Oddities(str(paths[1]))
                lines = [
                    scan_lines(path, digest, note, meter.add)
                    for path, digest, note in zip(paths, digests, notes, strict=True)
                ]
                require_same_length(paths, (lines[0], lines[1]))
                count += lines[0]
                remarks += [message for note in notes for message in note.messages()]
        return Scan(count, digests[0].hexdigest() + digests[1].hexdigest(), remarks)

    def _paths(self, prefix: str) -> tuple[Path, Path]:
        return find(prefix, self.source), find(prefix, self.target)

    def located(self) -> Iterator[tuple[str, Pair]]:
        number = 0
        for prefix in self.prefixes:
            for pair in read_pairs(prefix, self.source, self.target, self.split):
                number += 1
                yield prefix, pair
        self._read = number

    def pairs(self) -> Iterator[tuple[str, str]]:
        return ((pair.source, pair.target) for _, pair in self.located())

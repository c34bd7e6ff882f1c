"""Write an encoded corpus so that a process which is killed has lost seconds of work, not the corpus.

Arrays grow at their ends. Now and then they are synced and `state.json` is written, which says how far they
are good, and their checksums up to there; who opens the directory again cuts them there and goes on, or
begins again where they are damaged. The bytes are those of one straight run.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..core.disk import replace
from ..core.special import EOS
from .checksums import META, checked, checksum, read_checked
from .encoded import SIDES, Flat, id_type
from .report import SplitReport

STATE = "state.json"
_COMMIT_SECONDS = 10.0
_COUNTED = 1 << 22  # ids counted at a time


class CorpusWriter:
    """Appends encoded pairs to files in a directory; `close` writes the summary that makes them a corpus.

    `report` is that of what the directory holds: the pairs that were read for it so far, 0 for a new one.
    """

    def __init__(
        self,
        folder: Path,
        vocabularies: tuple[int, int],
        texts: bool,
        report: SplitReport,
        commit_seconds: float = _COMMIT_SECONDS,
    ) -> None:
        """`report`: an empty one, used if there is nothing to go on with."""
        self._folder, self._texts, self._every = folder, texts, commit_seconds
        self._dtypes = {side: id_type(size) for side, size in zip(SIDES, vocabularies, strict=True)}
        self._vocabularies = vocabularies
        self._names = [f"{side}.ids" for side in SIDES] + [f"{side}.text" for side in SIDES if texts]
        self._types = {name: self._dtypes.get(name.partition(".ids")[0], "uint8") for name in self._names}
        # Of each file, as it grows: the offsets begin with a zero.
        paths = [path for name in self._names for path in self._paths(name)]
        none = {path.name: zlib.crc32(bytes(8) if path.suffix == ".offsets" else b"") for path in paths}
        self._ends, self._sums, self.report = self._state() or (dict.fromkeys(self._names, 0), none, report)
        self._stack = ExitStack()
        self._files = {name: self._open(name) for name in self._names}
        self._committed = time.monotonic()

    def _state(self) -> tuple[dict[str, int], dict[str, int], SplitReport] | None:
        """How far an earlier process came; None if it left nothing, or nothing that can be used."""
        try:
            state = read_checked(self._folder / STATE)
            ends, sums, report = state["ends"], state["sums"], SplitReport(**state["report"])
            for name in self._names:
                paths, sizes = self._paths(name), self._sizes(name, ends[name], report.kept)
                for path, size in zip(paths, sizes, strict=True):
                    if path.stat().st_size < size or checksum(path, size) != sums[path.name]:
                        return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return ends, sums, report

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self._folder / f"{name}.values", self._folder / f"{name}.offsets"

    def _sizes(self, name: str, end: int, pairs: int) -> tuple[int, int]:
        """Bytes of the two files with these many values and pairs."""
        return end * np.dtype(self._types[name]).itemsize, (pairs + 1) * np.dtype(np.int64).itemsize

    def _open(self, name: str) -> tuple[BinaryIO, BinaryIO]:
        """Both files, cut where they are good, at their ends."""
        files = []
        for path, size in zip(
            self._paths(name), self._sizes(name, self._ends[name], self.report.kept), strict=True
        ):
            path.touch()
            file = self._stack.enter_context(path.open("r+b"))
            file.truncate(size)  # fills up with zeros: the first offset is 0
            file.seek(size)
            files.append(file)
        return files[0], files[1]

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, flats: Mapping[str, Flat], report: SplitReport) -> None:
        """Append the rows of the next part: `source.ids`, `target.ids`, and the texts if they are kept."""
        for name in self._names:
            flat = flats[name]
            grown = flat.values.tobytes(), (flat.offsets[1:] + self._ends[name]).tobytes()
            for file, path, data in zip(self._files[name], self._paths(name), grown, strict=True):
                file.write(data)
                self._sums[path.name] = zlib.crc32(data, self._sums[path.name])
            self._ends[name] += int(flat.offsets[-1])
        self.report.merge(report)
        if time.monotonic() - self._committed >= self._every:
            self.commit()

    def commit(self) -> None:
        """Make all that was added so far survive the process and the machine."""
        for files in self._files.values():
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        temporary = self._folder / f"{STATE}.new"
        state = {"ends": self._ends, "sums": self._sums, "report": asdict(self.report)}
        temporary.write_text(checked(state), encoding="utf-8")
        replace(temporary, self._folder / STATE)
        self._committed = time.monotonic()

    def close(self) -> None:
        """Write the summary. The state stays: until the directory has its name, a kill must cost nothing."""
        self.commit()
        self._stack.close()
        counts = self._folder / "target.counts"
        self._count_targets().tofile(counts)
        sums = {**self._sums, counts.name: checksum(counts)}
        meta = {
            "pairs": self.report.kept,
            "dtypes": self._dtypes,
            "vocabularies": self._vocabularies,
            "texts": self._texts,
            "report": asdict(self.report),
            "files": {name: [(self._folder / name).stat().st_size, sums[name]] for name in sorted(sums)},
        }
        (self._folder / META).write_text(checked(meta), encoding="utf-8")

    def _count_targets(self) -> NDArray[np.int64]:
        """How often each target id occurs, EOS included."""
        counts = np.zeros(self._vocabularies[1], np.int64)
        dtype = np.dtype(self._dtypes["target"])
        with open(self._paths("target.ids")[0], "rb") as file:
            while piece := file.read(_COUNTED * dtype.itemsize):
                counts += np.bincount(np.frombuffer(piece, dtype), minlength=self._vocabularies[1])
        counts[EOS] += self.report.kept
        return counts

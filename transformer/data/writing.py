"""Write an encoded corpus so that a process which is killed has lost seconds of work, not the corpus.

Arrays grow at their ends. Now and then they are synced and `state.json` is written, which says how far they
are good; who opens the directory again cuts them there and goes on. The bytes are those of one straight run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..core.disk import replace
from ..core.special import EOS
from .encoded import META, SIDES, Flat, id_type
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
        self._vocabulary = vocabularies[1]
        self._names = [f"{side}.ids" for side in SIDES] + [f"{side}.text" for side in SIDES if texts]
        self._types = {name: self._dtypes.get(name.partition(".ids")[0], "uint8") for name in self._names}
        self._ends, self.report = self._state() or (dict.fromkeys(self._names, 0), report)
        self._stack = ExitStack()
        self._files = {name: self._open(name) for name in self._names}
        self._committed = time.monotonic()

    def _state(self) -> tuple[dict[str, int], SplitReport] | None:
        """How far an earlier process came; None if it left nothing, or nothing that can be used."""
        try:
            state = json.loads((self._folder / STATE).read_text())
            ends, report = (
                {name: int(state["ends"][name]) for name in self._names},
                SplitReport(**state["report"]),
            )
            for name in self._names:
                for path, size in zip(
                    self._paths(name), self._sizes(name, ends[name], report.kept), strict=True
                ):
                    if path.stat().st_size < size:
                        return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return ends, report

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
            values, offsets = self._files[name]
            flat = flats[name]
            values.write(flat.values.tobytes())
            offsets.write((flat.offsets[1:] + self._ends[name]).tobytes())
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
        state = {"ends": self._ends, "report": asdict(self.report)}
        temporary.write_text(json.dumps(state), encoding="utf-8")
        replace(temporary, self._folder / STATE)
        self._committed = time.monotonic()

    def close(self) -> None:
        """Write the summary. The state stays: until the directory has its name, a kill must cost nothing."""
        self.commit()
        self._stack.close()
        counts = self._folder / "target.counts"
        self._count_targets().tofile(counts)
        files = [counts, *(path for name in self._names for path in self._paths(name))]
        meta = {
            "pairs": self.report.kept,
            "dtypes": self._dtypes,
            "texts": self._texts,
            "report": asdict(self.report),
            "sizes": {path.name: path.stat().st_size for path in sorted(files)},
        }
        (self._folder / META).write_text(json.dumps(meta, indent=1) + "\n")

    def _count_targets(self) -> NDArray[np.int64]:
        """How often each target id occurs, EOS included."""
        counts = np.zeros(self._vocabulary, np.int64)
        dtype = np.dtype(self._dtypes["target"])
        with open(self._paths("target.ids")[0], "rb") as file:
            while piece := file.read(_COUNTED * dtype.itemsize):
                counts += np.bincount(np.frombuffer(piece, dtype), minlength=self._vocabulary)
        counts[EOS] += self.report.kept
        return counts

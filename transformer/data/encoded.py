"""Encoded pairs in flat files that are read row by row: the memory they take does not grow with the corpus.

Per side: `ids` (uint16 or uint32, one after the other, without BOS and EOS) and `offsets` (int64, pair i is
`ids[offsets[i]:offsets[i+1]]`). With subword sampling the raw text lies beside them in the same form.
The files are not mapped: around each page that is asked for the system maps many, so that a process which
reads here and there soon counts the whole file as its memory.

`meta.json` has the size and the CRC-32 of each file, and one of itself: damage is found when the corpus is
opened, by reading all of it once.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.disk import content
from ..core.errors import DataError
from ..core.special import EOS
from .checksums import META
from .report import SplitReport

SIDES = ("source", "target")

Ids = NDArray[np.unsignedinteger[Any]]


def id_type(vocabulary: int) -> str:
    """The narrowest of uint16 and uint32 that holds every id."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


class Rows(Protocol):
    """Rows of different lengths. `ends(start, stop)` are the offsets `start` to `stop`, both included."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[Any]: ...
    def ends(self, start: int, stop: int) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Flat:
    """Rows in memory, end to end: row i is `values[offsets[i]:offsets[i+1]]`."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], dtype: str) -> Flat:
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.fromiter(chain.from_iterable(rows), dtype, int(offsets[-1]))
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def ends(self, start: int, stop: int) -> NDArray[np.int64]:
        return self.offsets[start : stop + 1]


class FlatFiles:
    """The same in two files, `NAME.values` and `NAME.offsets`. Any number of threads may read."""

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        self._folder, self._dtype = folder, np.dtype(dtype)
        self._values, self._offsets = (
            _opened(self, folder / f"{name}.{part}") for part in ("values", "offsets")
        )
        self._rows = os.fstat(self._offsets).st_size // 8 - 1

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> NDArray[Any]:
        start, end = self.ends(index, index + 1).tolist()
        size = self._dtype.itemsize
        return np.frombuffer(self._read(self._values, (end - start) * size, start * size), self._dtype)

    def ends(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.frombuffer(self._read(self._offsets, 8 * (stop + 1 - start), 8 * start), np.int64)

    def _read(self, file: int, size: int, place: int) -> bytes:
        data = os.pread(file, size, place) if min(size, place) >= 0 else None
        if data is None or len(data) != size:
            changed(self._folder, f"{size:,} bytes at byte {place:,} of a file are not there")
        return data


def _opened(owner: object, path: Path) -> int:
    """A file to read from, as long as its owner lives."""
    file = os.open(path, os.O_RDONLY)
    weakref.finalize(owner, os.close, file)
    return file


class EncodedCorpus:
    """Pairs of id arrays. Lengths are int32 and count the EOS; the ids themselves carry no BOS and no EOS."""

    def __init__(
        self,
        source: Rows,
        target: Rows,
        target_counts: NDArray[np.int64],
        texts: tuple[Rows, Rows] | None = None,
        folder: Path | None = None,
        vocabularies: tuple[int, int] | None = None,
    ) -> None:
        """`target_counts`: how often each target id occurs, EOS included. `vocabularies`: ids end there."""
        assert len(source) == len(target)
        self._source, self._target, self._texts = source, target, texts
        self.target_counts, self._folder, self._vocabularies = target_counts, folder, vocabularies

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> EncodedCorpus:
        """A corpus in memory, from ids without BOS and EOS."""
        source, target = (Flat.of([pair[side] for pair in pairs], "uint32") for side in range(2))
        counts = np.bincount(target.values, minlength=EOS + 1).astype(np.int64)
        counts[EOS] += len(target)
        return cls(source, target, counts)

    @classmethod
    def open(cls, folder: Path) -> EncodedCorpus:
        """Open what `CorpusWriter` wrote."""
        meta = json.loads(content(folder / META))
        source, target = (FlatFiles(folder, f"{side}.ids", meta["dtypes"][side]) for side in SIDES)
        texts = None
        if meta["texts"]:
            texts = FlatFiles(folder, "source.text", "uint8"), FlatFiles(folder, "target.text", "uint8")
        counts = np.fromfile(folder / "target.counts", np.int64)
        return cls(source, target, counts, texts, folder, tuple(meta["vocabularies"]))

    def __len__(self) -> int:
        return len(self._source)

    def lengths(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Source and target lengths of pairs `start` to `stop`, (stop - start,) each."""
        source, target = (
            (np.diff(rows.ends(start, stop)) + 1).astype(np.int32) for rows in (self._source, self._target)
        )
        return source, target

    @property
    def source_lengths(self) -> NDArray[np.int32]:
        """Of all pairs, made anew each time it is asked for: four bytes a pair."""
        return self.lengths(0, len(self))[0]

    @property
    def target_lengths(self) -> NDArray[np.int32]:
        """Of all pairs, as `source_lengths`."""
        return self.lengths(0, len(self))[1]

    def pair(self, index: int) -> tuple[Ids, Ids]:
        """Source and target ids of a pair, without BOS and EOS."""
        return self._source[index], self._target[index]

    def text(self, index: int) -> tuple[str, str]:
        """The raw text of a pair; kept only where subwords are sampled."""
        assert self._texts is not None
        source, target = self._texts
        try:
            return source[index].tobytes().decode(), target[index].tobytes().decode()
        except UnicodeDecodeError:
            changed(self._folder, f"the text of pair {index + 1:,} is no UTF-8")

    def require_known(self, sides: Sequence[NDArray[Any]], indices: Sequence[int]) -> None:
        """Raise DataError for an id beyond its vocabulary: source and target ids (B, L) of these pairs."""
        for side, ids, size in zip(SIDES, sides, self._vocabularies or (), strict=False):
            if ids.max() >= size:
                row, column = np.argwhere(ids >= size)[0]
                found = f"pair {indices[row] + 1:,} has the {side} id {ids[row, column]}"
                changed(self._folder, f"{found}, and the vocabulary ends at {size - 1}")

    def unigram_entropy(self) -> float:
        """H = -sum p log p, nats per target token: the loss of one who knows only how often tokens occur."""
        counts = self.target_counts[self.target_counts > 0].astype(np.float64)
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())


def changed(folder: Path | None, what: str) -> NoReturn:
    """Raise the DataError of an encoded corpus that was whole when it was opened."""
    raise DataError(
        f"the encoded text in {folder} is damaged, or was changed while it was in use: {what};"
        " delete that directory and give the command again (with --resume RUN, if the run has begun)"
    )


def report_of(folder: Path) -> SplitReport:
    return SplitReport(**json.loads(content(folder / META))["report"])

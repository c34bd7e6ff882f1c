"""Encoded pairs in flat, memory-mapped arrays: the memory they take does not grow with the corpus.

Pages of the files that were read count as this process's memory until `release`; the system takes them back
when it needs them.

Per side: `ids` (uint16 or uint32, one after the other, without BOS and EOS) and `offsets` (int64, pair i is
`ids[offsets[i]:offsets[i+1]]`). With subword sampling the raw text lies beside them in the same form.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.special import EOS
from .report import SplitReport

SIDES = ("source", "target")
META = "meta.json"

Ids = NDArray[np.unsignedinteger[Any]]


def id_type(vocabulary: int) -> str:
    """The narrowest of uint16 and uint32 that holds every id."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class Flat:
    """Rows of different lengths, end to end: row i is `values[offsets[i]:offsets[i+1]]`."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]
    maps: tuple[mmap.mmap, ...] = ()  # the files behind them, if any

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], dtype: str) -> Flat:
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.fromiter(chain.from_iterable(rows), dtype, int(offsets[-1]))
        return cls(values, offsets)

    @classmethod
    def open(cls, folder: Path, name: str, dtype: str) -> Flat:
        values, offsets = mapped(folder / f"{name}.values"), mapped(folder / f"{name}.offsets")
        maps = tuple(file for file in (values, offsets) if file is not None)
        return cls(_array(values, dtype), _array(offsets, "int64"), maps)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]


def mapped(path: Path) -> mmap.mmap | None:
    """A file's bytes, read when they are asked for; None for an empty one, which cannot be mapped."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else None


def _array(file: mmap.mmap | None, dtype: str) -> NDArray[Any]:
    return np.zeros(0, dtype) if file is None else np.frombuffer(file, dtype)


class EncodedCorpus:
    """Pairs of id arrays. Lengths are int32 and count the EOS; the ids themselves carry no BOS and no EOS."""

    def __init__(
        self,
        source: Flat,
        target: Flat,
        texts: tuple[Flat, Flat] | None = None,
        target_counts: NDArray[np.int64] | None = None,
    ) -> None:
        assert len(source) == len(target)
        self._source, self._target, self._texts = source, target, texts
        self._target_counts = target_counts

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> EncodedCorpus:
        """A corpus in memory, from ids without BOS and EOS."""
        source, target = (Flat.of([pair[side] for pair in pairs], "uint32") for side in range(2))
        return cls(source, target)

    @classmethod
    def open(cls, folder: Path) -> EncodedCorpus:
        """Map what `CorpusWriter` wrote."""
        meta = json.loads((folder / META).read_text())
        source, target = (Flat.open(folder, f"{side}.ids", meta["dtypes"][side]) for side in SIDES)
        texts = None
        if meta["texts"]:
            texts = Flat.open(folder, "source.text", "uint8"), Flat.open(folder, "target.text", "uint8")
        return cls(source, target, texts, np.fromfile(folder / "target.counts", np.int64))

    def __len__(self) -> int:
        return len(self._source)

    def lengths(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Source and target lengths of pairs `start` to `stop`, (stop - start,) each."""
        source, target = (
            (np.diff(flat.offsets[start : stop + 1]) + 1).astype(np.int32)
            for flat in (self._source, self._target)
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

    def release(self) -> None:
        """Give back the memory of what was read from the files so far; what is read again is there again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for flat in (self._source, self._target, *(self._texts or ())):
                for file in flat.maps:
                    file.madvise(mmap.MADV_DONTNEED)

    def pair(self, index: int) -> tuple[Ids, Ids]:
        """Source and target ids of a pair, without BOS and EOS."""
        return self._source[index], self._target[index]

    def text(self, index: int) -> tuple[str, str]:
        """The raw text of a pair; kept only where subwords are sampled."""
        assert self._texts is not None
        source, target = self._texts
        return source[index].tobytes().decode(), target[index].tobytes().decode()

    @property
    def target_counts(self) -> NDArray[np.int64]:
        """How often each target id occurs, EOS included."""
        if self._target_counts is None:
            counts = np.bincount(self._target.values, minlength=EOS + 1).astype(np.int64)
            counts[EOS] += len(self)
            self._target_counts = counts
        return self._target_counts

    def unigram_entropy(self) -> float:
        """H = -sum p log p, nats per target token: the loss of one who knows only how often tokens occur."""
        counts = self.target_counts[self.target_counts > 0].astype(np.float64)
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())


def is_sound(folder: Path) -> bool:
    """Is every file there, with the size it was written with?"""
    try:
        sizes = json.loads((folder / META).read_text())["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def report_of(folder: Path) -> SplitReport:
    return SplitReport(**json.loads((folder / META).read_text())["report"])

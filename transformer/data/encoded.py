"""Encoded pairs in flat, memory-mapped arrays: the memory they take does not grow with the corpus.

Per side: `ids` (uint16 or uint32, one after the other, without BOS and EOS) and `offsets` (int64, pair i is
`ids[offsets[i]:offsets[i+1]]`). With subword sampling the raw text lies beside them in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

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

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], dtype: str) -> Flat:
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.fromiter((i for row in rows for i in row), dtype, int(offsets[-1]))
        return cls(values, offsets)

    @classmethod
    def open(cls, folder: Path, name: str, dtype: str) -> Flat:
        return cls(_map(folder / f"{name}.values", dtype), _map(folder / f"{name}.offsets", "int64"))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]


def _map(path: Path, dtype: str) -> NDArray[Any]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)  # the subclass is slow to slice


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
        self.source_lengths: NDArray[np.int32] = (np.diff(source.offsets) + 1).astype(np.int32)
        self.target_lengths: NDArray[np.int32] = (np.diff(target.offsets) + 1).astype(np.int32)
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
        return cls(source, target, texts, _map(folder / "target.counts", "int64"))

    def __len__(self) -> int:
        return len(self._source)

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


class CorpusWriter:
    """Appends encoded pairs to files in a directory; `close` writes the summary that makes them a corpus."""

    def __init__(self, folder: Path, vocabularies: tuple[int, int], texts: bool) -> None:
        self._folder, self._texts = folder, texts
        self._dtypes = {side: id_type(size) for side, size in zip(SIDES, vocabularies, strict=True)}
        self._counts = np.zeros(vocabularies[1], np.int64)
        self._pairs = 0
        self._stack = ExitStack()
        self._files: dict[str, tuple[BinaryIO, BinaryIO]] = {}
        self._ends: dict[str, int] = {}
        for name in [f"{side}.ids" for side in SIDES] + [f"{side}.text" for side in SIDES if texts]:
            values, offsets = self._create(f"{name}.values"), self._create(f"{name}.offsets")
            offsets.write(np.zeros(1, np.int64).tobytes())
            self._files[name], self._ends[name] = (values, offsets), 0

    def _create(self, name: str) -> BinaryIO:
        return self._stack.enter_context((self._folder / name).open("wb"))

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, ids: tuple[list[list[int]], list[list[int]]], texts: tuple[list[str], list[str]]) -> None:
        """Append a chunk: rows of ids, and the raw text of the same rows."""
        for number, side in enumerate(SIDES):
            flat = Flat.of(ids[number], self._dtypes[side])
            self._append(f"{side}.ids", flat)
            if side == "target":
                self._counts += np.bincount(flat.values, minlength=len(self._counts))
            if self._texts:
                self._append(f"{side}.text", Flat.of([text.encode() for text in texts[number]], "uint8"))
        self._counts[EOS] += len(ids[1])
        self._pairs += len(ids[1])

    def _append(self, name: str, flat: Flat) -> None:
        values, offsets = self._files[name]
        values.write(flat.values.tobytes())
        offsets.write((flat.offsets[1:] + self._ends[name]).tobytes())
        self._ends[name] += int(flat.offsets[-1])

    def close(self, report: SplitReport) -> None:
        self._stack.close()
        self._counts.tofile(self._folder / "target.counts")
        sizes = {path.name: path.stat().st_size for path in sorted(self._folder.iterdir())}
        meta = {
            "pairs": self._pairs,
            "dtypes": self._dtypes,
            "texts": self._texts,
            "report": asdict(report),
            "sizes": sizes,
        }
        (self._folder / META).write_text(json.dumps(meta, indent=1) + "\n")


def is_sound(folder: Path) -> bool:
    """Is every file there, with the size it was written with?"""
    try:
        sizes = json.loads((folder / META).read_text())["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def report_of(folder: Path) -> SplitReport:
    return SplitReport(**json.loads((folder / META).read_text())["report"])

"""The shared text as adapters read it, and batches of like length for loops that have none of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from .shapes import BATCH_SENTENCES, BATCH_TOKENS, TEST_SET, UNK

Pair = tuple[list[int], list[int]]


def pieces(file: Path) -> list[list[str]]:
    """A list of pieces for each line."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        return [line.rstrip("\n").split(" ") for line in lines]


def vocabulary(data: Path) -> dict[str, int]:
    """Ids of pieces: their line numbers in the vocabulary's file."""
    lines = (data / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[:-1]
    ids = {piece: i for i, piece in enumerate(lines)}
    assert len(ids) == len(lines)
    return ids


def pairs(data: Path) -> list[Pair]:
    """The training text as ids, without control ids."""
    ids = vocabulary(data)
    source, target = (
        [[ids.get(piece, UNK) for piece in line] for line in pieces(data / f"train.{side}")]
        for side in ("source", "target")
    )
    return list(zip(source, target, strict=True))


def test_batches(data: Path) -> list[list[list[int]]]:
    """The test set's sources as ids, longest first, in batches of 64 sentences."""
    ids = vocabulary(data)
    lines = [[ids.get(piece, UNK) for piece in line] for line in pieces(data / f"{TEST_SET}.source")]
    lines.sort(key=len, reverse=True)
    return [lines[start : start + BATCH_SENTENCES] for start in range(0, len(lines), BATCH_SENTENCES)]


def buckets(text: Sequence[Pair], seed: int = 1) -> Iterator[list[Pair]]:
    """Batches without end: sorted by length, cut at rows x longest side with its control id, shuffled.

    Sorted by the longer side, and then by how much longer that is the source's, up and down in turn: so
    neighbours are alike on both sides, and either side has little padding.
    """
    draw = random.Random(seed)

    def key(pair: Pair) -> tuple[int, int, float]:
        source, target = map(len, pair)
        longer, difference = max(source, target), source - target
        return longer, -difference if longer % 2 else difference, draw.random()

    while True:
        keyed = sorted((key(pair), i) for i, pair in enumerate(text))
        batches: list[list[Pair]] = [[]]
        longest = 0
        for _, i in keyed:
            source, target = text[i]
            longest = max(longest, len(source) + 1, len(target) + 1)
            if batches[-1] and longest * (len(batches[-1]) + 1) > BATCH_TOKENS:
                batches.append([])
                longest = max(len(source), len(target)) + 1
            batches[-1].append(text[i])
        draw.shuffle(batches)
        yield from batches


def padded(rows: Sequence[Sequence[int]], pad: int) -> list[list[int]]:
    longest = max(map(len, rows))
    return [[*row, *[pad] * (longest - len(row))] for row in rows]

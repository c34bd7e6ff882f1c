"""Prepare the shared text: our tokenizer, made once for each shape, and every corpus cut into its pieces.

    python -m benchmarks.peers.preparation small DIR

DIR gets `train`, `valid` and the test set, each as `.source` and `.target` with a sentence of pieces a line;
`vocabulary.txt` with a piece a line, its line number its id; `pieces.txt`, the same without the control
pieces; `tokenizer/`. Needs Multi30k in data/multi30k.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformer.data.dataset import DataConfig, prepare, read_parallel
from transformer.data.tokenizer import Tokenizer, TokenizerConfig

from .shapes import CONTROLS, LONGEST, SHAPES, TEST_SET

MULTI30K = Path("data", "multi30k")


def data_config(shape: str, tokenizer: Path | None = None) -> DataConfig:
    """The `data` section: joint BPE of the shape's size, or the one that lies in `tokenizer`."""
    cut = TokenizerConfig(
        vocab_size=SHAPES[shape].vocabulary, path=None if tokenizer is None else str(tokenizer)
    )
    return DataConfig(
        train=(str(MULTI30K / "train"),),
        valid=str(MULTI30K / "val"),
        max_length=LONGEST + 1,
        max_ratio=None,
        tokenizer=cut,
    )


def write(tokenizer: Tokenizer, directory: Path, name: str, pairs: list[tuple[str, str]]) -> None:
    """Write a corpus in pieces; pairs with a blank or an over-long side are left out."""
    rows = [tuple(tokenizer.encode_batch([pair[side] for pair in pairs])) for side in (0, 1)]
    kept = [i for i, both in enumerate(zip(*rows, strict=True)) if all(0 < len(x) <= LONGEST for x in both)]
    if name == TEST_SET and len(kept) != len(pairs):
        raise SystemExit(f"{len(pairs) - len(kept)} sentences of {name} are blank or too long")
    for side, ids in zip(("source", "target"), rows, strict=True):
        lines = [" ".join(tokenizer.pieces(ids[i])) for i in kept]
        if any(len(line.split()) != len(ids[i]) for line, i in zip(lines, kept, strict=True)):
            raise SystemExit(f"{name}: a piece holds white space, which other systems would cut at")
        (directory / f"{name}.{side}").write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")


def main() -> None:
    shape, directory = sys.argv[1], Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    config = data_config(shape)
    prepared = prepare(config, directory, 1, print)
    tokenizer = prepared.source_tokenizer
    names = [*CONTROLS, *tokenizer.vocabulary[len(CONTROLS) :]]
    (directory / "vocabulary.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    (directory / "pieces.txt").write_text("".join(f"{x}\n" for x in names[len(CONTROLS) :]), encoding="utf-8")
    for name, file, split in (
        ("train", "train", "train"),
        ("valid", "val", "valid"),
        (TEST_SET,) * 2 + ("test",),
    ):
        text = read_parallel(str(MULTI30K / file), config.source, config.target, split)  # type: ignore[arg-type]
        write(tokenizer, directory, name, text)


if __name__ == "__main__":
    main()

"""Hostile and odd input of every kind, and what has to hold for each case of it.

Each case goes through a command's own `main`, with streams of bytes: it has to end with a documented exit
code, with at most one error on stderr and no exception, and what reads lines has to write as many.
"""

from __future__ import annotations

import io
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformer.cli.train import main as train

WORDS = ("one", "two", "red", "house", "sees", "small", "cat")
CONFIG = """\
seed: 1
data:
  source: en
  target: de
  train: {folder}/train
  valid: {folder}/valid
  test: {{held: {folder}/valid}}
  tokenizer: {{vocab_size: 40, type: char}}
  cache: {folder}/cache
model: {{d_model: 8, heads: 2, d_ff: 8, encoder_layers: 1, decoder_layers: 1, max_length: 64}}
train: {{updates: 2, warmup: 1, batch_tokens: 400, validate_every: 2, average: 0, precision: float32,
  threads: 1, validate_bleu: false, metric: loss}}
decode: {{beam: 2, max_length: 8}}
"""
# `data` reads the text with a tokenizer that is there, or makes one
CORPUS = """\
data: {{train: {folder}/odd, valid: {folder}/{valid}, cache: {folder}/cache-{number}, max_unknown: 0.99,
  tokenizer: {{{tokenizer}}}}}
"""


@dataclass(frozen=True)
class Answer:
    """What a command did: exit code, the bytes of stdout, the text of stderr."""

    code: int
    out: bytes
    err: str


class Wrong(AssertionError):
    """A case did not end as it has to."""


def call(main: Callable[..., int], argv: Sequence[str], stdin: bytes = b"") -> Answer:
    """Run a command on bytes. What escapes from it escapes from here."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    kept = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO(stdin), "utf-8"), out, err
    try:
        code = main(list(argv))
        out.flush()
    except SystemExit as end:  # argparse
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdin, sys.stdout, sys.stderr = kept
    return Answer(code, out.buffer.getvalue(), err.getvalue())  # type: ignore[attr-defined]


def require(answer: Answer, codes: Sequence[int], lines: int | None = None) -> Answer:
    """A documented code, one error at most, none without a failure, and, after success, so many lines."""
    errors = sum(line.startswith("error: ") or ": error: " in line for line in answer.err.splitlines())
    if answer.code not in codes:
        raise Wrong(f"exit code {answer.code}, not one of {tuple(codes)}: {answer.err[-300:]}")
    if errors > 1 or (answer.code and answer.code != 3 and not errors) or "Traceback" in answer.err:
        raise Wrong(f"{errors} errors with exit code {answer.code}: {answer.err[-600:]}")
    if not answer.code and lines is not None and answer.out.count(b"\n") != lines:
        raise Wrong(f"{lines} lines in, {answer.out.count(10)} lines out")
    return answer


def lines_in(text: bytes) -> int:
    return text.count(b"\n") + (not text.endswith(b"\n") and bool(text))


class Bench:
    """A folder with text, a configuration, a run, and perhaps an export of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.export = folder, folder / "run", folder / "export"
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG.format(folder=folder))
        draw = random.Random(1)
        for name, count in (("train", 60), ("valid", 4)):
            text = "".join(" ".join(draw.choices(WORDS, k=4)) + ".\n" for _ in range(count))
            for side in ("en", "de"):
                (folder / f"{name}.{side}").write_text(text)
        require(call(train, [str(self.config), "--run-dir", str(self.run)]), [0])
        self.kept = {path: path.read_bytes() for path in self.run.rglob("*") if path.is_file()}
        self.number = 0

    def exported(self) -> Path:
        """The run as an export, made when it is first asked for."""
        if not self.export.exists():
            from transformer.cli.export import main as export

            require(call(export, [str(self.run), str(self.export), "--to", "ctranslate2"]), [0])
            self.kept |= {path: path.read_bytes() for path in self.export.rglob("*") if path.is_file()}
        return self.export

    def restore(self) -> None:
        """Make the run what it was before it was resumed."""
        shutil.rmtree(self.run)
        for path, content in self.kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    @contextmanager
    def damaged(self, path: Path, content: bytes) -> Iterator[None]:
        """A context in which one file holds other bytes."""
        path.write_bytes(content)
        try:
            yield
        finally:
            path.write_bytes(self.kept[path])

    def file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

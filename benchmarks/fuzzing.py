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
from typing import Any

from hypothesis import strategies as st

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


# --- bytes

ODD = (
    *(
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\x00",
        b"\r",
        b"\r\n",
        b"\n",
        b"\n\n",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
    ),
    *("\u2028".encode(), "\x85".encode(), "\u2581".encode(), "\U0001f600".encode(), "e\u0301".encode()),
    *(
        b" ",
        b"\t",
        b"<s>",
        b"</s>",
        b"<pad>",
        b"\x01<pad>",
        b"a" * 400,
        b"one two " * 60,
        b"one",
        b"red house\n",
    ),
)
texts = st.lists(st.one_of(st.sampled_from(ODD), st.binary(max_size=6)), max_size=14).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn, content: bytes, odd: Sequence[bytes] = ODD) -> bytes:
    """`content` cut short, with bytes flipped, put in or taken out; or something else altogether."""
    size = len(content)
    place = st.integers(0, max(size - 1, 0))
    kind = draw(st.sampled_from(("cut", "flip", "flip", "insert", "delete", "other", "near the start")))
    if kind == "cut":
        return content[: draw(place)]
    if kind == "other":
        return draw(st.one_of(st.binary(max_size=60), st.sampled_from(odd)))
    if kind == "insert":
        at = draw(place)
        return (
            content[:at]
            + draw(st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from(odd)))
            + content[at:]
        )
    if kind == "delete":
        at = draw(place)
        return content[:at] + content[at + draw(st.integers(1, 40)) :]
    if kind == "near the start":  # headers
        place = st.integers(0, min(size - 1, 200))
    changed = bytearray(content)
    for at, value in draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=6)):
        if size:
            changed[at] = value
    return bytes(changed)


# --- configurations

VALUES = (
    *(
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!!binary aGk=",
        "&a [*a]",
        "*a",
    ),
    *(
        ".inf",
        ".nan",
        "-1",
        "0",
        "1e999",
        "0x1f",
        "010",
        "1:30",
        "9" * 40,
        "-.5",
        "1e-400",
        "true",
        "no",
        "~",
        "''",
    ),
    *(
        "[",
        "{",
        "[1, 2]",
        "{a: 1}",
        "[[]]",
        "{? [1]: 2}",
        "'\\0'",
        '"\\0"',
        '"\\ud800"',
        "2016-07-01",
        "=",
        "<<",
    ),
    *(
        "../../../etc/passwd",
        "/dev/null",
        "/dev/zero",
        "demo",
        "pre",
        "post",
        "layer",
        "rms",
        "a: b: c",
        "|\n  x",
    ),
    *("{default: pre, encoder: post}", "{decoder.1-2: rms}", "- 1", "%TAG", "\t", "[" * 500, "{a: " * 300),
)
KEYS = (
    *(
        "seed",
        "run_dir",
        "data.train",
        "data.valid",
        "data.test",
        "data.test.x",
        "data.source",
        "data.max_length",
    ),
    *("data.max_ratio", "data.tokenizer", "data.tokenizer.vocab_size", "data.tokenizer.type", "data.cache"),
    *(
        "model.placement",
        "model.norm",
        "model.norm.encoder",
        "model.d_model",
        "model.heads",
        "model.encoder_layers",
    ),
    *(
        "model.dropout",
        "model.max_length",
        "model.positions",
        "model.attention_window",
        "model.options",
        "model",
    ),
    *(
        "train.lr",
        "train.warmup",
        "train.betas",
        "train.schedule",
        "train.drops",
        "train.updates",
        "train.epochs",
    ),
    *(
        "train.precision",
        "train.accumulate",
        "train.threads",
        "train",
        "decode.beam",
        "decode.alpha",
        "decode.n_best",
    ),
    *(
        "decode.search",
        "decode.max_length",
        "decode.max_length_ratio",
        "decode",
        "extends",
        "nonsense",
        "data.a.b.c",
    ),
    *(
        "model.placement.decoder.1-3",
        "model.norm.decoder.self_attention",
        "a..b",
        "",
        ".",
        "seed.x",
        "model.d_modle",
    ),
)
plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(VALUES)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def structured(draw: st.DrawFn) -> bytes:
    """Known keys, and some unknown, with values of every kind, as YAML."""
    import yaml

    tree: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=5)):
        at, (*parents, last) = tree, key.split(".")
        for parent in parents:
            at[parent] = at = at[parent] if isinstance(at.get(parent), dict) else {}
        at[last] = draw(plain)
    text: str = yaml.safe_dump(tree, allow_unicode=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass")


overrides = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(KEYS), st.one_of(st.sampled_from(VALUES), st.text(max_size=12))).map(
            "=".join
        ),
        st.text(max_size=20),
    ),
    min_size=1,
    max_size=4,
)

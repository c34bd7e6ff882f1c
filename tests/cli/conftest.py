"""A tiny parallel text, a tiny configuration, and runs trained on it once for all tests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from transformer.cli.train import main as train

WORDS = {
    "one": "eins",
    "two": "zwei",
    "red": "rot",
    "house": "Haus",
    "sees": "sieht",
    "small": "klein",
    "cat": "Katze",
}
TINY = """\
seed: 1
data:
  source: en
  target: de
  train: {folder}/train
  valid: {folder}/valid
  test: {{held: {folder}/valid}}
  tokenizer: {{vocab_size: 60}}
  cache: {folder}/cache
model: {{d_model: 16, heads: 2, d_ff: 32, encoder_layers: 1, decoder_layers: 1}}
train:
  updates: 10
  warmup: 2
  lr: 1e-2
  batch_tokens: 200
  validate_every: 5
  average: 2
  log_every: 5
  precision: float32
decode: {{beam: 2, max_length: 12}}
"""


def write_text(prefix: Path, pairs: int, seed: int) -> None:
    draw = random.Random(seed)
    sentences = [draw.choices(list(WORDS), k=draw.randint(2, 6)) for _ in range(pairs)]
    for side, translate in (("en", str), ("de", WORDS.__getitem__)):
        lines = [" ".join(translate(word) for word in sentence) + "." for sentence in sentences]
        prefix.with_suffix(f".{side}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train and valid text and tiny.yaml."""
    folder = tmp_path_factory.mktemp("text")
    write_text(folder / "train", 200, seed=1)
    write_text(folder / "valid", 8, seed=2)
    (folder / "tiny.yaml").write_text(TINY.format(folder=folder), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def config(folder: Path) -> str:
    return str(folder / "tiny.yaml")


@pytest.fixture(scope="session")
def run(folder: Path, config: str) -> Path:
    """A finished run. Tests only read it."""
    run = folder / "run"
    assert train([config, "--run-dir", str(run)]) == 0
    return run


@pytest.fixture(scope="session")
def other_run(folder: Path, config: str) -> Path:
    """A second finished run with the same vocabulary and another placement."""
    run = folder / "other"
    assert (
        train([config, "--run-dir", str(run), "--placement", "post", "--norm", "rms", "--warmup", "0"]) == 0
    )
    return run

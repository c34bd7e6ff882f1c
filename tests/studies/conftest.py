"""A study of two placements on a tiny text, run once for all tests."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from transformer.cli.study import main

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
WORDS = {"one": "eins", "two": "zwei", "red": "rot", "house": "Haus", "sees": "sieht", "cat": "Katze"}
BASE = """\
data:
  {{train: {folder}/text, valid: {folder}/text, test: {{held: {folder}/text}}, cache: {folder}/cache,
   tokenizer: {{vocab_size: 60}}}}
model: {{d_model: 8, heads: 1, d_ff: 8, encoder_layers: 1, decoder_layers: 1, tie_embeddings: all}}
train:
  {{updates: 6, warmup: 2, lr: 1e-2, batch_tokens: 200, validate_every: 3, validate_bleu: false, metric: loss,
   average: 0, log_every: 2, threads: 1, precision: float32}}
decode: {{search: greedy, beam: 1, max_length: 3}}
"""
STUDY = """\
name: small
base: base.yaml
axes:
  model.placement: [post, pre]
seeds: [1]
questions:
  - {ask: "Is pre better?", this: {model.placement: pre}, that: {model.placement: post}, expect: better}
"""


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "transformer", "study", *words]


@pytest.fixture
def start_study(starts_warm: None) -> Callable[..., subprocess.Popen[str]]:
    """Start the command in a process of its own."""

    def start(*words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(command(*words), stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)

    return start


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, base.yaml and study.yaml."""
    folder = tmp_path_factory.mktemp("study")
    draw = random.Random(1)
    sentences = [draw.choices(list(WORDS.items()), k=draw.randint(2, 6)) for _ in range(200)]
    for side, ending in enumerate(("en", "de")):
        lines = [" ".join(pair[side] for pair in sentence) + ".\n" for sentence in sentences]
        (folder / f"text.{ending}").write_text("".join(lines), encoding="utf-8")
    (folder / "base.yaml").write_text(BASE.format(folder=folder), encoding="utf-8")
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def done(folder: Path, warm_python: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The study after its first run, in this process: where its runs are, and what was said."""
    words = [str(folder / "study.yaml"), "--runs", str(folder / "runs")]
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(sys, "executable", warm_python)
        code = main(words)
    return folder / "runs", subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

"""What every trial of a fault needs: a small training, and the straight run to compare with."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from fault_rows import EXACT, REFUSED, Row
from fault_running import Running

from transformer.core.errors import CheckpointError
from transformer.training.checkpoint import read_weights

WORDS = ["one", "two", "red", "house", "sees", "small", "cat", "old", "green", "bird", "has", "no"]
VALID = 12  # lines of the validation text
CONFIG = """\
seed: 1
data:
  source: en
  target: de
  train: {folder}/train
  valid: {folder}/valid
  test: {{held: {folder}/valid}}
  tokenizer: {{vocab_size: 70, sampling: 0.1}}
  cache: {folder}/cache
model: {{d_model: 32, heads: 2, d_ff: 64, encoder_layers: 1, decoder_layers: 1}}
train:
  updates: {updates}
  warmup: 10
  lr: 3e-3
  schedule: plateau
  plateau_patience: 1
  factor: 0.5
  batch_tokens: 200
  accumulate: 2
  validate_every: 20
  save_every: 5
  log_every: 7
  probe_every: 10
  patience: 9
  average: 2
  threads: 1
  precision: float32
decode: {{beam: 2, max_length: 12}}
"""
CLOCKS = ("seconds", "tokens_per_second", "target_tokens_per_second", "commit", "command")
REMEDIES = (
    "put back",
    "--resume",
    "choose another",
    "delete",
    "take out",
    "make it",
    "wait for it",
    "cannot be written",
)


class Bench:
    """A folder with a text, a configuration and the straight run; trials get directories of their own."""

    short = False  # is it to take seconds, where a fault can?

    def __init__(self, folder: Path, updates: int = 60, seed: int = 1) -> None:
        self.folder, self.random, self.count = folder, random.Random(seed), 0
        self.updates = updates
        self.config = folder / "faults.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        for name, pairs in (("train", 400), ("valid", VALID)):
            lines = [" ".join(self.random.choices(WORDS, k=self.random.randint(2, 8))) for _ in range(pairs)]
            (folder / f"{name}.en").write_text("".join(f"{line}\n" for line in lines))
            (folder / f"{name}.de").write_text("".join(f"{line[::-1]}\n" for line in lines))
        self.config.write_text(CONFIG.format(folder=folder, updates=updates))

    def fresh(self) -> Path:
        """A directory that is not there yet."""
        self.count += 1
        return self.folder / f"run{self.count}"

    def start(self, run: Path, *more: str, **limits: Any) -> Running:
        return Running("train", [str(self.config), "--run-dir", str(run), *more], self._said(run), **limits)

    def resume(self, run: Path, *more: str, **limits: Any) -> Running:
        return Running("train", ["--resume", str(run), *more], self._said(run), **limits)

    def go_on(self, run: Path) -> Running:
        """What the user does next: resume, or where there is no run yet, start again."""
        return self.resume(run) if (run / "config.yaml").exists() else self.start(run)

    def _said(self, run: Path) -> Path:
        return self.folder / f"{run.name}-{time.monotonic_ns()}.txt"

    @cached_property
    def straight(self) -> Path:
        """The run that nothing happened to."""
        self.warm()
        run = self.folder / "straight"
        running = self.start(run)
        assert running.wait() == 0, running.text()
        self.seconds = time.monotonic() - running.began
        return run

    def warm(self) -> None:
        """Fill the cache of encoded text, and start the server: a straight run is timed after that."""
        run = self.fresh()
        running = self.start(run, "--set", "train.updates=1")
        assert running.wait() == 0, running.text()
        shutil.rmtree(run)

    def judge(self, running: Running, run: Path, row: Row, besides: Sequence[str] = ()) -> None:
        """Add what came of going on to the row; a good directory is deleted."""
        code, text = running.wait(), running.text()
        error = next((line for line in text.splitlines() if line.startswith("error: ")), "")
        if "Traceback" in text:
            return row.add("TRACEBACK", text[-1500:])
        if code == 0:
            try:
                wrong = difference(self.straight, run, besides)
            except (CheckpointError, OSError, ValueError) as unreadable:
                wrong = str(unreadable)
            if wrong:
                return row.add("OTHER NUMBERS", f"{run}: {wrong}")
            row.add(
                EXACT, next((x for x in text.splitlines() if x.startswith(("cannot be used", "note:"))), "")
            )
        elif code in (1, 2) and error and any(word in error for word in REMEDIES):
            row.add(REFUSED, error)
        else:
            return row.add("UNCLEAR", f"exit code {code}: {text[-500:]}")
        shutil.rmtree(run, ignore_errors=True)

    def cut(self, update: int) -> Path:
        """A run that was killed once it had saved that update."""
        run = self.fresh()
        running = self.start(run)
        while running.alive and saved_update(run) < update:
            time.sleep(0.001)
        running.signal(9)
        running.wait()
        return run


def saved_update(run: Path) -> int:
    """The update of checkpoints/last, 0 while there is none."""
    try:
        return int(json.loads((run / "checkpoints" / "last" / "manifest.json").read_text())["update"])
    except (OSError, ValueError, KeyError):
        return 0


def difference(straight: Path, run: Path, besides: Sequence[str] = ()) -> str:
    """What is different in two finished runs but clocks; `besides` are files that do not count."""
    ours, theirs = (json.loads((r / "checkpoints/last/manifest.json").read_text()) for r in (run, straight))
    if ours["state"] != theirs["state"]:
        return f"state {ours['state'][:16]}, straight {theirs['state'][:16]}"
    names, expected = ({str(p.relative_to(r)) for p in r.rglob("*.safetensors")} for r in (run, straight))
    names = {name for name in names if "/damaged/" not in f"/{name}"}
    if names != expected:
        return f"weights files {sorted(names ^ expected)}"
    for name in sorted(names):
        if "previous/" in name:  # after a fault the state before the last may be another one
            continue
        (one, header), (other, told) = (read_weights(r / name) for r in (run, straight))
        for each in (header, told):
            each.pop("commit", None)  # the checkout may have moved on
        if header != told or one.keys() != other.keys():
            return f"{name}: other names or another header"
        if not all(torch.equal(one[n], other[n]) for n in one):
            return f"{name}: other weights"
    for name in ("metrics.jsonl", "result.json", "data.json", "tests/held.hyp"):
        if name not in besides and _plain(run / name) != _plain(straight / name):
            return f"{name}: {_plain(run / name)[-200:]} and not {_plain(straight / name)[-200:]}"
    return ""


def _plain(path: Path) -> str:
    """A file without its clocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".hyp":
        return text
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    return "\n".join(json.dumps({k: v for k, v in json.loads(x).items() if k not in CLOCKS}) for x in lines)

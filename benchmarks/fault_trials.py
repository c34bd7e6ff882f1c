"""What every trial of a fault needs: a small training, its processes, and the straight run to compare with.

A fault is a function of a `Bench` and a number of tries that returns a `Row`; `@fault("...")` puts it into
the table of faults.py.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from transformer.core.errors import CheckpointError
from transformer.training.checkpoint import read_weights

ROOT = Path(__file__).parents[1]
WORDS = ["one", "two", "red", "house", "sees", "small", "cat", "old", "green", "bird", "has", "no"]
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
EXACT, REFUSED, ENDED = "went on exactly", "refused with a remedy", "ended as documented"
SAME = "went on in parts, the same to rounding"
CRASHED = "crashed in a library that does not check whether it got memory; resumed, the same"
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


@dataclass
class Row:
    """What came of a fault: how often it was tried, an outcome to how many, and examples of what was said."""

    outcomes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def tried(self) -> int:
        return sum(self.outcomes.values())

    @property
    def bad(self) -> dict[str, int]:
        """Outcomes that may not be."""
        good = (EXACT, REFUSED, ENDED, SAME, CRASHED)
        return {name: count for name, count in self.outcomes.items() if name not in good}

    def add(self, outcome: str, example: str = "") -> None:
        self.outcomes[outcome] += 1
        if example:
            self.examples.setdefault(outcome, example)


Fault = Callable[["Bench", int], Row]
FAULTS: dict[str, Fault] = {}


def fault(name: str) -> Callable[[Fault], Fault]:
    """Put a fault into the table."""

    def register(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return register


Main = Callable[[list[str]], int]


def _child(
    command: str,
    argv: Sequence[str],
    said: str,
    file_limit: int | None,
    room: int | None,
    work: Callable[[Main, list[str]], int] | None,
) -> None:
    """A process's work: one command of the toolkit, its output in a file."""
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    if file_limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if room is not None:
        import resource

        importlib.import_module("torch._dynamo")  # optimizers do so when first used
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + room, held + room))
    sys.argv[0] = f"{command}.py"
    import transformer

    assert Path(transformer.__file__).is_relative_to(ROOT)
    main = importlib.import_module(f"transformer.cli.{command}").main
    sys.exit(work(main, list(argv)) if work else main(list(argv)))


class Running:
    """A process of the toolkit, forked from a server that has imported torch already."""

    def __init__(
        self,
        command: str,
        argv: Sequence[str],
        said: Path,
        file_limit: int | None = None,
        room: int | None = None,
        work: Callable[[Main, list[str]], int] | None = None,
    ) -> None:
        """`file_limit`: bytes that a file may have; `room`: bytes of memory besides what is held.

        `work` gets the command and its arguments, and the exit code is what it returns.
        """
        said.unlink(missing_ok=True)
        self.said, self.began, self.at = said, time.monotonic(), time.time()
        os.environ["PYTHONPATH"] = str(ROOT)  # the server imports this checkout, wherever it is started
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["transformer.cli.train", "torch.utils.tensorboard", "torch._dynamo"])
        given = (command, [*argv], str(said), file_limit, room, work)
        self.process = context.Process(target=_child, args=given)
        self.process.start()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        if self.alive:
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = 300.0) -> int:
        """The exit code; AssertionError after so many seconds."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s: {self.text()[-500:]}")
        return self.process.exitcode

    def seconds(self) -> float:
        """From the start to the last line that it wrote."""
        return self.said.stat().st_mtime - self.at

    def text(self) -> str:
        return self.said.read_text(encoding="utf-8", errors="replace") if self.said.exists() else ""


class Bench:
    """A folder with a text, a configuration and the straight run; trials get directories of their own."""

    def __init__(self, folder: Path, updates: int = 60, seed: int = 1) -> None:
        self.folder, self.random, self.count = folder, random.Random(seed), 0
        self.updates = updates
        self.config = folder / "faults.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        for name, pairs in (("train", 400), ("valid", 12)):
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
            except (CheckpointError, OSError, ValueError) as error:
                wrong = str(error)
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


def children(process: int) -> list[int]:
    """The processes that one has started, on Linux."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(stat.parent.name))
    return sorted(found)


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

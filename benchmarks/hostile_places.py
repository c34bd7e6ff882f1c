"""What has the name of a run's file and is none, and states that unfold to far more than they hold."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fuzzing import Bench, call
from hostile_sizes import Row, bounded, measured, row

from transformer.cli.average import main as average
from transformer.cli.compare import main as compare
from transformer.cli.export import main as export
from transformer.cli.probe import main as probe
from transformer.cli.train import main as train
from transformer.cli.translate import main as translate
from transformer.training.manifest import MANIFEST

LAST = "checkpoints/last"
KEPT = "checkpoints/update-*.safetensors"


def laughing() -> dict[str, bytes]:
    """Pickles of 2^60 values that are held by reference: as a value, and as a key, which loading hashes."""
    nested: Any = [1]
    for _ in range(60):
        nested = [nested, nested]
    key: Any = (1,)
    for _ in range(60):
        key = (key, key)
    tuples = pickle.dumps(key, 2)[2:-1]  # without its first and last operation
    return {
        "lists within a counter": pickle.dumps({"update": 2, "progress": {"x": nested}}, 2),
        "lists under an unknown key": pickle.dumps({"update": 2, "unknown": nested}, 2),
        "a key of tuples": b"\x80\x02}" + tuples + b"K\x01s.",
    }


def as_state(pickled: bytes) -> bytes:
    """A file as torch writes it, of a pickle that Python could not make: it would hash the key."""
    plain, made = io.BytesIO(), io.BytesIO()
    torch.save({}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


def unfolding(bench: Bench) -> Iterator[Row]:
    """States without a manifest, as an older version wrote them, that are walked for ever."""
    last = bench.run / LAST
    for name, pickled in laughing().items():
        (last / MANIFEST).unlink()
        (last / "trainer.pt").write_bytes(as_state(pickled))
        fault = f"trainer.pt of {len(pickled)} bytes that unfold to 2^60 values: {name}"
        yield bounded(fault, measured(["train", "--resume", str(bench.run)]), 1)
        bench.restore()


EVERY = ("train", "translate", "compare", "probe", "average", "export")
MODEL = ("train", "translate", "probe", "export")
READERS = {  # of each file of a run
    "config.yaml": EVERY,
    "model.safetensors": MODEL,
    "tokenizer/joint.model": MODEL,
    **dict.fromkeys(("tokenizer/trained_from.json", "metrics.jsonl", "data.json", "log.txt"), EVERY[:1]),
    **dict.fromkeys(("torchrun.job", "checkpoints/best.safetensors"), EVERY[:1]),
    **dict.fromkeys(("result.json", "tests/held.hyp"), ("train", "compare")),
    "checkpoints/update-0000002.safetensors": ("train", "average"),
    **dict.fromkeys((f"{LAST}/{MANIFEST}", f"{LAST}/trainer.pt"), ("train", "probe")),
    f"{LAST}/model.safetensors": ("train", "probe", "average"),
}


# In a process of its own: who waits for a pipe in C may keep all threads of Python from running.
RELEASE = """\
import os, stat, sys, time
while True:
    time.sleep(0.5)
    try:
        writer = os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # nobody reads
        continue
    if stat.S_ISFIFO(os.fstat(writer).st_mode):  # it has not been replaced
        print("waited for", flush=True)
    os.close(writer)
"""


@contextmanager
def instead(path: Path, kind: str) -> Iterator[list[str]]:
    """A pipe or a directory has a file's name. Who waits for the pipe is noted afterwards, and let go."""
    waited: list[str] = []
    path.unlink(missing_ok=True)
    if kind == "directory":
        path.mkdir()
        yield waited
        return
    os.mkfifo(path)
    command = [sys.executable, "-S", "-c", RELEASE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield waited
        finally:
            process.kill()
            waited += process.communicate()[0].splitlines()


def places(bench: Bench) -> Iterator[Row]:
    """A pipe or a directory in the place of each file of a run, for every command that reads runs."""
    run, out = str(bench.run), str(bench.folder / "out")
    commands: dict[str, Callable[[], Any]] = {
        "train": lambda: call(train, ["--resume", run, "--set", "train.updates=3"]),
        "translate": lambda: call(translate, [run], b"one\n"),
        "compare": lambda: call(compare, [run, run]),
        "probe": lambda: call(probe, ["sharpness", run, "--checkpoint", "last"]),
        "average": lambda: call(average, [run, "last", *(path.stem for path in bench.run.glob(KEPT))]),
        "export": lambda: call(export, [run, out, "--to", "ctranslate2", "--force"]),
    }
    for kind in ("pipe", "directory"):
        for name, readers in READERS.items():
            codes, faults = {}, []
            for command in readers:
                with instead(bench.run / name, kind) as waited:
                    answer = commands[command]()
                codes[command] = answer.code
                said = answer.err.strip().splitlines()[-1] if answer.err.strip() else ""
                if waited or answer.code not in (0, 1) or (answer.code == 1 and name not in answer.err):
                    faults.append(f"{command}: {answer.code} {said}")
                bench.restore()
            outcome = "exit codes " + ", ".join(f"{command} {code}" for command, code in codes.items())
            yield row(f"a {kind} as {name}", not faults, "; ".join([outcome, *faults]), len(readers))

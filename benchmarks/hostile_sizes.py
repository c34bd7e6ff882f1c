"""What would fill the memory, or never end: long lines, numbers beyond all measure, endless files."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fuzzing import Bench, call

from transformer.cli.train import main as train
from transformer.cli.translate import main as translate

ROOT = Path(__file__).parents[1]
Row = tuple[str, int, str]
MOST = 1_500  # MB of a process that reads a line of 1 GB; torch and a model alone take 300
SLOWEST = 300  # seconds of the same


def row(fault: str, fine: bool, outcome: str, tried: int = 1) -> Row:
    return fault, tried, outcome if fine else f"FAILED: {outcome}"


def measured(
    arguments: list[str], feed: Callable[[Any], None] | None = None
) -> tuple[int, float, float, bytes, str]:
    """(exit code, peak MB, seconds, stdout, stderr) of a command in a process of its own."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "transformer", *arguments],
        stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    limit = threading.Timer(SLOWEST, process.kill)
    limit.start()
    answers: dict[str, bytes] = {}
    readers = [
        threading.Thread(target=lambda name=name: answers.update({name: getattr(process, name).read()}))
        for name in ("stdout", "stderr")
    ]
    for reader in readers:
        reader.start()
    if feed:
        try:
            feed(process.stdin)
        except BrokenPipeError:
            pass
        finally:
            process.stdin.close()  # type: ignore[union-attr]
    for reader in readers:
        reader.join()
    process.stdout.close()  # type: ignore[union-attr]
    process.stderr.close()  # type: ignore[union-attr]
    _, status, usage = os.wait4(process.pid, 0)
    limit.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    return process.returncode, usage.ru_maxrss / 1024, seconds, answers["stdout"], answers["stderr"].decode()


def ending(err: str, most: int) -> str:
    """The last words of what was said, of so many characters at most, without the place of the bench."""
    said = re.sub(rf"{re.escape(tempfile.gettempdir())}/tmp\w+/", "", err).strip().splitlines()[-1]
    return said if len(said) <= most else f"... {said[-most:].partition(' ')[2]}"


def bounded(
    fault: str, found: tuple[int, float, float, bytes, str], code: int, lines: int | None = None
) -> Row:
    ended, megabytes, seconds, out, err = found
    fine = ended == code and megabytes < MOST and seconds < SLOWEST and "Traceback" not in err
    counted = ""
    if lines is not None:
        fine = fine and out.count(b"\n") == lines
        counted = f"{out.count(10)} of {lines} lines out, "
    said = f" ({ending(err, 90)})" if ended and err.strip() else ""
    return row(fault, fine, f"exit code {ended}, {counted}{megabytes:,.0f} MB at most, {seconds:.0f} s{said}")


def long_lines(bench: Bench) -> Iterator[Row]:
    """Lines of 100,000 words and of 1 GB, translated."""
    run = str(bench.run)
    words = b"one\n" + b"red house " * 50_000 + b"\ntwo\n"
    for name, flags in (("", []), (", --json", ["--json"])):
        found = measured(["translate", run, *flags], lambda pipe: pipe.write(words))
        yield bounded(f"a line of 100,000 words translated{name}", found, 0, 3)
    block = b"red house " * 100_000

    def gigabyte(pipe: Any) -> None:
        pipe.write(b"one\n")
        for _ in range(1000):
            pipe.write(block)

    yield bounded(
        "1 GB without a line end from a pipe, translated", measured(["translate", run], gigabyte), 0, 2
    )
    sparse = bench.folder / "sparse"
    with open(sparse, "wb") as file:
        file.truncate(1 << 30)
    found = measured(["translate", run, "--input", str(sparse)])
    yield bounded("1 GB of NUL without a line end as --input, translated", found, 0, 1)
    two = bench.file("two.txt", b"one\ntwo\n")
    for name in ("--prefix", "--score", "--reference"):
        found = measured(["translate", run, "--input", two, name, "-"], gigabyte)
        yield bounded(f"1 GB without a line end as {name}", found, 1)


LONG = {
    "a line of 100,000 words": b"red house " * 50_000,
    "a line of 16 MB": b"red house " * 1_600_000,
    "a line of 1 GB": None,
}


def long_text(bench: Bench, line: bytes | None) -> dict[str, str]:
    """Configurations of a text that ends with that line, or one of 1 GB, by what they make of it."""
    shared = f"data: {{train: {bench.folder}/long, valid: {bench.folder}/valid, max_unknown: 0.9"
    shared += f", cache: {bench.folder}/cache-long, tokenizer: "
    good = (bench.folder / "train.en").read_bytes()
    for side in ("en", "de"):
        with open(bench.folder / f"long.{side}", "wb") as file:
            file.write(good)
            if line is None:
                file.truncate(1 << 30)
            else:
                file.write(line + b"\n")
    return {
        "training text": bench.file("long.yaml", f"{shared}{{path: {bench.run}/tokenizer}}}}".encode()),
        "the text of a new tokenizer": bench.file("own.yaml", f"{shared}{{vocab_size: 40}}}}".encode()),
    }


def long_training(bench: Bench) -> Iterator[Row]:
    """The same as training text."""
    for name, line in LONG.items():
        for what, config in long_text(bench, line).items():
            yield bounded(f"{name} in {what}", measured(["data", config]), 1 if line is None else 0)
    for side in ("en", "de"):
        (bench.folder / f"long.{side}").unlink()


def endless_header(bench: Bench) -> AbstractContextManager[None]:
    """Weights that announce a header of 2^62 bytes."""
    return bench.damaged(bench.run / "model.safetensors", struct.pack("<Q", 1 << 62) + b"{}")


def limits(bench: Bench) -> Iterator[Row]:
    """Numbers beyond all measure, and files that never end."""
    run = str(bench.run)
    for flags in (
        *(["--beam", "1000000000"], ["--search", "sampling", "--json", "--n-best", "1000000000"]),
        *(["--max-length", "1000000000"], ["--batch-tokens", "1000000000000"]),
        *(["--set", "decode.chunk_lines=1000000000000"], ["--set", "decode.max_source_length=1000000000"]),
    ):
        answer = call(translate, [run, *flags], b"one\n")
        yield row(f"translate.py {' '.join(flags)}", answer.code == 2, "refused, exit code 2")
    yield bounded("/dev/zero as configuration", measured(["train", "/dev/zero", "--check"]), 2)
    yield bounded("/dev/zero as weights", measured(["translate", run, "--checkpoint", "/dev/zero"]), 1)
    with endless_header(bench):
        yield bounded("weights that announce a header of 2^62 bytes", measured(["translate", run]), 1)
    flags = ["--beam", "1000", "--max-length", "100000", "--set", "decode.max_length_ratio=1e9"]
    config = bench.config.read_text().replace("decoder_layers: 1", "decoder_layers: 100")
    config = config.replace("updates: 2", "updates: 1")
    run = str(bench.folder / "deep")
    assert not call(train, [bench.file("deep.yaml", config.encode()), "--run-dir", run]).code
    found = measured(["translate", run, *flags], lambda pipe: pipe.write(b"one\n"))
    yield bounded("100 layers, 1,000 hypotheses of up to 100,000 subwords", found, 2)


def oversized(bench: Bench) -> Iterator[Row]:
    """Files of a run of 8 GB that begin as they were written; of its state it has no other."""
    more = ["train", "--resume", str(bench.run), "--set", "train.updates=3"]
    for name, code in (
        *(("config.yaml", 1), ("tokenizer/joint.model", 1), ("tokenizer/trained_from.json", 1)),
        *(("checkpoints/last/manifest.json", 1), ("checkpoints/last/trainer.pt", 1)),
    ):
        os.truncate(bench.run / name, 1 << 33)
        try:
            yield bounded(f"8 GB as run/{name}, resumed", measured(more), code)
        finally:
            bench.restore()

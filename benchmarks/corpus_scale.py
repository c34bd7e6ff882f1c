"""What preparing and training cost as the corpus grows: time, memory, disk. The text is made up here.

    python benchmarks/corpus_scale.py --write docs/results/corpus_scale.md
    python benchmarks/corpus_scale.py --pairs 50000,1000000 --rounds 3 --checkout ../before

Makes pseudo-text of each size in a temporary folder (100 bytes a pair), prepares it, trains a tiny model
for a few updates with the cache warm, and walks through an epoch's batches; each in a process of its own.
Rounds go through the sizes in turn. `--checkout` measures the package of another checkout on the same text.
Five million pairs take about ten minutes on two idle cores and 2 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
LANGUAGES = ("en", "de")
WORDS, SHIFT = 50_000, 2.7  # of the vocabulary; word k has frequency 1 / (k + shift), Zipf and Mandelbrot
LONGEST, AT_ONCE = 60, 100_000
BYTES = 400  # of disk a pair takes at most, text and cache
MEGABYTE = 1 << 20
MODEL = {"d_model": 64, "heads": 2, "d_ff": 128, "encoder_layers": 1, "decoder_layers": 1}
TRAIN = {
    "updates": 5,
    "validate_every": 1_000_000,
    "metric": "loss",
    "validate_bleu": False,
    "average": 0,
    "threads": 1,
}


def words(language: str) -> np.ndarray:
    """Made-up words, the most frequent ones shortest; no two alike."""
    onsets, rimes = {"en": ("bdfgklmnprstvwz", "aeiou"), "de": ("bdfghklmnrstwz", "aeiouäöü")}[language]
    syllables = [onset + rime for onset in onsets for rime in rimes]
    spelled = []
    for number in range(WORDS):
        rest, word = divmod(number, len(syllables))[0], syllables[number % len(syllables)]
        while rest:
            rest -= 1
            word += syllables[rest % len(syllables)]
            rest //= len(syllables)
        spelled.append(word)
    return np.array(spelled, dtype=object)


def write_text(prefix: Path, pairs: int, seed: int) -> None:
    """Sentence k of a side has about the words of sentence k of the other, in another order."""
    generator = np.random.default_rng(seed)
    cumulated = np.cumsum(1 / (np.arange(WORDS) + SHIFT))
    vocabularies = [words(language) for language in LANGUAGES]
    with open(f"{prefix}.en", "w") as source, open(f"{prefix}.de", "w") as target:
        for start in range(0, pairs, AT_ONCE):
            count = min(AT_ONCE, pairs - start)
            lengths = np.clip(generator.lognormal(2.2, 0.45, count), 2, LONGEST).astype(int)
            drawn = np.searchsorted(cumulated, generator.random(int(lengths.sum())) * cumulated[-1])
            ends = np.cumsum(lengths)
            other = generator.integers(-1, 2, count)  # the target may be a word longer or shorter
            sides = [[vocabulary[drawn], []] for vocabulary in vocabularies]
            for begin, end, more in zip(
                (ends - lengths).tolist(), ends.tolist(), other.tolist(), strict=True
            ):
                sides[0][1].append(" ".join(sides[0][0][begin:end]))
                sides[1][1].append(" ".join(sides[1][0][begin : end + more][::-1]))
            for file, (_, lines) in zip((source, target), sides, strict=True):
                file.write(" .\n".join(lines) + " .\n")


def data_section(folder: Path, pairs: int) -> dict[str, Any]:
    return {
        "train": str(folder / f"text{pairs}"),
        "valid": str(folder / "valid"),
        "cache": str(folder / f"cache{pairs}"),
    }


# --- in processes of their own


def prepare_text(folder: Path, pairs: int) -> dict[str, Any]:
    from transformer.data.dataset import DataConfig, prepare

    steps: list[tuple[float, str]] = []
    prepare(
        DataConfig.model_validate(data_section(folder, pairs)),
        Path(tempfile.mkdtemp(dir=folder)),
        1,
        lambda text: steps.append((time.monotonic(), text)),
    )
    end = time.monotonic()
    began = {text.partition(" ")[0]: at for at, text in reversed(steps)}
    encoding = min(at for at, text in steps if text.startswith("encoding"))
    return {
        "seconds": end - steps[0][0],
        "reading": began["training"] - steps[0][0],
        "tokenizer": encoding - began["training"],
        "encoding": end - encoding,
        "peak": peak(),
        "worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }


def train(folder: Path, pairs: int) -> dict[str, Any]:
    """Seconds from the start of the process to the end of the first update, and to the end of the data."""
    from transformer.cli import train as command
    from transformer.speed.process import age
    from transformer.training.logbook import Logbook

    ages: list[tuple[str, float]] = []
    say = Logbook.say

    def timed(self: Logbook, text: str) -> None:
        ages.append((text, age() or 0.0))
        say(self, text)

    Logbook.say = timed  # type: ignore[method-assign]
    config = {"data": data_section(folder, pairs), "model": MODEL, "train": TRAIN}
    run = Path(tempfile.mkdtemp(dir=folder))
    (run / "c.yaml").write_text(json.dumps(config))
    code = command.main([str(run / "c.yaml"), "--run-dir", str(run / "run")])
    assert code == 0
    first = next(at for text, at in ages if text.startswith("update 1 "))
    return {"start": first, "data": first - ages[0][1], "peak": peak()}


def walk(folder: Path, pairs: int) -> dict[str, Any]:
    """An epoch's batches without a model."""
    from transformer.data.dataset import DataConfig, prepare
    from transformer.training.memory import keep_freed_memory

    keep_freed_memory()
    data = prepare(
        DataConfig.model_validate(data_section(folder, pairs)),
        Path(tempfile.mkdtemp(dir=folder)),
        1,
        lambda _: None,
    )
    stream = data.stream(4096, prefetch=4)
    before, seen, cells, began = peak(), 0, 0, time.monotonic()
    for batch in stream.epoch(1):
        seen += len(batch)
        cells += batch.target_out.numel()
    assert seen == len(data.train)
    tokens = int(data.report.train.target_tokens + len(data.train))
    return {
        "before": before,
        "peak": peak(),
        "padding": 1 - tokens / cells,
        "rate": seen / (time.monotonic() - began),
    }


def peak() -> int:
    """Bytes that this process had in memory at most, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no peak of memory is told here")


KINDS = {"prepare": prepare_text, "train": train, "walk": walk}


# --- in the first process


def measure(kind: str, folder: Path, pairs: int, checkout: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", kind, "--folder", str(folder), "--pairs", str(pairs)]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{pairs:,} pairs, {kind}: {json.dumps(result)}", file=sys.stderr, flush=True)
    return result


def rounds(folder: Path, sizes: list[int], count: int, checkout: Path) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {pairs: [] for pairs in sizes}
    for _ in range(count):
        for pairs in sizes:
            cache = folder / f"cache{pairs}"
            shutil.rmtree(cache, ignore_errors=True)
            row = {kind: measure(kind, folder, pairs, checkout) for kind in KINDS}
            row["text"] = sum((folder / f"text{pairs}.{language}").stat().st_size for language in LANGUAGES)
            row["disk"] = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
            found[pairs].append(row)
            for run in folder.glob("tmp*"):
                shutil.rmtree(run)
    return found


def table(found: dict[int, list[dict[str, Any]]]) -> Iterator[str]:
    heads = (
        "pairs",
        "preparing, s",
        "of it tokenizer, s",
        "encoded, pairs/s",
        "its peak, MiB",
        "a worker's, MiB",
        "start, s",
        "of it data and first update, s",
        "training's peak, MiB",
        "an epoch's peak, MiB",
        "padding",
        "cache, bytes/pair",
        "text, bytes/pair",
    )
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for pairs, rows in found.items():

        def middle(kind: str, name: str, rows: list[dict[str, Any]] = rows) -> float:
            return statistics.median(row[kind][name] for row in rows)

        cells = (
            f"{pairs:,}",
            f"{middle('prepare', 'seconds'):,.1f}",
            f"{middle('prepare', 'tokenizer'):,.1f}",
            f"{pairs / middle('prepare', 'encoding'):,.0f}",
            f"{middle('prepare', 'peak') / MEGABYTE:,.0f}",
            f"{middle('prepare', 'worker') / MEGABYTE:,.0f}",
            f"{middle('train', 'start'):.1f}",
            f"{middle('train', 'data'):.2f}",
            f"{middle('train', 'peak') / MEGABYTE:,.0f}",
            f"{middle('walk', 'peak') / MEGABYTE:,.0f}",
            f"{100 * middle('walk', 'padding'):.2f} %",
            f"{rows[0]['disk'] / pairs:.0f}",
            f"{rows[0]['text'] / pairs:.0f}",
        )
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", default="50000,5000000", help="sizes, with commas between")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where a temporary folder is made")
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table with what made it")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(KINDS[arguments.child](arguments.folder, int(arguments.pairs))))
        return
    sizes = [int(pairs) for pairs in arguments.pairs.split(",")]
    with tempfile.TemporaryDirectory(prefix="corpus_scale.", dir=arguments.folder) as name:
        folder, needed = Path(name), BYTES * sum(sizes)
        if shutil.disk_usage(folder).free < needed:
            parser.error(f"{folder} has no {needed / 1e9:.1f} GB free; give --folder DIR on a larger disk")
        write_text(folder / "valid", 200, seed=0)
        for pairs in sizes:
            write_text(folder / f"text{pairs}", pairs, seed=pairs)
        lines = list(table(rounds(folder, sizes, arguments.rounds, arguments.checkout)))
    print(*lines, sep="\n")
    if arguments.write:
        write(arguments.write, lines, arguments.rounds)


def write(path: Path, lines: list[str], count: int) -> None:
    from provenance import processor

    from transformer.cli.result import commit

    cores = len(os.sched_getaffinity(0))
    text = [
        "# What a corpus costs as it grows",
        "",
        f"    python benchmarks/corpus_scale.py {shlex.join(sys.argv[1:])}",
        "",
        f"Commit {commit() or 'unknown'}, {date.today()}; {processor()}, {cores} cores;",
        f"median of {count} round(s). Made-up text of about ten words a sentence. Start: from the start of",
        "the process to the end of the first update, with a warm cache. Peaks are VmHWM: mapped pages of",
        "files count.\n",
        *lines,
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What each thing that makes training or translation fast is worth: switched off alone, all else on.

    python benchmarks/levers.py --shape small --rounds 5 --write levers.md
    python benchmarks/levers.py --task translate --shape small --rounds 5 --beam 5
    python benchmarks/levers.py --task translate --run runs/multi30k --rounds 5 --beam 5

Each lever is switched off by a patch made here (lever_training.py, lever_translation.py); the product has no
such option. Before it is timed, both ways have to compute the same to rounding. Rounds alternate: each does
the same work as the toolkit does it, then with the lever off. The ratio is the median over rounds of speed as
it is / speed without. Levers that belong to a process run in two of their own. What cannot be tried here is a
row that says why.

Training is of the product's own updates on the configuration's text; translation of its first pairs, by a
model with initial weights, or by a run's with `--run`. Translations are as long as the references.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import lever_checks, lever_training, lever_translation, lever_translation_checks
from benchmarks.arguments import at_least, new_file, old_file
from benchmarks.lever_checks import BUCKETS, in_random_order
from benchmarks.lever_setting import Setting, Task
from benchmarks.lever_training import Lever, stepped
from transformer.cli.config import Config
from transformer.cli.lines import say
from transformer.cli.runs import load_run
from transformer.cli.train import wire
from transformer.core.cpus import MOST_THREADS
from transformer.core.errors import UserError
from transformer.core.loading import load
from transformer.data.dataset import prepare
from transformer.data.encoded import EncodedCorpus
from transformer.decoding.config import MOST_HYPOTHESES
from transformer.model.transformer import Transformer
from transformer.training.logbook import Logbook
from transformer.training.memory import keep_freed_memory
from transformer.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
SHAPES = {
    "tiny": {"d_model": 16, "d_ff": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1},
    "small": {"d_model": 256, "d_ff": 1024, "heads": 4, "encoder_layers": 3, "decoder_layers": 3},
    "large": {"d_model": 512, "d_ff": 1024, "heads": 8, "encoder_layers": 6, "decoder_layers": 6},
}
VOCABULARY = {"tiny": 300, "small": 8000, "large": 10000}
PRECISIONS = ("auto", "bf16", "float32", "int8")
MEMORY = ("freed memory stays mapped (against glibc's defaults)", "--keep", "--release")
UNITS = {"train": "tokens/s", "translate": "sentences/s"}


def trainer_of(shape: str, folder: Path, base: Path, threads: int, precision: str = "auto") -> Trainer:
    chosen = [f"model.{key}={value}" for key, value in SHAPES[shape].items()]
    chosen += [f"data.tokenizer.vocab_size={VOCABULARY[shape]}", f"train.threads={threads}", "data.test={}"]
    chosen += [
        "model.dropout=0.1",
        f"train.batch_tokens={256 if shape == 'tiny' else 4096}",
        "train.warmup=100",
        f"train.precision={precision}",
    ]
    config = load(Config, base, chosen)
    data = prepare(config.data, folder, config.seed, say)
    sizes = data.source_tokenizer.size, data.target_tokenizer.size
    model = Transformer(*sizes, config.model, seed=config.seed)
    return wire(config, folder, data, model.train(), Logbook(folder, quiet=True))


# --- rows of the table


def alternating(
    on: Callable[[], float], off: Callable[[], float], rounds: int
) -> tuple[list[float], list[float]]:
    """Speeds of both, in turn and in turned order, after a round that makes kernels and memory ready."""
    found: tuple[list[float], list[float]] = [on()], [off()]
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            found[which].append((on, off)[which]())
    return found[0][1:], found[1][1:]


def row(text: str, on: Sequence[float], off: Sequence[float]) -> str:
    ratios = sorted(one / other for one, other in zip(on, off, strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    speeds = f"{statistics.median(on):,.0f} | {statistics.median(off):,.0f}"
    return f"| {text} | {statistics.median(ratios):.2f} | {spread} | {speeds} |"


def untried(text: str, why: object) -> str:
    return f"| {text} | not measured: {str(why).strip().splitlines()[-1].strip()} | | | |"


# --- training


def speed(trainer: Trainer, run: lever_training.Run, batches: Sequence[Any]) -> float:
    """Target tokens a second, padding not counted."""
    begin = time.perf_counter()
    tokens = run(trainer, batches)
    return tokens / (time.perf_counter() - begin)


def training_row(trainer: Trainer, lever: Lever, batches: Sequence[Any], rounds: int) -> str:
    """Check a lever, then time it."""
    if why := lever.missing():
        return untried(lever.text, why)

    def off() -> float:
        with lever.off(trainer):
            return speed(trainer, lever.run, batches)

    try:
        lever_checks.check(trainer, lever, batches)
        with lever.both(trainer):
            found = alternating(lambda: speed(trainer, lever.run, batches), off, rounds)
    except UserError as error:  # no compiler
        return untried(lever.text, error)
    finally:
        lever_training.endless.cache_clear()  # ends their threads
    return row(lever.text, *found)


def training_rows(trainer: Trainer, updates: int, rounds: int, only: str = "") -> Iterator[str]:
    """Every lever whose text holds `only` and that does something in this number format."""
    batches = list(islice(trainer.stream.epoch(1), updates))
    for lever in lever_training.LEVERS.values():
        if only in lever.text and trainer.passes.dtype not in lever.idle:
            yield training_row(trainer, lever, batches, rounds)
    if only in BUCKETS:
        unsorted = in_random_order(batches, trainer.config.batch_tokens)
        times = [lambda cut=cut: speed(trainer, stepped, cut) for cut in (batches, unsorted)]
        yield row(BUCKETS, *alternating(times[0], times[1], rounds))


def alone(flag: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Speed and loss in a process of its own."""
    names = ("shape", "precision", "updates", "threads", "config")
    own = [f"--{name}={getattr(arguments, name)}" for name in names]
    command = [sys.executable, __file__, flag, *own]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def one_speed(trainer: Trainer, updates: int) -> dict[str, float]:
    """What `alone` asks for."""
    batches = list(islice(trainer.stream.epoch(1), 2 * updates))
    stepped(trainer, batches[:updates])
    found = speed(trainer, stepped, batches[updates:])
    return {"speed": found, "loss": trainer.window.read()["loss"]}


def memory_row(arguments: argparse.Namespace) -> str:
    text, keep, release = MEMORY
    turns = [(alone(keep, arguments), alone(release, arguments)) for _ in range(arguments.rounds)]
    losses = [side["loss"] for turn in turns for side in turn]
    assert max(losses) - min(losses) <= 1e-3 * abs(losses[0]), f"{text}: losses differ: {losses}"
    return row(text, [on["speed"] for on, _ in turns], [off["speed"] for _, off in turns])


# --- translation


def setting_of(
    model: Transformer, corpus: EncodedCorpus, beam: int, precision: str, sentences: int
) -> Setting:
    """A model, and the first pairs of a text."""
    chosen = map(corpus.pair, range(min(sentences, len(corpus.source_lengths))))
    pairs = [(list(map(int, source)), list(map(int, target))) for source, target in chosen]
    return Setting(model, pairs, beam, precision)


def trained(path: Path, folder: Path) -> tuple[Transformer, EncodedCorpus]:
    """A run's model, and the text that it was trained on."""
    run = load_run(path, device=torch.device("cpu"))
    return run.model, prepare(run.config.data, folder, run.config.seed, say).train


def translation_row(lever: lever_translation.Lever, setting: Setting, rounds: int) -> str:
    """Check a lever, then time it."""
    if why := lever.missing(setting):
        return untried(lever.text, why)
    lever_translation_checks.check(lever, setting)
    with lever.both():
        on, off = lever.tasks(setting)

        def timed(task: Task, switch: lever_translation.Switch) -> float:
            with switch():
                begin = time.perf_counter()
                return len(task.run()) / (time.perf_counter() - begin)

        found = alternating(lambda: timed(on, nullcontext), lambda: timed(off, lever.off), rounds)
    return row(lever.text, *found)


def translation_rows(setting: Setting, rounds: int, only: str = "") -> Iterator[str]:
    for lever in lever_translation.LEVERS.values():
        if only in lever.text:
            yield translation_row(lever, setting, rounds)


# --- the command


def rows_of(arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    training = arguments.task == "train"
    precision = arguments.precision if training else "auto"
    if arguments.run is not None:
        torch.set_num_threads(arguments.threads)
        model, corpus = trained(arguments.run, folder)
    else:
        trainer = trainer_of(arguments.shape, folder, arguments.config, arguments.threads, precision)
        model, corpus = trainer.model, trainer.stream.corpus  # type: ignore[attr-defined]
    if training:
        yield from training_rows(trainer, arguments.updates, arguments.rounds, arguments.only)
        if arguments.only in MEMORY[0]:
            yield memory_row(arguments)
    else:
        setting = setting_of(model, corpus, arguments.beam, arguments.precision, arguments.sentences)
        yield from translation_rows(setting, arguments.rounds, arguments.only)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or the exit code of an error in the configuration or its data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", choices=UNITS, default="train")
    parser.add_argument("--config", type=old_file, default=ROOT / "configs" / "multi30k.yaml")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--run", type=Path, help="translate by this run's model, of its shape, and its text")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of either task's products")
    parser.add_argument("--updates", type=at_least(1), default=8, help="of a round of training")
    parser.add_argument("--sentences", type=at_least(1), default=500, help="of a round of translation")
    parser.add_argument("--beam", type=at_least(1, MOST_HYPOTHESES), default=5)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--threads", type=at_least(1, MOST_THREADS), default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="levers whose row in the table holds this")
    parser.add_argument("--write", type=new_file, help="a Markdown file for the table (default: print it)")
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--release", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.task == "train" and arguments.precision == "int8":
        parser.error("nothing is trained in int8")
    if arguments.task == "train" and arguments.run is not None:
        parser.error("--run is for --task translate")
    if not arguments.release:
        keep_freed_memory()
    try:
        measure(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure(arguments: argparse.Namespace) -> None:
    """Print the table, or write it down at each row."""
    unit = UNITS[arguments.task]
    lines = [f"| lever | ratio | of rounds | {unit} with | without |", "|---|---:|---|---:|---:|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.keep or arguments.release:
            options = arguments.config, arguments.threads, arguments.precision
            print(json.dumps(one_speed(trainer_of(arguments.shape, folder, *options), arguments.updates)))
            return
        for line in rows_of(arguments, folder):
            say(line)
            lines.append(line)
            if arguments.write is not None:  # at each row: an interrupted measurement loses none
                arguments.write.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if arguments.write is None:
        print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())

"""translate.py RUN...: lines in, translations out, and their scores against a reference."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch

from ..core.cpus import MOST_PROCESSES, MOST_THREADS
from ..core.errors import ConfigError, DataError, Problem
from ..core.loading import Override, load
from ..data.corpus import require_scorable
from ..decoding.config import DecodeConfig
from ..decoding.processes import SpreadTranslator
from ..decoding.translator import LineTranslator, Translator
from ..evaluation.metrics import corpus_metrics
from ..export.directory import open_export
from ..export.engine import cannot
from ..export.manifest import MANIFEST, read_manifest
from ..training.memory import keep_freed_memory
from .command import EXIT_CODES, Parser, command, whole_number
from .config import Config
from .describe import options_text
from .lines import json_line, output, read_lines, require_apart, say, write_line
from .resolve import config_file_of
from .room import belongs
from .runs import load_ensemble, pick_device, weights_file

T = TypeVar("T")

AnyTranslator: TypeAlias = LineTranslator | SpreadTranslator

FLAGS = {
    "--beam": ("decode.beam", "hypotheses kept by beam search; 1 is greedy"),
    "--n-best": (
        "decode.n_best",
        "translations of each line, shown with --json",
    ),
    "--search": ("decode.search", "beam, greedy or sampling"),
    "--temperature": ("decode.temperature", "of sampling"),
    "--top-k": ("decode.top_k", "sample among the k likeliest subwords"),
    "--top-p": ("decode.top_p", "sample among the likeliest subwords that hold this probability"),
    "--length-penalty": ("decode.length_penalty", "none, average or wu"),
    "--alpha": ("decode.alpha", "strength of the length penalty"),
    "--min-length": ("decode.min_length", "fewest subwords"),
    "--max-length": ("decode.max_length", "most subwords"),
    "--batch-tokens": ("decode.batch_tokens", "size of a batch"),
    "--precision": ("decode.precision", "float32, bf16, int8 or auto"),
    "--seed": ("decode.seed", "of sampling"),
}
DESCRIPTION = """\
Translate text, one line each: N lines in, N lines out, in order. A blank line gives a blank one.
Several runs are an ensemble: their probabilities are averaged.

With --reference, BLEU, chrF and TER are printed with their signatures: on stdout when --output takes the
translations, on stderr otherwise, so that stdout holds the translations and nothing else.
With --json each line is one object, with all --n-best translations, scores and subwords."""


@command
def main(argv: Sequence[str]) -> int:
    """Translate, or score given translations."""
    arguments = _parser().parse_args(argv)
    _check_files(arguments)
    config = decode_config(arguments.run[0], arguments.overrides)
    if not arguments.json and config.n_best > 1:
        if any(key == "decode.n_best" for key in map(_key, arguments.overrides)):
            raise ConfigError([Problem("decode.n_best", "more than one translation a line needs --json")])
        config = config.model_copy(update={"n_best": 1})
    if arguments.threads > MOST_THREADS:
        raise ConfigError(f"--threads {arguments.threads}: at most {MOST_THREADS}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.input is None and sys.stdin.isatty():
        config = config.model_copy(update={"chunk_lines": 1})
    with ExitStack() as stack:
        translator = _translator(arguments, config)
        if isinstance(translator, SpreadTranslator):
            stack.enter_context(translator)
        return _answer(translator, arguments)


def _translator(arguments: argparse.Namespace, config: DecodeConfig) -> AnyTranslator:
    """One for this process, or for as many as --processes and --device ask for."""
    devices = arguments.device.split(",")
    count = arguments.processes or len(devices)
    if count > MOST_PROCESSES:
        raise ConfigError(f"--processes {count}: at most {MOST_PROCESSES}")
    if count < len(devices):
        raise ConfigError(f"--processes {count}: fewer than the devices of --device {arguments.device}")
    if count == 1:
        return ENGINES[arguments.engine](arguments, config)
    every = [{**vars(arguments), "device": devices[i % len(devices)]} for i in range(count)]
    builds = [partial(ENGINES[arguments.engine], argparse.Namespace(**each), config) for each in every]
    return SpreadTranslator(builds, config, arguments.threads)


def _answer(translator: AnyTranslator, arguments: argparse.Namespace) -> int:
    """Read, translate or score, write; the exit code."""
    partners = {name: _lines_of(getattr(arguments, name)) for name in ("reference", "prefix", "score")}
    if partners["reference"] is not None:
        require_scorable(partners["reference"], arguments.reference)
    lines = _begun(read_lines(arguments.input))
    if any(other is not None for other in partners.values()):
        lines = list(lines)
        for name, other in partners.items():
            _same_count(len(lines), other, arguments.input or "stdin", getattr(arguments, name))
    if partners["score"] is not None:
        return _score(translator, lines, partners["score"], arguments)
    return _translate(translator, lines, partners["prefix"], partners["reference"], arguments)


def _begun(lines: Iterator[str]) -> Iterable[str]:
    """The same lines, the first of which is read: what cannot be read has emptied no --output."""
    return chain(list(islice(lines, 1)), lines)


def _ours(arguments: argparse.Namespace, config: DecodeConfig) -> LineTranslator:
    """The models of the runs."""
    keep_freed_memory()
    for directory in arguments.run:
        weightless = not weights_file(directory, arguments.checkpoint).exists()
        if weightless and (directory / MANIFEST).is_file():
            raise ConfigError(f"{directory} is an export, not a run: give --engine ctranslate2")
    device = pick_device(arguments.device)
    runs = load_ensemble(arguments.run, arguments.checkpoint, device)
    first, models = runs[0], [run.model for run in runs]
    return Translator(models, first.source_tokenizer, first.target_tokenizer, config, device, fork=True)


def _ctranslate2(arguments: argparse.Namespace, config: DecodeConfig) -> LineTranslator:
    """An export. ConfigError with every option that it cannot follow."""
    problems = []
    if len(arguments.run) > 1:
        problems.append(Problem("", "an ensemble is not served: give one export"))
    if arguments.checkpoint is not None:
        message = "an export has one set of weights"
        problems.append(Problem("--checkpoint", message, hint="export RUN --checkpoint NAME makes another"))
    problems += cannot(config, read_manifest(arguments.run[0]).quantization)
    if problems:
        raise ConfigError(problems)
    served = open_export(
        arguments.run[0],
        pick_device(arguments.device),
        arguments.threads,
        scores=arguments.json,
        together=config.chunk_lines > 1 and arguments.score is None,
    )
    return LineTranslator(served.engine, served.source_tokenizer, served.target_tokenizer, config)


ENGINES = {"torch": _ours, "ctranslate2": _ctranslate2}


def decode_config(run: Path, overrides: Sequence[str | Override]) -> DecodeConfig:
    """The run's own decode section with the command line over it; ConfigError for any other section."""
    problems = [
        Problem(_key(item), "a trained run has only decode options", source, "use decode.x=y")
        for item in overrides
        for source in (f"--set {item}" if isinstance(item, str) else item.source,)
        if not (isinstance(item, str) and "=" not in item) and _key(item).split(".")[0].strip() != "decode"
    ]
    if problems:
        raise ConfigError(problems)
    return load(Config, config_file_of(run), overrides).decode


def _translate(
    translator: AnyTranslator,
    lines: Iterable[str],
    prefixes: list[str] | None,
    references: list[str] | None,
    arguments: argparse.Namespace,
) -> int:
    texts: list[str] = []
    with output(arguments.output) as file:
        for translation in _naming(arguments.prefix, translator.translate(lines, prefixes)):
            if translation.warning:
                say(translation.warning)
            write_line(file, json_line(translation.to_dict()) if arguments.json else translation.text)
            if translator.config.chunk_lines == 1:
                file.flush()
            if references is not None:
                texts.append(translation.text)
        file.flush()
    if references is not None:
        metrics = corpus_metrics(texts, references)
        for warning in metrics.warnings:
            say(f"warning: {warning}")
        shown = json_line(metrics.to_dict()) if arguments.json else str(metrics)
        print(shown, file=sys.stdout if arguments.output not in (None, "-") else sys.stderr)
    return 0


def _score(
    translator: AnyTranslator, lines: Iterable[str], targets: list[str], arguments: argparse.Namespace
) -> int:
    with output(arguments.output) as file:
        for score in _naming(arguments.score, translator.score(lines, targets)):
            if score.warning:
                say(score.warning)
            write_line(file, json_line(score.to_dict()) if arguments.json else f"{score.log_probability:.6f}")
        file.flush()
    return 0


def _naming(path: str | None, answers: Iterable[T]) -> Iterator[T]:
    """The answers; a DataError about a line of the prefixes or targets says which file that is."""
    try:
        yield from answers
    except DataError as error:
        raise DataError(f"{path}: {error}" if path is not None else str(error)) from error


def _key(override: str | Override) -> str:
    key = override.partition("=")[0] if isinstance(override, str) else ".".join(override.path)
    return key.strip()


def _lines_of(path: str | None) -> list[str] | None:
    return None if path is None else list(read_lines(path))


def _same_count(count: int, others: list[str] | None, name: str, other_name: str) -> None:
    if others is not None and len(others) != count:
        raise DataError(
            f"{name} has {count} lines, {other_name} has {len(others)}: they have to be equally many"
        )


def _check_files(arguments: argparse.Namespace) -> None:
    """Refuse what would be ignored, to write over what is read, and to read stdin twice."""
    if arguments.score is not None and (arguments.prefix is not None or arguments.reference is not None):
        raise ConfigError("--score translates nothing: it goes without --prefix and --reference")
    read = [arguments.input, arguments.reference, arguments.prefix, arguments.score]
    for path in (path for path in read if path not in (None, "-")):
        if not os.path.exists(path):
            raise DataError(f"{path}: no such file")
    require_apart(arguments.output, read)
    if arguments.output not in (None, "-") and any(belongs(r, Path(arguments.output)) for r in arguments.run):
        raise ConfigError(f"--output {arguments.output}: a run keeps such a file there; choose another")
    if sum(path == "-" for path in read[1:]) + (arguments.input in (None, "-")) > 1:
        raise ConfigError("stdin can be read once: give --input or the other file by name")


def _parser() -> Parser:
    parser = Parser(
        "translate", DESCRIPTION, lambda: f"decode options:\n{options_text('decode')}\n\n{EXIT_CODES}"
    )
    parser.add_argument(
        "run", nargs="+", type=Path, metavar="RUN", help="run directories; several are an ensemble"
    )
    parser.add_argument("--input", metavar="FILE", help="text to translate, plain or .gz (default: stdin)")
    parser.add_argument("--output", metavar="FILE", help="where translations go (default: stdout)")
    parser.add_argument(
        "--reference", metavar="FILE", help="print BLEU, chrF and TER against this translation"
    )
    parser.add_argument(
        "--prefix", metavar="FILE", help="for each line, what its translation has to begin with"
    )
    parser.add_argument("--score", metavar="FILE", help="do not translate: print log p of these translations")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--engine",
        choices=list(ENGINES),
        default="torch",
        help="ctranslate2: RUN is what `export` has written",
    )
    parser.add_argument("--checkpoint", metavar="NAME", help="other weights: last, update-0000500 or a file")
    parser.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:1; of several, as in cuda:0,cuda:1, each gets a process",
    )
    parser.add_argument(
        "--processes",
        type=whole_number,
        default=0,
        metavar="N",
        help="share the lines among N processes, each with its own copy of the models; 0 is one a device",
    )
    parser.add_argument(
        "--threads",
        type=whole_number,
        default=0,
        metavar="N",
        help="CPU threads of a process; 0 leaves the engine's choice, shared out among --processes",
    )
    parser.add_options(FLAGS, only="decode")
    return parser

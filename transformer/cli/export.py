"""python -m transformer export RUN --to ctranslate2 DIR: fold, convert, verify, and only then write."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError
from ..core.loading import to_yaml
from ..core.rundir import CONFIG_FILE
from ..core.seal import sealed
from ..data.dataset import read_parallel
from ..decoding.config import DecodeConfig
from ..export.conversion import ctranslate2, write_model
from ..export.directory import open_export, unusable, write_tokenizers, written_whole
from ..export.engine import cannot
from ..export.folding import fold
from ..export.manifest import ENGINES, QUANTIZATIONS, write_manifest
from ..export.plain import PlainTransformer
from ..export.verification import TOLERANCE, Lines
from .command import Parser, command, whole_number
from .lines import finite, json_line, read_lines, say
from .result import versions
from .runs import Run, load_run, pick_device

DESCRIPTION = """\
Write a run as a directory that CTranslate2 serves: `python translate.py DIR --engine ctranslate2`.

Where the norm sits and which norm it is are folded into the weights, exactly; what cannot be folded is
refused with all reasons at once. Before anything is written, the export and the run are asked about the same
lines: the log-probability of every subword, greedy search, and translations as the run's decode section says.
By default the lines are the beginning of the run's validation text.

With --quantization the float32 export is verified first; what the quantization changes is then reported."""
COUNT = 200
MOST_POSITIONS = 1 << 14  # 64 MB of float64 at width 512, in each stack


@command
def main(argv: Sequence[str]) -> int:
    """Fold, convert, verify, write, report."""
    arguments = _parser().parse_args(argv)
    if (arguments.reference is not None) and arguments.lines is None:
        raise ConfigError("--reference is of --lines: give both, or neither")
    run = load_run(arguments.run, arguments.checkpoint, pick_device("cpu"))
    decode = run.config.decode  # where positions are a formula: as many as its limits ask for
    asked = max(run.config.model.max_length, decode.max_source_length + 1, decode.max_length + 1)
    plain = _folded(run, min(asked, MOST_POSITIONS), arguments)
    if (rows := len(plain.encoder.positions)) < asked:
        say(f"{rows:,} positions are served, the run's limits ask for {asked:,}: longer lines will be cut")
    sources, references = _lines(run, arguments)
    with written_whole(arguments.directory) as folder:
        facts = _write(run, plain, sources, references, arguments.quantization, folder)
    megabytes = sum(file.stat().st_size for file in arguments.directory.rglob("*") if file.is_file()) / 1e6
    say(f"{arguments.directory}: {megabytes:.1f} MB")
    if arguments.json:
        print(json_line(facts))
    return 0


def _folded(run: Run, rows: int, arguments: argparse.Namespace) -> PlainTransformer:
    """The model as a plain Transformer; ConfigError with all that stands against the export."""
    problems = list(unusable(arguments.directory, arguments.run, arguments.force))
    plain = None
    try:
        plain = fold(run.model, rows)
    except ConfigError as error:
        problems += error.problems
    try:
        ctranslate2()
    except ConfigError as error:
        problems += error.problems
    if plain is None or problems:
        raise ConfigError(problems)
    return plain


def _lines(run: Run, arguments: argparse.Namespace) -> tuple[list[str], list[str] | None]:
    """What to verify with: `--count` lines, and their references where there are any."""
    data = run.config.data
    if arguments.lines is None:
        try:
            pairs = read_parallel(data.valid, data.source, data.target, "valid")[: arguments.count]
        except DataError as error:
            raise DataError(f"{error}; give other lines to verify with: --lines FILE") from error
        sources, references = [s for s, _ in pairs], [t for _, t in pairs]
    else:
        sources = list(islice(read_lines(arguments.lines), arguments.count))
        references = None
        if arguments.reference is not None:
            references = list(islice(read_lines(arguments.reference), arguments.count))
            if len(references) != len(sources):
                raise DataError(f"{arguments.reference} has not as many lines as {arguments.lines}")
    return sources, references


def _write(
    run: Run,
    plain: PlainTransformer,
    sources: list[str],
    references: list[str] | None,
    quantization: str | None,
    folder: Path,
) -> dict[str, Any]:
    """All files, each verified; ConfigError where the float32 export is not the model."""
    tokenizers = run.source_tokenizer, run.target_tokenizer
    decode = run.config.decode.model_copy(update={"precision": "auto"})
    text = sealed(to_yaml(run.config.model_copy(update={"decode": decode})))
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    write_tokenizers(folder, *tokenizers)
    positions = min(len(plain.encoder.positions), len(plain.decoder.positions))
    if refused := list(cannot(decode, quantization)):
        say("verified with the default decode options, because of the run's own:")
        say("\n".join(f"  {problem}" for problem in refused))
        decode = DecodeConfig()
    lines = Lines(run.model, tokenizers, sources, references, decode, positions)
    facts: dict[str, Any] = {
        "engine": ENGINES[0],
        "run": run.directory.resolve().name,
        "model": run.header,
        "wiring": {"encoder": plain.encoder.wiring.value, "decoder": plain.decoder.wiring.value},
        "positions": positions,
        "tokenizers": {"source": tokenizers[0].digest, "target": tokenizers[1].digest},
        "tolerance": TOLERANCE,
        "versions": {**versions(), "ctranslate2": ctranslate2().__version__},
    }
    translations = {}
    for made in dict.fromkeys((None, quantization)):
        name = made or "float32"
        write_model(plain, tokenizers[0].vocabulary, tokenizers[1].vocabulary, folder, made)
        facts["quantization"] = made
        write_manifest(folder, facts)
        engine = open_export(folder, together=False).engine
        agreement = lines.agreement(engine)
        say(f"{name}: {agreement}")
        facts[name] = agreement.to_dict()
        if made is None and not agreement.holds:
            raise ConfigError(
                f"the export is not the model, nothing was written: {agreement} (allowed: {TOLERANCE:g});"
                " please report it with the run's config.yaml"
            )
        translations[name] = lines.translations(engine)
    outputs = lines.outputs(translations)
    say(str(outputs))
    return write_manifest(folder, finite({**facts, "outputs": outputs.to_dict()}))


def _parser() -> Parser:
    parser = Parser("export", DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--to", required=True, choices=ENGINES, help="what will serve it")
    parser.add_argument("directory", type=Path, metavar="DIR", help="the directory to write")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="smaller numbers (default: float32)")
    parser.add_argument("--lines", metavar="FILE", help="lines to verify with (default: validation text)")
    parser.add_argument("--reference", metavar="FILE", help="their translation, for BLEU of run and exports")
    parser.add_argument(
        "--count", type=whole_number, default=COUNT, metavar="N", help=f"first lines used (default: {COUNT})"
    )
    parser.add_argument("--checkpoint", metavar="NAME", help="other weights: last, update-0000500 or a file")
    parser.add_argument("--force", action="store_true", help="replace an export that is there")
    parser.add_argument("--json", action="store_true", help="print what export.json holds")
    return parser

"""python -m transformer bench train|translate: speed, beside what this machine could do at most."""

from __future__ import annotations

import json
import shlex
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..analysis.finding import table
from ..core.errors import ConfigError, DataError, Problem
from ..core.loading import Override, load
from ..core.rundir import WEIGHTS
from ..data.dataset import prepare, read_parallel
from ..decoding.config import DecodeConfig
from ..decoding.engine import require_products
from ..decoding.translator import Translator
from ..export.manifest import MANIFEST
from ..model.cost import cost_of
from ..model.transformer import Transformer
from ..modules.precision import resolve_precision
from ..speed.ceilings import Ceilings, measure_ceilings, name_of
from ..speed.process import age, peak_memory
from ..speed.training import measure_training
from ..speed.translation import forced, measure_translation
from ..speed.work import Work, training_work, translation_work
from ..training.logbook import Logbook
from ..training.memory import keep_freed_memory
from .command import MODEL_FLAGS, Parser, command, whole_number
from .config import Config
from .lines import finite, read_lines, require_writable, say
from .probe_flags import items_of, number_of
from .resolve import run_config
from .result import commit, versions
from .runs import load_run, pick_device
from .train import calibrate, wire
from .translate import decode_config

DESCRIPTION = """\
Time training (target tokens/s, padding not counted) or translation (sentences/s) as the product does them:
medians over rounds, padding on both sides, seconds until work begins, peak memory; and the least time that
the counted operations and bytes take at the rates of matrix products and of copying that are measured in the
same process.

`bench train` makes updates on the configuration's own training text. `bench translate` translates the first
test set, or --input, with a run's weights; or with initial ones, whose translations end nowhere in
particular: then give --length, which makes each translation so many subwords long."""


@command
def main(argv: Sequence[str]) -> int:
    """Measure, print, and write JSON where asked for."""
    arguments = _parser().parse_args(argv)
    for name in ("updates", "rounds", "lines", "length"):
        if getattr(arguments, name) == 0:
            raise ConfigError(f"--{name} 0: give at least 1")
    if arguments.json is not None:
        require_writable("--json", arguments.json)
    path = Path(arguments.config)
    config = run_config(path) if path.is_dir() else load(Config, path, arguments.overrides)
    device = pick_device(arguments.device)
    keep_freed_memory()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    measure = {"train": _train, "translate": _translate}[arguments.what]
    facts = measure(config, path, device, arguments)
    facts |= {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "command": shlex.join(["python", "-m", "transformer", "bench", *argv]),
        "commit": commit(),
        "versions": versions(),
    }
    if arguments.json is not None:
        text = json.dumps(finite(facts), indent=1, ensure_ascii=False) + "\n"
        arguments.json.write_text(text, encoding="utf-8")
    return 0


def _train(config: Config, path: Path, device: torch.device, arguments: Namespace) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError(f"{path} is a run: give a configuration file, whose model begins at the beginning")
    dtype = resolve_precision(config.train.precision, device)
    with tempfile.TemporaryDirectory() as folder:
        logbook = Logbook(Path(folder))
        data = prepare(config.data, Path(folder), config.seed, say)
        sizes = data.source_tokenizer.size, data.target_tokenizer.size
        model = Transformer(*sizes, config.model, seed=config.seed).to(device)
        trainer = wire(config, Path(folder), data, model, logbook)
        calibrate(config, data, model, device, logbook)
        speed = measure_training(trainer, arguments.updates, arguments.rounds)
    memory = peak_memory(device)
    work = training_work(cost_of(config.model, *sizes), config.model, speed.batches, speed.updates)
    ceilings = measure_ceilings(device, [dtype])
    tokens = speed.tokens_per_update * speed.updates
    facts = _facts(speed.rounds, tokens, work, ceilings, name_of(dtype)) | {
        "unit": "target tokens/s",
        "parameters": model.parameter_count(),
        "updates": speed.updates,
        "micro_batches": len(speed.batches),
        "tokens_per_update": speed.tokens_per_update,
        "source_padding": speed.padding[0],
        "target_padding": speed.padding[1],
        "seconds_to_first_update": speed.first_update,
        "peak_memory": memory,
        "shares": speed.parts,
    }
    several = config.train.accumulate > 1
    micro_batches = f" in {len(speed.batches) / speed.updates:.1f} micro-batches" if several else ""
    shares = ", ".join(f"{part} {share:.0%}" for part, share in speed.parts.items())
    _print(
        [facts],
        f"{speed.updates} updates of {speed.tokens_per_update:,.0f} target tokens{micro_batches}; padding"
        f" {speed.padding[0]:.1%} of the source, {speed.padding[1]:.1%} of the target",
        f"first update done after {_seconds(speed.first_update)}; peak memory {memory / 2**20:,.0f} MiB",
        f"time: {shares}",
        *_limits(ceilings, work, tokens),
    )
    return facts


def _translate(config: Config, path: Path, device: torch.device, arguments: Namespace) -> dict[str, Any]:
    decodings = _decodings(path, arguments)
    dtype = resolve_precision(decodings[0].precision, device)
    require_products(dtype, device)
    weights = str(path / WEIGHTS) if path.is_dir() else "initial"
    if path.is_dir():
        if (path / MANIFEST).is_file() and not (path / WEIGHTS).exists():
            raise ConfigError(f"{path} is an export, not a run: give the run that it was made of")
        run = load_run(path, device=device)
        model, tokenizers = run.model, (run.source_tokenizer, run.target_tokenizer)
    else:
        with tempfile.TemporaryDirectory() as folder:
            data = prepare(config.data, Path(folder), config.seed, say)
        tokenizers = data.source_tokenizer, data.target_tokenizer
        sizes = tokenizers[0].size, tokenizers[1].size
        model = Transformer(*sizes, config.model, seed=config.seed)
        model.to(device).eval()
    lines = _text(config, arguments.input)[: arguments.lines]
    if not any(map(str.strip, lines)):
        where = arguments.input or "the test set"
        raise DataError(f"{where}: nothing to translate in its first {arguments.lines:,} lines")
    translators = [Translator([model], *tokenizers, decode, device, fork=True) for decode in decodings]
    began = age()
    cost = cost_of(model.config, tokenizers[0].size, tokenizers[1].size)
    found = measure_translation(translators, lines, arguments.rounds)
    threads = torch.get_num_threads()
    memory = peak_memory(device, forked=threads if threads > 1 else 0)
    ceilings = measure_ceilings(device, [dtype])
    rows = []
    for speed in found:
        work = translation_work(cost, model.config, speed.lines, speed.beam, dtype.itemsize)
        rows.append(
            {"beam": speed.beam}
            | _facts(speed.rounds, len(speed.lines), work, ceilings, name_of(dtype))
            | {"subwords": statistics.fmean(steps - 1 for _, steps in speed.lines)}
        )
    _print(
        rows,
        f"{len(lines)} lines, translations of {rows[-1]['subwords']:.1f} subwords"
        + (" (forced)" if arguments.length else "")
        + f"; {'initial weights' if weights == 'initial' else weights}",
        f"ready after {_seconds(began)}; peak memory {memory / 2**20:,.0f} MiB",
        *_limits(ceilings, None, 0),
    )
    facts = {"unit": "sentences/s", "beams": rows, "lines": len(lines), "forced_length": arguments.length}
    return facts | {"weights": weights, "seconds_to_start": began, "peak_memory": memory}


def _decodings(path: Path, arguments: Namespace) -> list[DecodeConfig]:
    """Beam search for each of --beams, as long as --length says. ConfigError for what cannot be timed."""
    beams = [number_of("--beams", item) for item in items_of(arguments.beams)]
    if not beams:
        raise ConfigError(f"--beams {arguments.beams!r}: name one or more, as in 1,5")
    lengths = {} if arguments.length is None else forced(arguments.length)

    def decoding(*more: Override) -> DecodeConfig:
        given = [*arguments.overrides, *more]
        return decode_config(path, given) if path.is_dir() else load(Config, path, given).decode

    if decoding().search == "sampling":
        message = "beam search is timed, not sampling"
        raise ConfigError([Problem("decode.search", message, hint="give --set decode.search=beam")])
    length = [
        Override(("decode", key), value, f"--length {arguments.length}") for key, value in lengths.items()
    ]
    beam_search = {"search": "beam", "n_best": 1}
    return [
        decoding(
            *(Override(("decode", key), value, "bench") for key, value in beam_search.items()),
            Override(("decode", "beam"), beam, f"--beams {beam}"),
            *length,
        )
        for beam in beams
    ]


def _facts(
    rounds: Sequence[float], amount: float, work: Work, ceilings: Ceilings, dtype: str
) -> dict[str, Any]:
    """Speeds of `amount` tokens or lines that take `work`, and the limit."""
    limit = amount / work.seconds(ceilings, dtype)
    median = statistics.median(rounds)
    return {
        "precision": dtype,
        "speed": median,
        "slowest": min(rounds),
        "fastest": max(rounds),
        "rounds": list(rounds),
        "limit": limit,
        "share_of_limit": median / limit,
        "operations": work.operations / amount,
        "bytes": work.bytes / amount,
        "products": ceilings.products[dtype],
        "copy": ceilings.copy,
    }


def _print(rows: Sequence[dict[str, Any]], *notes: str) -> None:
    columns = [
        name for name in ("beam", "precision", "speed", "slowest", "fastest", "limit") if name in rows[0]
    ]
    cells = [
        [row[name] if isinstance(row[name], int | str) else f"{row[name]:,.1f}" for name in columns]
        + [f"{row['share_of_limit']:.0%}"]
        for row in rows
    ]
    print(table([*columns, "share"], cells))
    print(*notes, sep="\n")


def _limits(ceilings: Ceilings, work: Work | None, tokens: float) -> list[str]:
    products = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in ceilings.products.items())
    needs = f"; {work.operations / tokens / 1e6:,.1f} MFLOP a target token" if work is not None else ""
    return [f"limit: products at {products}, copies at {ceilings.copy / 1e9:,.0f} GB/s{needs}"]


def _seconds(value: float | None) -> str:
    return "an unknown time" if value is None else f"{value:.1f} s"


def _text(config: Config, file: str | None) -> list[str]:
    """What to translate: the first test set's source, or the validation set's."""
    if file is not None:
        return list(read_lines(file))
    tests = list(config.data.test.values())
    data = config.data
    pairs = read_parallel(
        tests[0] if tests else data.valid, data.source, data.target, "test" if tests else "valid"
    )
    return [source for source, _ in pairs]


def _parser() -> Parser:
    parser = Parser("bench", DESCRIPTION)
    parser.add_argument("what", choices=("train", "translate"))
    parser.add_argument("config", metavar="CONFIG|RUN", help="a configuration file; for translate also a run")
    parser.add_argument("--rounds", type=whole_number, default=3, help="the median counts (default: 3)")
    parser.add_argument("--updates", type=whole_number, default=20, help="of a round of train (default: 20)")
    parser.add_argument("--beams", default="1,5", metavar="N,M", help="of translate (default: 1,5)")
    parser.add_argument("--length", type=whole_number, metavar="N", help="of every translation, in subwords")
    parser.add_argument(
        "--lines", type=whole_number, default=1000, help="to translate at most (default: 1000)"
    )
    parser.add_argument("--input", metavar="FILE", help="text to translate (default: the first test set)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers for programs")
    parser.add_options(MODEL_FLAGS)
    return parser

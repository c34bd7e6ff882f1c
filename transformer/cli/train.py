"""train.py CONFIG: prepare the data, train, score the test sets, write result.json."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from ..core.errors import ConfigError
from ..core.loading import to_yaml
from ..core.plans import shown
from ..core.rundir import CHECKPOINTS, CONFIG_FILE, DATA_REPORT, RESULT, TESTS, WEIGHTS
from ..core.seal import sealed
from ..data.batching import BatchStream
from ..data.dataset import Prepared, prepare, read_parallel
from ..decoding.translator import Translator
from ..evaluation.validation import Validator, score_test_sets
from ..model.transformer import Transformer
from ..training.checkpoint import load_model_weights, write_atomically
from ..training.logbook import Logbook
from ..training.memory import keep_freed_memory
from ..training.trainer import Trainer
from .command import EXIT_CODES, INTERRUPTED, MODEL_FLAGS, Parser, command
from .config import Config
from .describe import REGISTRIES, choices_text, options_text
from .hold import held
from .lines import say
from .resolve import CHANGEABLE, new_config, resumed_config
from .result import commit, describe_result, how_it_ended, versions, write_result
from .room import FIRST_WORDS, room, settle
from .runs import made_with, pick_device

EXIT = {"completed": 0, "diverged": 3, "interrupted": INTERRUPTED}
PREFETCH = 4  # batches made ahead of the trainer


@command
def main(argv: Sequence[str]) -> int:
    """Train, or go on with a run. The exit code tells how it ended."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if (arguments.config is None) == (arguments.resume is None):
        raise ConfigError("give a configuration file, or --resume RUN (which has its own)")
    resume = arguments.resume is not None
    if resume and arguments.overwrite:
        raise ConfigError("--overwrite starts again, --resume goes on: give one of the two")
    overrides = arguments.overrides
    config = (
        resumed_config(arguments.resume, overrides) if resume else new_config(arguments.config, overrides)
    )
    device = pick_device(arguments.device)
    if arguments.check:
        return _check(config, resume)
    run_dir = Path(str(config.run_dir))
    with held(run_dir), nullcontext() if resume else room(run_dir, arguments.overwrite):
        return train(config, run_dir, device, resume, [*parser.prog.split(), *argv])


def train(
    config: Config, run_dir: Path, device: torch.device, resume: bool, command_line: Sequence[str]
) -> int:
    """Wire the floors together and run; the exit code."""
    keep_freed_memory()
    logbook = Logbook(run_dir)
    logbook.say(f"{FIRST_WORDS} {run_dir}" + (", resumed" if resume else ""))
    data = prepare(config.data, run_dir, config.seed, logbook.say)
    tests = {name: _pairs(config, prefix, "test") for name, prefix in config.data.test.items()}
    for line in data.report.text().splitlines():
        logbook.say(line)
    model = Transformer(
        data.source_tokenizer.size, data.target_tokenizer.size, config.model, seed=config.seed
    )
    logbook.say(
        f"{model.parameter_count():,} parameters, placement {shown(config.model.placement)}, on {device}"
    )
    trainer = wire(config, run_dir, data, model.to(device), logbook)
    if resume and _has_begun(run_dir, trainer):
        trainer.resume()
    else:
        if resume:
            logbook.say(f"{how_it_ended(run_dir)}, and nothing was saved: beginning again with update 1")
        calibrate(config, data, model, device, logbook)
    _write_text(run_dir / DATA_REPORT, json.dumps(data.report.as_dict(), indent=2, ensure_ascii=False) + "\n")
    _write_text(run_dir / CONFIG_FILE, sealed(to_yaml(config)))
    settle(run_dir)
    (run_dir / RESULT).unlink(missing_ok=True)  # an earlier end's; until this one comes there is none
    outcome = trainer.fit()
    result = describe_result(config, outcome, model, command_line)
    write_result(run_dir, result)
    if outcome.status == "completed" and tests:
        load_model_weights(run_dir / WEIGHTS, model)
        translator = Translator([model], data.source_tokenizer, data.target_tokenizer, config.decode)
        for name, pairs in tests.items():
            result["test"] |= score_test_sets(translator, {name: pairs}, partial(_keep_translations, run_dir))
            write_result(run_dir, result)
            scores = result["test"][name]
            logbook.say(f"{name}: BLEU {scores['bleu']:.2f}  chrF2 {scores['chrf']:.2f}")
            logbook.say(f"{name}: {scores['signature']['bleu']}")
    return EXIT[outcome.status]


def _has_begun(run_dir: Path, trainer: Trainer) -> bool:
    """Is there something that beginning again would lose?"""
    if not ((run_dir / CHECKPOINTS).exists() or (run_dir / WEIGHTS).exists()):
        return False
    return (run_dir / RESULT).exists() or not trainer.shelf.saved_nothing()


def calibrate(
    config: Config, data: Prepared, model: Transformer, device: torch.device, logbook: Logbook
) -> None:
    """Set the initial values that hang on a batch, where the placement has such, on the first one."""
    if any(placement.calibrated for placement, _ in model.sites()):
        batch = next(data.stream(config.train.batch_tokens).epoch(1)).to(device)
        sites = model.calibrate(batch.source, batch.target_in, seed=config.seed)
        logbook.say(f"initial values of {sites} residual connections set by the first training batch")


def wire(config: Config, run_dir: Path, data: Prepared, model: Transformer, logbook: Logbook) -> Trainer:
    """The trainer, with its stream and the validator it calls."""
    stream = data.stream(config.train.batch_tokens, prefetch=PREFETCH)
    validator = Validator(
        list(BatchStream(data.valid, config.train.batch_tokens, config.seed, shuffle=False).epoch(1)),
        _pairs(config, config.data.valid, "valid"),
        data.source_tokenizer,
        data.target_tokenizer,
        config.decode,
        label_smoothing=config.train.label_smoothing,
        precision=config.train.precision,
        bleu=config.train.validate_bleu,
    )
    return Trainer(
        model,
        stream,
        config.train,
        run_dir,
        validator,
        seed=config.seed,
        unigram_loss=data.train.unigram_entropy(),
        samples=validator.sample_text,
        metadata={
            "commit": commit() or "unknown",
            "torch": versions()["torch"],
            "seed": str(config.seed),
            **made_with(config, data.source_tokenizer, data.target_tokenizer),
        },
        logbook=logbook,
        fixed=_fixed(config, data),
    )


def _fixed(config: Config, data: Prepared) -> dict[str, Any]:
    """What a resumed run must have in common with the run it goes on with, beside `train` and `model`.

    Where the text lies does not count, what it says does. Should a default change, a run does not.
    """
    places = {"train", "valid", "test", "cache"}
    sections = {"data": config.data.model_dump(mode="json", exclude=places)}
    sections |= {"decode": config.decode.model_dump(mode="json")}
    options = {
        f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()
    }
    pieces = {"source pieces": data.source_tokenizer.digest, "target pieces": data.target_tokenizer.digest}
    return {**options, **data.digests, **pieces, **config.model.resolved_options()}


def _pairs(config: Config, prefix: str, split: Literal["valid", "test"]) -> list[tuple[str, str]]:
    return read_parallel(prefix, config.data.source, config.data.target, split)


def _keep_translations(
    run_dir: Path, name: str, translations: Sequence[str], references: Sequence[str]
) -> None:
    """A test set's translations and references, a line each, for paired tests between runs."""
    file = run_dir / TESTS / name.replace(os.sep, "_")
    file.parent.mkdir(exist_ok=True)
    for ending, lines in ((".hyp", translations), (".ref", references)):
        _write_text(file.with_name(file.name + ending), "".join(f"{line}\n" for line in lines))


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _check(config: Config, resume: bool) -> int:
    """Print the resolved configuration, and say on stderr what was checked."""
    print(to_yaml(config), end="")
    say("the configuration is valid: every key, value and combination was checked; no data was read")
    run_dir = str(config.run_dir)
    if not resume and os.path.exists(os.path.join(run_dir, CONFIG_FILE)):
        say(f"note: {run_dir} already holds a run")
    for note in config.train.unused_options():
        say(f"note: {note}")
    return 0


def _parser() -> Parser:
    parser = Parser("train", "Train a translation model, or go on with a run.", _reference)
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a YAML file; what it does not say has its default"
    )
    parser.add_options(
        {**MODEL_FLAGS, "--run-dir": ("run_dir", "where to write the run; it must not hold one yet")}
    )
    changeable = ", ".join(CHANGEABLE)
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help=f"go on where a run stopped, exactly; --set may change {changeable}",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the run that the run directory holds, if any"
    )
    parser.add_argument(
        "--check", action="store_true", help="validate, print the resolved configuration and stop"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    return parser


def _reference() -> str:
    """Everything that can be toggled, for --help."""
    tables = [f"{kind}:\n{choices_text(kind)}" for kind in REGISTRIES]
    return "\n\n".join(
        [*tables, f"options (--set section.key=value, or YAML):\n{options_text()}", EXIT_CODES]
    )

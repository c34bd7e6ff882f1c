"""train.py CONFIG: prepare the data, train, score the test sets, write result.json."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from ..core.errors import ConfigError, OutOfMemory
from ..core.loading import to_yaml
from ..core.plans import shown
from ..core.reading import halved
from ..core.rundir import CHECKPOINTS, CONFIG_FILE, DATA_REPORT, RESULT, WEIGHTS
from ..core.seal import sealed
from ..core.signals import hangup_interrupts
from ..data.batching import BatchStream, Share
from ..data.dataset import Prepared, prepare, read_parallel
from ..data.locating import place_of
from ..decoding.engine import require_products
from ..evaluation.validation import Validator
from ..model.transformer import Transformer
from ..modules.precision import resolve_precision
from ..training.interruption import Interruption
from ..training.launch import launched, own_device, require_launch, restarted, speaks, supervised
from ..training.logbook import Logbook, Mute
from ..training.meeting import CalledOff
from ..training.memory import keep_freed_memory
from ..training.ranks import ALONE, Elsewhere, Ranks, open_ranks
from ..training.shelf import Shelf, tells_of_states
from ..training.trainer import Outcome, Trainer
from .command import EXIT_CODES, MODEL_FLAGS, Parser, command
from .conclude import EXIT, conclude, resumable
from .config import Config
from .describe import REGISTRIES, choices_text, options_text
from .hold import held
from .job import is_of, require_known, sign, taken_up
from .lines import say
from .resolve import CHANGEABLE, new_config, resumed_config
from .result import commit, has_diverged, how_it_ended, versions, write_text
from .room import FIRST_WORDS, put_back, room, settle
from .runs import fixed, made_with, pick_device, started_with

PREFETCH = 4  # batches made ahead of the trainer
SPEAKING = 5.0  # seconds for the process that says why; torchrun kills all when the first has ended
RELEASE = 60.0  # seconds within which what torchrun has killed lets go of the run directory


@command
def main(argv: Sequence[str]) -> int:
    """Train, or go on with a run. The exit code tells how it ended, in each process of it."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    require_launch()  # each process has its own variables, and says itself what is wrong with them
    try:
        return _main(arguments, [*parser.prog.split(), *argv])
    except CalledOff as error:
        say(str(error))
        return EXIT["interrupted"]  # also under torchrun, which has to end the others
    except (Elsewhere, ConfigError) as error:
        if speaks() and not isinstance(error, Elsewhere):  # the others of this machine say the same
            raise
        time.sleep(SPEAKING)
        return error.exit_code


def _main(arguments: Namespace, command_line: Sequence[str]) -> int:
    if (arguments.config is None) == (arguments.resume is None):
        raise ConfigError("give a configuration file, or --resume RUN (which has its own)")
    resume = arguments.resume is not None
    if resume and arguments.overwrite:
        raise ConfigError("--overwrite starts again, --resume goes on: give one of the two")
    if resume and not arguments.check:
        put_back(arguments.resume, _patience() or SPEAKING * launched())  # one rank does it, the others wait
    overrides = arguments.overrides
    config = (
        resumed_config(arguments.resume, overrides) if resume else new_config(arguments.config, overrides)
    )
    if halved(str(config.run_dir)):
        raise ConfigError(
            f"{config.run_dir} is no UTF-8 text, as TensorBoard asks for; choose another --run-dir"
        )
    device = pick_device(own_device(arguments.device))
    require_products(resolve_precision(config.decode.precision, device), device)
    if arguments.check:
        return _check(config, resume) if speaks() else 0
    run_dir = Path(str(config.run_dir))
    # torchrun starts anew, to train on, what does not end with 0; where something may be saved a signal must.
    interruption = Interruption(begins=supervised() and (resume or restarted()))
    ranks_of = open_ranks(device, heard=lambda: interruption.name)
    with hangup_interrupts(), interruption, ranks_of as ranks, ExitStack() as stack:
        interruption.join(ranks)
        ranks.require_alike(started_with(config, resume))
        ranks.decide(lambda: stack.enter_context(held(run_dir, _patience(is_of(run_dir, ranks.job)))))
        if ranks.decide(lambda: taken_up(run_dir, ranks.job)):
            resume = True
            interruption.begin()
            if ranks.decide(lambda: has_diverged(run_dir)):
                return EXIT["diverged"]  # as it would again
        if not resume:
            ranks.decide(lambda: require_known(ranks.job, run_dir, arguments.overwrite))
            ranks.decide(lambda: stack.enter_context(room(run_dir, arguments.overwrite)))
        return train(config, run_dir, device, resume, command_line, interruption)


def _patience(again: bool = False) -> float:
    """Seconds to wait for the lock. `again`: an earlier attempt of this job has trained there.

    A machine that has taken the place of another one is started for the first time.
    """
    return RELEASE if again or restarted() else 0.0


def train(
    config: Config,
    run_dir: Path,
    device: torch.device,
    resume: bool,
    command_line: Sequence[str],
    interruption: Interruption,
) -> int:
    """Wire the floors together and run; the exit code. Of several ranks the first one alone writes.

    The `interruption` begins when there is something to be saved, at the latest.
    """
    ranks = interruption.ranks
    keep_freed_memory()
    logbook = Logbook(run_dir) if ranks.chief else Mute(run_dir)
    logbook.say(f"{FIRST_WORDS} {run_dir}" + (", resumed" if resume else ""))
    if ranks.size > 1:
        logbook.say(f"{ranks.size} processes, {config.train.parallel}")
    with ranks.chief_first():
        data = prepare(config.data, run_dir, config.seed, logbook.say)
    tests = {name: _pairs(config, prefix) for name, prefix in config.data.test.items()}
    for line in data.report.text().splitlines():
        logbook.say(line)
    model = Transformer(
        data.source_tokenizer.size, data.target_tokenizer.size, config.model, seed=config.seed
    )
    logbook.say(
        f"{model.parameter_count():,} parameters, placement {shown(config.model.placement)}, on {device}"
    )
    model = model.to(device)
    begun = resume and ranks.decide(lambda: _has_begun(run_dir, config))
    if resume and not begun:
        logbook.say(f"{how_it_ended(run_dir)}, and nothing was saved: beginning again with update 1")
    # Also of a run that is resumed: what it died of may be sought from its initial values.
    calibrate(config, data, model, device, Mute(run_dir) if begun else logbook)
    ranks.require_alike(fixed(config, data))
    trainer = wire(config, run_dir, data, model, logbook, ranks)
    interruption.begin()
    with resumable(trainer):
        if begun:
            trainer.resume()
        ranks.decide(lambda: _lay_out(config, run_dir, data, ranks.job))
        outcome = _fit(trainer, config, data, interruption)
        interruption.meanwhile = "ending the run"
        return ranks.decide(
            lambda: conclude(config, run_dir, data, tests, trainer, outcome, command_line, interruption)
        )


def _lay_out(config: Config, run_dir: Path, data: Prepared, job: str) -> None:
    """What a run directory holds from its first update on."""
    write_text(run_dir / DATA_REPORT, json.dumps(data.report.as_dict(), indent=2, ensure_ascii=False) + "\n")
    (run_dir / RESULT).unlink(missing_ok=True)  # an earlier end's; until this one comes there is none
    sign(run_dir, job)
    write_text(run_dir / CONFIG_FILE, sealed(to_yaml(config)))
    settle(run_dir)


def _fit(trainer: Trainer, config: Config, data: Prepared, interruption: Interruption) -> Outcome:
    """Train; a pair that memory does not hold is named by its file and line."""
    try:
        return trainer.fit(interruption)
    except OutOfMemory as error:
        tokenizers = data.source_tokenizer, data.target_tokenizer
        where = "" if error.pair is None else place_of(config.data, tokenizers, error.pair)
        raise OutOfMemory(f"{where}: {error}" if where else str(error), error.pair) from error


def _has_begun(run_dir: Path, config: Config) -> bool:
    """Is there something that beginning again would lose?"""
    if not ((run_dir / CHECKPOINTS).exists() or (run_dir / WEIGHTS).exists() or tells_of_states(run_dir)):
        return False
    return (run_dir / RESULT).exists() or not Shelf(run_dir, config.train, {}).saved_nothing()


def calibrate(
    config: Config, data: Prepared, model: Transformer, device: torch.device, logbook: Logbook
) -> None:
    """Set the initial values that hang on a batch, where the placement has such, on the first one."""
    if any(placement.calibrated for placement, _ in model.sites()):
        batch = next(data.stream(config.train.batch_tokens).epoch(1)).to(device)
        sites = model.calibrate(batch.source, batch.target_in, seed=config.seed)
        logbook.say(f"initial values of {sites} residual connections set by the first training batch")


def wire(
    config: Config,
    run_dir: Path,
    data: Prepared,
    model: Transformer,
    logbook: Logbook,
    ranks: Ranks = ALONE,
) -> Trainer:
    """The trainer, with its stream and the validator it calls."""
    share = Share(ranks.rank, ranks.size)
    stream = data.stream(config.train.batch_tokens, prefetch=PREFETCH, share=share)
    validator = Validator(
        list(BatchStream(data.valid, config.train.batch_tokens, config.seed, shuffle=False).epoch(1)),
        data.references(),
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
        fixed=fixed(config, data),
        ranks=ranks,
    )


def _pairs(config: Config, prefix: str) -> list[tuple[str, str]]:
    return read_parallel(prefix, config.data.source, config.data.target, "test")


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

"""The end of a run: result.json, and what the test sets say of its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..core.rundir import WEIGHTS, kept
from ..data.dataset import Prepared
from ..decoding.translator import Translator
from ..evaluation.validation import score_test_sets
from ..training.checkpoint import load_model_weights
from ..training.interruption import Interrupted, Interruption
from ..training.launch import supervised
from ..training.trainer import Outcome, Trainer
from .command import INTERRUPTED
from .config import Config
from .result import describe_result, write_result, write_text

EXIT = {"completed": 0, "diverged": 3, "interrupted": INTERRUPTED}


@contextmanager
def resumable(trainer: Trainer) -> Iterator[None]:
    """A context in which a file that cannot be written or read ends the run with how it goes on."""
    try:
        yield
    except CheckpointError as error:
        if trainer.saved < 0:
            raise
        way = f"--resume {trainer.run_dir} goes on after update {trainer.saved:,}"
        raise CheckpointError(f"{error}. The run stops here: once this is mended, {way}") from error


def conclude(
    config: Config,
    run_dir: Path,
    data: Prepared,
    tests: dict[str, list[tuple[str, str]]],
    trainer: Trainer,
    outcome: Outcome,
    command_line: Sequence[str],
    interruption: Interruption,
) -> int:
    """Score the test sets of a run that is completed, and write result.json; the exit code.

    A signal breaks the scoring off: then the run ends as interrupted, and resumed it does its end again.
    """
    model, logbook = trainer.layout.whole(), trainer.logbook
    scores: dict[str, Any] = {}
    if outcome.status == "completed" and tests:
        try:
            with interruption.breaking("the scoring of the test sets"):
                load_model_weights(run_dir / WEIGHTS, model)
                translator = Translator([model], data.source_tokenizer, data.target_tokenizer, config.decode)
                for name, pairs in tests.items():
                    scores |= score_test_sets(translator, {name: pairs}, partial(_keep_translations, run_dir))
                    logbook.say(f"{name}: BLEU {scores[name]['bleu']:.2f}  chrF2 {scores[name]['chrf']:.2f}")
                    logbook.say(f"{name}: {scores[name]['signature']['bleu']}")
                    for warning in scores[name].get("warnings", ()):
                        logbook.say(f"{name}: warning: {warning}")
        except Interrupted:
            reason = f"{interruption.name} while the test sets were scored; --resume scores them"
            logbook.say(f"interrupted: {reason}")
            outcome = replace(outcome, status="interrupted", reason=reason)
    result = describe_result(config, outcome, model, command_line, trainer.ranks.size)
    write_result(run_dir, {**result, "test": scores})
    return exit_code(outcome.status)


def exit_code(status: str) -> int:
    """Of a run that has ended so. torchrun would start one anew that was interrupted, but for a 0."""
    return 0 if status == "interrupted" and supervised() else EXIT[status]


def _keep_translations(
    run_dir: Path, name: str, translations: Sequence[str], references: Sequence[str]
) -> None:
    """A test set's translations and references, a line each, for paired tests between runs."""
    for ending, lines in (("hyp", translations), ("ref", references)):
        write_text(kept(run_dir, name, ending), "".join(f"{line}\n" for line in lines))

"""The end of a run: result.json, and what the test sets say of its model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..core.rundir import TESTS, WEIGHTS
from ..data.dataset import Prepared
from ..decoding.translator import Translator
from ..evaluation.validation import score_test_sets
from ..training.checkpoint import load_model_weights
from ..training.trainer import Outcome, Trainer
from .command import INTERRUPTED
from .config import Config
from .result import describe_result, write_result, write_text

EXIT = {"completed": 0, "diverged": 3, "interrupted": INTERRUPTED}


def conclude(
    config: Config,
    run_dir: Path,
    data: Prepared,
    tests: dict[str, list[tuple[str, str]]],
    trainer: Trainer,
    outcome: Outcome,
    command_line: Sequence[str],
) -> int:
    """Write result.json and score the test sets; the exit code."""
    model, logbook = trainer.layout.whole(), trainer.logbook
    result = describe_result(config, outcome, model, command_line, trainer.ranks.size)
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


def _keep_translations(
    run_dir: Path, name: str, translations: Sequence[str], references: Sequence[str]
) -> None:
    """A test set's translations and references, a line each, for paired tests between runs."""
    file = run_dir / TESTS / name.replace(os.sep, "_")
    file.parent.mkdir(exist_ok=True)
    for ending, lines in ((".hyp", translations), (".ref", references)):
        write_text(file.with_name(file.name + ending), "".join(f"{line}\n" for line in lines))

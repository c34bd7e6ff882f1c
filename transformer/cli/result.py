"""result.json: how a run ended, with what it takes to tell which run it was."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..core.disk import content
from ..core.errors import CheckpointError
from ..core.plans import shown
from ..core.reading import read_json
from ..core.rundir import RESULT
from ..model.transformer import Transformer
from ..training.checkpoint import write_atomically
from ..training.trainer import Outcome
from .config import Config
from .lines import finite

PACKAGES = ("prepost-transformer", "torch", "numpy", "sentencepiece", "sacrebleu", "safetensors", "pydantic")


def describe_result(
    config: Config, outcome: Outcome, model: Transformer, command: Sequence[str], processes: int = 1
) -> dict[str, Any]:
    """All that result.json holds; `test` will be name -> {bleu, chrf, ter, signature}."""
    metrics = outcome.metrics
    return {
        "status": outcome.status,
        "reason": outcome.reason,
        "divergence": outcome.divergence,
        "updates": outcome.updates,
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
        "target_tokens": outcome.target_tokens,
        "target_tokens_per_second": outcome.target_tokens_per_second,
        "parameters": model.parameter_count(),
        "placement": shown(config.model.placement),
        "norm": shown(config.model.norm),
        "options": config.model.resolved_options(),
        "optimizer": config.train.optimizer,
        "schedule": config.train.schedule,
        "warmup": config.train.warmup,
        "peak_lr": config.train.lr,
        "seed": config.seed,
        "valid_loss": metrics.get("loss"),
        "valid_perplexity": metrics.get("perplexity"),
        "valid_bleu": metrics.get("bleu"),
        "best_update": outcome.best_update,
        "averaged": outcome.averaged,
        "test": {},
        "device": str(model.output_weight.device),
        "processes": processes,
        "versions": versions(),
        "commit": commit(),
        "command": shlex.join(command),
    }


def write_result(run_dir: Path, result: Mapping[str, Any]) -> None:
    """Write result.json, whole or not at all; what is not a number becomes null."""
    text = json.dumps(finite(dict(result)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(run_dir / RESULT, text)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def how_it_ended(run_dir: Path) -> str:
    """`the run ended as diverged (REASON)`, as result.json says, or that it does not say.

    Of a reason that is long, as that of a diverged run is, the first part.
    """
    try:
        result = read_result(run_dir)
        first, more, _ = str(result["reason"]).partition("; ")
        more = f"; all of it: {run_dir / RESULT}" if more else ""
        return f"the run ended as {result['status']} ({first}{more})"
    except (CheckpointError, KeyError):
        return "the run did not come to an end"


def read_result(run_dir: Path) -> dict[str, Any]:
    """What result.json holds; CheckpointError when it is missing or no JSON object."""
    path = run_dir / RESULT
    try:
        result = read_json(content(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no scores here ({error}); has the run ended?") from error
    if not isinstance(result, dict):
        raise CheckpointError(f"{path}: no scores here (not a JSON object); has the run ended?")
    return result


def has_diverged(run_dir: Path) -> bool:
    """Does result.json say so?"""
    try:
        return read_result(run_dir).get("status") == "diverged"
    except CheckpointError:
        return False


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def commit() -> str | None:
    """The commit that this package's source is of, `-dirty` with changes; None outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # A package installed into some other project's tree is not of that project's commit.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", "result.py"], capture_output=True, check=True, timeout=10
        )
        done = subprocess.run([*git, *describe], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

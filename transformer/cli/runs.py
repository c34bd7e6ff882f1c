"""Load what a run directory holds: configuration, tokenizers and a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError, ConfigError, is_out_of_memory
from ..core.rundir import CHECKPOINTS, CONFIG_FILE, RESULT, TOKENIZERS, WEIGHTS
from ..data.dataset import Prepared
from ..data.tokenizer import Tokenizer, load_tokenizers
from ..model.transformer import Transformer
from ..training.checkpoint import load_model_weights
from .config import Config
from .resolve import run_config
from .result import how_it_ended, versions

PLACES = {"train", "valid", "test", "cache"}  # options of `data` that say where something lies


@dataclass(frozen=True)
class Run:
    """A trained model and what it needs to read and write text; `header` is that of its weights file."""

    directory: Path
    config: Config
    model: Transformer
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    header: dict[str, str]


def load_run(directory: Path, checkpoint: str | None = None, device: torch.device | None = None) -> Run:
    """Load a run with its model, or with other weights: `checkpoint` is `last`, `update-0000500` or a file.

    Raises CheckpointError, which names the file, when something is missing, cut short or of another model.
    """
    config = run_config(directory)
    source, target = load_tokenizers(directory / TOKENIZERS)
    model = Transformer(source.size, target.size, config.model, seed=config.seed)
    file = weights_file(directory, checkpoint)
    if checkpoint is None and not file.exists() and (directory / RESULT).exists():
        raise CheckpointError(f"{file}: no such file; {how_it_ended(directory)}")
    header = load_model_weights(file, model)
    require_made_with(header, config, source, target, file)
    return Run(directory, config, model.to(device).eval(), source, target, header)


def made_with(config: Config, source: Tokenizer, target: Tokenizer) -> dict[str, str]:
    """What weights mean nothing without, for the header of their file: the `model` section and the pieces."""
    return {"model": config.model.model_dump_json(), "pieces": f"{source.digest} {target.digest}"}


def started_with(config: Config, resume: bool) -> dict[str, Any]:
    """What all processes of a run must have been given, before any of them has read the text.

    Where things lie does not count.
    """
    values = config.model_dump(mode="json", exclude={"run_dir": True, "data": PLACES})
    options = {
        f"{section}.{name}": value
        for section, options in values.items()
        if isinstance(options, dict)
        for name, value in options.items()
    }
    return {
        **options,
        "seed": config.seed,
        "--resume": resume,
        "torch": versions()["torch"].partition("+")[0],
    }


def fixed(config: Config, data: Prepared) -> dict[str, Any]:
    """What a resumed run must have in common with the run it goes on with, beside `train` and `model`.

    Where the text lies does not count, what it says does. Should a default change, a run does not.
    """
    sections = {"data": config.data.model_dump(mode="json", exclude=PLACES)}
    sections |= {"decode": config.decode.model_dump(mode="json")}
    options = {
        f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()
    }
    pieces = {"source pieces": data.source_tokenizer.digest, "target pieces": data.target_tokenizer.digest}
    return {**options, **data.digests, **pieces, **config.model.resolved_options()}


def require_made_with(
    header: Mapping[str, str], config: Config, source: Tokenizer, target: Tokenizer, file: Path
) -> None:
    """CheckpointError if configuration or tokenizers are others than the weights were trained with.

    Options that one of two versions does not know are not compared.
    """
    now = made_with(config, source, target)
    before, here = _options(header, file), json.loads(now["model"])
    changed = [
        f"model.{name} = {before[name]}" for name in here if before.get(name, here[name]) != here[name]
    ]
    if header.get("pieces", now["pieces"]) != now["pieces"]:
        changed.append("other subwords than the tokenizer's")
    if changed:
        raise CheckpointError(
            f"{file}: trained with {', '.join(changed)}; {CONFIG_FILE} or {TOKENIZERS} of the run was edited"
            " or damaged (put back a copy), or these are weights of another run"
        )


def _options(header: Mapping[str, str], file: Path) -> dict[str, Any]:
    """The `model` section that a weights file names."""
    with suppress(ValueError, RecursionError):
        if isinstance(options := json.loads(header.get("model", "{}")), dict):
            return options
    raise CheckpointError(f"{file}: its header names no options of a model; put back a copy")


def load_ensemble(
    directories: Sequence[Path], checkpoint: str | None = None, device: torch.device | None = None
) -> list[Run]:
    """Runs whose models can vote together: they read and write the same languages in the same subwords."""
    runs = [load_run(directory, checkpoint, device) for directory in directories]
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = ((data.source, data.target) for data in (first.config.data, run.config.data))
        if ours != theirs:
            raise CheckpointError(
                f"{run.directory} translates {'-'.join(theirs)}, {first.directory} {'-'.join(ours)}:"
                " they cannot vote together"
            )
        for side in ("source", "target"):
            digests = (getattr(r, f"{side}_tokenizer").digest for r in (first, run))
            if len(set(digests)) > 1:
                raise CheckpointError(
                    f"{run.directory}: its {side} vocabulary is not that of {first.directory}; an ensemble"
                    " needs one vocabulary: train both on the same text with the same data.tokenizer"
                )
    return runs


def weights_file(directory: Path, checkpoint: str | None) -> Path:
    """The file that `checkpoint` names in a run; None is the run's model."""
    if checkpoint is None:
        return directory / WEIGHTS
    if checkpoint == "last":
        return directory / CHECKPOINTS / "last" / WEIGHTS
    within = directory / CHECKPOINTS / f"{checkpoint}.safetensors"
    return within if within.exists() else Path(checkpoint)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except Exception as error:  # each backend that is not there says so with a class of its own
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        if "INTERNAL ASSERT" in reason:  # of names that torch no longer has a use for
            reason = "this torch does not compute on it"
        raise ConfigError(f"--device {name}: {reason}; use auto, cpu, cuda or cuda:0") from None
    return device

"""From a command line to a configuration: which file it names, and what a resumed run may change."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core.configuration import Section
from ..core.errors import CheckpointError, ConfigError, Problem
from ..core.loading import Override, load
from ..core.rundir import CONFIG_FILE
from ..core.seal import is_broken
from ..data.cache import PARTS
from ..training import config as training
from .config import Config, default_run_dir
from .room import put_aside

CHANGEABLE = tuple(f"train.{name}" for name in training.CHANGEABLE)
Overrides = Sequence[str | Override]


def new_config(file: str, overrides: Overrides) -> Config:
    """The configuration of a new run, `run_dir` filled in."""
    config = load(Config, file, overrides)
    if config.run_dir is not None:
        if not config.run_dir.strip() or "\0" in config.run_dir:
            raise ConfigError([Problem("run_dir", f"{config.run_dir!r} cannot name a directory")])
    else:
        config = config.model_copy(update={"run_dir": default_run_dir(Path(file), config, overrides)})
    _require_apart(str(config.run_dir), config.data.cache)
    return config


def _require_apart(run_dir: str, cache: str) -> None:
    """Raise ConfigError for a cache that writes into the run directory, links followed.

    A start that is killed leaves it there, and it is nothing that a run writes: no start would have room. A
    run of an older version that has one goes on, and is read.
    """
    own = os.path.realpath(run_dir)
    if any(Path(os.path.realpath(os.path.join(cache, part))).is_relative_to(own) for part in PARTS):
        message = f"what is kept in {cache} would lie in the run directory {run_dir}, which holds a run alone"
        hint = "set data.cache to a directory outside of it, or choose another --run-dir"
        raise ConfigError([Problem("data.cache", message, hint=hint)])


def resumed_config(run: Path, overrides: Overrides) -> Config:
    """The configuration of a run that goes on: its own, with other limits. ConfigError for other changes."""
    file = config_file_of(run)
    if is_broken(file):
        raise CheckpointError(
            f"{file}: damaged or edited after it was written; put back a copy, or take out its first line if"
            " what it says is what you want (what may change when a run goes on is given with --set)"
        )
    written = load(Config, file)
    config = load(Config, file, overrides)
    horizon = written.train.depends_on_end
    problems = []
    for key, before, after in _differences(written, config):
        if key not in CHANGEABLE:
            message = f"a run goes on with what it was started with: {before!r}, not {after!r}"
            problems.append(
                Problem(key, message, hint=f"start a new run, or change only {', '.join(CHANGEABLE)}")
            )
        elif horizon and key in ("train.updates", "train.epochs"):
            message = (
                f"the {config.train.schedule} schedule of this run was laid out for {before}, not {after}"
            )
            problems.append(
                Problem(key, message, hint="a schedule that needs the end of the run cannot get another one")
            )
    if problems:
        raise ConfigError(problems)
    return config.model_copy(update={"run_dir": str(run)})  # it may have been moved


def run_config(run: Path) -> Config:
    """The configuration that a run directory holds."""
    return load(Config, config_file_of(run))


def config_file_of(run: Path) -> Path:
    """RUN/config.yaml, or CheckpointError. An export has one, too."""
    file = run / CONFIG_FILE
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run directory; train one with train.py")
    if not file.is_file():
        if file.exists():
            raise CheckpointError(f"{file}: it is no regular file; put back a copy of it")
        if put_aside(run):
            raise CheckpointError(
                f"{run}: its run was put aside by a start with --overwrite, which is at work or was killed;"
                f" train.py --resume {run} puts it back"
            )
        raise CheckpointError(
            f"{run}: not a run directory nor a whole export: it holds no {CONFIG_FILE}; put back a copy of it"
            " or, where a start was killed before it had written one, start again"
        )
    return file


def _differences(one: Section, other: Section, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """(key, value in one, value in the other) of every option that differs."""
    for name in type(one).model_fields:
        before, after = getattr(one, name), getattr(other, name)
        if isinstance(before, Section) and isinstance(after, Section):
            yield from _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name}", before, after

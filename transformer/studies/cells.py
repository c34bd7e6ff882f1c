"""The cells of a study: one run directory for each setting and seed, known before anything is trained."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, Literal

from ..core.configuration import Section
from ..core.disk import content
from ..core.errors import CheckpointError, ConfigError, Problem
from ..core.loading import Override, load
from ..core.plans import shown
from ..core.reading import read_json, read_yaml
from ..core.rundir import CONFIG_FILE, RESULT
from .config import ARM, DEPTH, DEPTHS, Study, Values
from .metrics import scored_set

RUNS = Path("runs/studies")
LONGEST_NAME = 150  # bytes; file systems stop at 255, and a seed, a digest and an ending follow
# What two runs of one cell may differ in: where they are, and what is written when.
FREE = (
    *("run_dir", "data.cache", "train.threads", "train.keep"),
    *("train.log_every", "train.probe_every", "train.save_every"),
)
BARE = ("placement", "norm", ARM)  # keys whose values say enough in a name

Resolve = Callable[[str, Sequence[str | Override]], Section]
State = Literal["new", "interrupted", "completed", "diverged", "damaged"]
FINISHED: tuple[State, ...] = ("completed", "diverged")


@dataclass(frozen=True)
class Cell:
    """One run of a study. `values` are the arm and the axes' values, as the study file names them.

    `overrides` are all options that differ from `base`; `config` is what they resolve to.
    """

    name: str
    overrides: Mapping[str, Any]
    run_dir: Path
    seed: int
    values: Mapping[str, Any]
    base: str = ""
    config: Section | None = None

    def arguments(self) -> list[str]:
        """The cell's options for the command line."""
        pairs = [(key, json.dumps(value, ensure_ascii=False)) for key, value in self.overrides.items()]
        return [word for key, value in pairs for word in ("--set", f"{key}={value}")]


def plan(study: Study, resolve: Resolve, runs: Path = RUNS) -> list[Cell]:
    """Every cell, the settings of the first seed first, each with its configuration.

    `resolve` is the loader of training runs. Raises ConfigError with every problem of every cell.
    """
    cells: list[Cell] = []
    problems: dict[tuple[str, str], tuple[Problem, list[str]]] = {}
    for (seed, setting), name in _named(study):
        run_dir = runs / study.name / "cells" / name
        overrides = {**study.budget, **_options(setting), "seed": seed}
        laid = [*_laid(study, overrides), Override(("run_dir",), str(run_dir), "the study")]
        try:
            config = resolve(study.base, laid)
            found = list(_metric_problems(study, config))
        except ConfigError as error:
            found = error.problems
        for problem in found:
            problems.setdefault((problem.path, problem.message), (problem, []))[1].append(name)
        if not found:
            cells.append(Cell(name, overrides, run_dir, seed, setting, study.base, config))
    if problems:
        raise ConfigError([_of_cells(problem, names) for problem, names in problems.values()])
    return cells


def shard(cells: Sequence[Cell], i: int, n: int) -> list[Cell]:
    """The i-th of n parts (i from 1), so that no arm is always on one machine.

    From n seeds on, a part has whole seeds, within which arms are compared. Fewer seeds are dealt out cell by
    cell to equal parts, and the deal begins at another part for each seed.
    """
    if not 1 <= i <= n:
        raise ConfigError(f"--shard {i}/{n}: give i/n with i from 1 to n")
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    if len(seeds) >= n:
        return [cell for cell in cells if cell.seed in seeds[i - 1 :: n]]
    own: list[Cell] = []
    for number, seed in enumerate(seeds):
        held = [cell for cell in cells if cell.seed == seed]
        deals = n // gcd(len(held), n)  # after so many seeds the parts are equal, and the turn is moved on
        begin = number * len(held) + number // deals
        own += held[(i - 1 - begin) % n :: n]
    return own


def state(cell: Cell) -> State:
    """How far a cell is. ConfigError when its directory holds another run than the study asks for."""
    return states([cell])[cell.name]


def states(cells: Sequence[Cell]) -> dict[str, State]:
    """The state of each cell; ConfigError with each option that runs were made with and the study changed."""
    changed: dict[tuple[str, str, str], list[Cell]] = {}
    found: dict[str, State] = {}
    for cell in cells:
        kept = _kept(cell)
        if kept is not None and cell.config is not None:
            for key, before, now in differences(kept, cell.config):
                changed.setdefault((key, repr(before), repr(now)), []).append(cell)
        damaged = kept is None and cell.config is not None and (cell.run_dir / CONFIG_FILE).is_file()
        found[cell.name] = "damaged" if damaged else _state(cell)
    if changed:
        raise ConfigError([_changed(*change, held) for change, held in changed.items()])
    return found


def refuse_damaged(cells: Sequence[Cell], known: Mapping[str, State]) -> None:
    """CheckpointError that names each configuration which cannot be gone on with."""
    damaged = [str(cell.run_dir / CONFIG_FILE) for cell in cells if known[cell.name] == "damaged"]
    if damaged:
        raise CheckpointError(
            f"{', '.join(damaged)}: damaged, not the whole configuration of a run;"
            " delete the directory to train the cell again"
        )


def _kept(cell: Cell) -> Section | None:
    """The configuration that a cell's run was made with; None if there is none, or it is not whole.

    A run writes every section. A file that lacks one was cut short, and would look like another study's.
    """
    file = cell.run_dir / CONFIG_FILE
    if cell.config is None or not file.is_file():
        return None
    try:
        config = load(type(cell.config), file)
    except ConfigError:
        return None
    return config if type(cell.config).model_fields.keys() <= load_yaml(cell).keys() else None


def _state(cell: Cell) -> State:
    if not (cell.run_dir / CONFIG_FILE).is_file():
        return "new"
    result = read_result(cell.run_dir)
    if result.get("status") == "diverged":
        return "diverged"
    tests = set(load_yaml(cell).get("data", {}).get("test") or {})
    if result.get("status") == "completed" and tests <= set(result.get("test") or {}):
        return "completed"
    return "interrupted"


def differences(one: Section, other: Section) -> list[tuple[str, Any, Any]]:
    """(option, value in one, value in the other) where two configurations differ, `FREE` apart."""
    ours, theirs = flat(one.model_dump(mode="json")), flat(other.model_dump(mode="json"))
    keys = [key for key in {**ours, **theirs} if key not in FREE]
    return [(key, ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    pairs: dict[str, Any] = {}
    for key, value in values.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else None
        pairs |= {f"{prefix}{key}": value} if inner is None else inner
    return pairs


def read_result(run_dir: Path) -> dict[str, Any]:
    """What result.json holds; nothing when the run has not come to an end."""
    try:
        result = read_json(content(run_dir / RESULT))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def load_yaml(cell: Cell) -> dict[str, Any]:
    """The configuration that the run directory of a cell holds."""
    file = cell.run_dir / CONFIG_FILE
    values = read_yaml(content(file), str(file)).values
    return values if isinstance(values, dict) else {}


def _options(setting: Values) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, value in setting.items():
        if key != ARM:
            options |= dict.fromkeys(DEPTHS if key == DEPTH else (key,), value)
    return options


def _laid(study: Study, overrides: Mapping[str, Any]) -> Iterator[Override]:
    for key, value in overrides.items():
        place = "budget" if key in study.budget else f"study {study.name}"
        yield Override(tuple(key.split(".")), value, f"{place}: {key}={value}")


def _named(study: Study) -> Iterator[tuple[tuple[int, Values], str]]:
    """((seed, setting), name): `post-warmup0-lr0.003-seed1`, fit for a file, and different for each."""
    grid = [(seed, setting) for seed in study.seeds for setting in study.settings()]
    names = [_name(study, setting, seed) for seed, setting in grid]
    count = Counter(name.lower() for name in names)  # some file systems do not tell cases apart
    for (seed, setting), name in zip(grid, names, strict=True):
        digest = hashlib.sha256(json.dumps([setting, seed], sort_keys=True).encode()).hexdigest()[:8]
        yield (seed, setting), name if count[name.lower()] == 1 else f"{name}-{digest}"


def _name(study: Study, setting: Values, seed: int) -> str:
    parts = [str(setting[ARM])] if study.arms else []
    for key in study.axes:
        word, text = key.rpartition(".")[2], _shown(setting[key])
        parts.append(text if word in BARE else f"{word}{text}")
    clean = "-".join(re.sub(r"[^\w.+=-]+", "_", part).strip("_") for part in parts)
    short = clean.encode()[:LONGEST_NAME].decode(errors="ignore")
    return f"{short}-seed{seed}".removeprefix("-")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "_".join(map(_shown, value))
    short = f"{value:g}" if isinstance(value, float) else shown(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _metric_problems(study: Study, config: Section) -> Iterator[Problem]:
    """Does the configuration measure what the study asks for?"""
    values = flat(config.model_dump(mode="json"))
    for path, metric in (
        ("metric", study.metric),
        *((f"questions.{n}.metric", q.metric) for n, q in enumerate(study.questions) if q.metric),
    ):
        test = scored_set(metric)
        if test and f"data.test.{test[0]}" not in values:
            yield Problem(path, f"{metric}: data.test has no set {test[0]!r}")
        if metric == "valid_bleu" and not values.get("train.validate_bleu", True):
            yield Problem(path, "valid_bleu is not measured", hint="set train.validate_bleu: true")


def _of_cells(problem: Problem, names: Sequence[str]) -> Problem:
    """The problem with the cells that have it."""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    source = ", ".join(part for part in (problem.source, f"cell {names[0]}{others}") if part)
    return Problem(problem.path, problem.message, source, problem.hint)


def _changed(key: str, before: str, now: str, cells: Sequence[Cell]) -> Problem:
    were = f"and {len(cells) - 1} more were" if len(cells) > 1 else "was"
    return Problem(
        key,
        f"the run in {cells[0].run_dir} {were} made with {before}, and the study now says {now}",
        hint="give the changed study another `name`, or another --runs; or delete what was made before",
    )

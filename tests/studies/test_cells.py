"""Cells: their names, their configurations, their states, their parts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from transformer.cli.resolve import new_config
from transformer.core.errors import CheckpointError, ConfigError
from transformer.core.loading import load, to_yaml
from transformer.studies.cells import Cell, plan, refuse_damaged, shard, state, states
from transformer.studies.config import Study, load_study
from transformer.studies.runner import lock_of

BASE = """\
data: {test: {demo: demo}}
model: {d_model: 16, heads: 2, d_ff: 32, encoder_layers: 1, decoder_layers: 1}
train: {updates: 10, warmup: 2}
"""
FILE = """\
name: grid
base: base.yaml
axes:
  model.placement: [post, {encoder: post, decoder: pre}]
  train.lr: [1e-3, 0.00123456789, 0.0012345678]
  depth: [1, 3]
budget: {train.updates: 7}
seeds: [1, 2]
"""


def study_of(folder: Path, text: str = FILE) -> Study:
    (folder / "base.yaml").write_text(BASE, encoding="utf-8")
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    return load_study(folder / "study.yaml")


def cells_of(folder: Path, text: str = FILE) -> list[Cell]:
    return plan(study_of(folder, text), new_config, folder / "runs")


def leave(cell: Cell, result: dict[str, Any] | None = None) -> None:
    """What a training leaves behind of itself."""
    assert cell.config is not None
    cell.run_dir.mkdir(parents=True, exist_ok=True)
    (cell.run_dir / "config.yaml").write_text(to_yaml(cell.config), encoding="utf-8")
    if result is not None:
        (cell.run_dir / "result.json").write_text(json.dumps(result), encoding="utf-8")


def test_each_cell_has_a_name_and_a_directory_of_its_own(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    assert len({cell.name for cell in cells}) == len({cell.run_dir for cell in cells}) == 2 * 3 * 2 * 2
    assert cells[0].name == "post-lr0.001-depth1-seed1"
    assert all(cell.run_dir == tmp_path / "runs" / "grid" / "cells" / cell.name for cell in cells)
    assert [cell.seed for cell in cells] == [1] * 12 + [2] * 12


def test_a_name_does_not_hang_on_what_else_the_study_holds(tmp_path: Path) -> None:
    fewer = FILE.replace("[1, 2]", "[2]").replace("[1e-3, 0.00123456789, 0.0012345678]", "[1e-3]")
    names = {cell.name: cell.values for cell in cells_of(tmp_path)}
    assert all(names[cell.name] == cell.values for cell in cells_of(tmp_path, fewer))


def test_names_that_would_be_one_are_told_apart(tmp_path: Path) -> None:
    arms = "arms: [{label: a b, set: {train.clip: 1}}, {label: a/b, set: {train.clip: 2}}, {label: A_b}]\n"
    names = [cell.name for cell in cells_of(tmp_path, f"name: x\nbase: base.yaml\nseeds: [1]\n{arms}")]
    assert len({name.lower() for name in names}) == 3
    assert all("/" not in name and " " not in name for name in names)


def test_a_cell_is_the_base_with_the_budget_and_its_values(tmp_path: Path) -> None:
    for cell in cells_of(tmp_path):
        config = cell.config
        written = [*cell.arguments()[1::2], f"run_dir={cell.run_dir}"]
        assert config == new_config(cell.base, written), "the command line says the same"
        values = config.model_dump()  # type: ignore[union-attr]
        assert values["train"]["updates"] == 7
        assert values["train"]["lr"] == cell.values["train.lr"]
        assert values["model"]["encoder_layers"] == values["model"]["decoder_layers"] == cell.values["depth"]
        assert values["seed"] == cell.seed


def test_every_problem_of_every_cell_is_told_once(tmp_path: Path) -> None:
    text = FILE.replace("[post,", "[psot,").replace("depth: [1, 3]", "model.heads: [2, 3, 5]")
    with pytest.raises(ConfigError) as failure:
        cells_of(tmp_path, text + "metric: test.other.bleu\n")
    told = str(failure.value)
    assert told.count("did you mean 'post'?") == 1
    assert "3 does not divide d_model = 16" in told
    assert "5 does not divide d_model = 16" in told
    assert "and 17 more" in told
    assert "psot-lr0.001-heads2-seed1" in told


def test_a_metric_that_the_runs_do_not_measure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no set 'other'"):
        cells_of(tmp_path, FILE + "metric: test.other.bleu\n")
    off = FILE.replace("train.updates: 7", "train.validate_bleu: false, train.metric: loss")
    with pytest.raises(ConfigError, match="valid_bleu is not measured"):
        cells_of(tmp_path, off + "metric: valid_bleu\n")


@pytest.mark.parametrize("n", [1, 2, 5, 24, 30])
def test_the_parts_of_a_study_hold_every_cell_once(tmp_path: Path, n: int) -> None:
    cells = cells_of(tmp_path)
    parts = [[cell.name for cell in shard(cells, i, n)] for i in range(1, n + 1)]
    assert sorted(name for part in parts for name in part) == sorted(cell.name for cell in cells)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_part_has_whole_seeds_where_there_are_enough(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, FILE.replace("seeds: [1, 2]", "seeds: [1, 2, 3, 4, 5]"))
    parts = [shard(cells, i, 2) for i in (1, 2)]
    assert [sorted({cell.seed for cell in part}) for part in parts] == [[1, 3, 5], [2, 4]]
    assert [len(part) for part in parts] == [36, 24]


@pytest.mark.parametrize("n", [3, 4, 6, 8, 12])
def test_no_arm_is_on_one_part_alone_where_seeds_are_fewer_than_parts(tmp_path: Path, n: int) -> None:
    cells = cells_of(tmp_path)  # two seeds of twelve cells
    part_of = {cell.name: i for i in range(1, n + 1) for cell in shard(cells, i, n)}
    for one, other in zip(cells[:12], cells[12:], strict=True):
        assert one.values == other.values
        assert part_of[one.name] != part_of[other.name]


def test_names_are_cut_by_their_bytes_and_stay_apart(tmp_path: Path) -> None:
    label = "\u00e9" * 149
    arms = ", ".join(f"{{label: {label}{end}, set: {{train.clip: {n}}}}}" for n, end in enumerate("ab", 1))
    cells = cells_of(tmp_path, f"name: x\nbase: base.yaml\nseeds: [1]\narms: [{arms}]\n")
    assert len({cell.name for cell in cells}) == 2
    for cell in cells:
        lock = lock_of(cell)
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # "File name too long" otherwise


@pytest.mark.parametrize(("i", "n"), [(0, 2), (3, 2), (1, 0)])
def test_a_part_that_is_none_is_refused(i: int, n: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to n"):
        shard([], i, n)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (None, "interrupted"),
        ({"status": "interrupted", "test": {}}, "interrupted"),
        ({"status": "diverged", "test": {}}, "diverged"),
        ({"status": "completed", "test": {}}, "interrupted"),  # ended while the test set was translated
        ({"status": "completed", "test": {"demo": {"bleu": 1.0}}}, "completed"),
    ],
)
def test_the_state_of_a_cell_is_what_its_directory_says(
    tmp_path: Path, result: dict[str, Any] | None, expected: str
) -> None:
    cell = cells_of(tmp_path)[0]
    assert state(cell) == "new"
    leave(cell, result)
    assert state(cell) == expected


@pytest.mark.parametrize("keep", [0, 40, 300, 900, None], ids=["empty", "40", "300", "900", "bytes"])
def test_a_damaged_configuration_is_that_cells_alone(tmp_path: Path, keep: int | None) -> None:
    cell, other, *_ = cells = cells_of(tmp_path)
    leave(cell, {"status": "diverged", "test": {}})
    leave(other, {"status": "diverged", "test": {}})
    file = cell.run_dir / "config.yaml"
    whole = file.read_bytes()
    file.write_bytes(random.Random(1).randbytes(500) if keep is None else whole[:keep])
    known = states(cells)
    assert (known[cell.name], known[other.name]) == ("damaged", "diverged")
    with pytest.raises(CheckpointError) as failure:
        refuse_damaged(cells, known)
    assert str(failure.value).startswith(f"{file}: damaged")
    assert str(other.run_dir) not in str(failure.value)
    refuse_damaged([other], known)


def test_runs_made_with_other_options_are_refused_with_a_line_for_each_option(tmp_path: Path) -> None:
    before = cells_of(tmp_path)
    for cell in before[:2]:
        leave(cell)
    after = cells_of(tmp_path, FILE.replace("train.updates: 7", "train.updates: 9, train.clip: 2"))
    with pytest.raises(ConfigError) as failure:
        states(after)
    told = str(failure.value)
    assert told.count("train.updates: the run in") == told.count("train.clip: the run in") == 1
    assert told.count(f"{before[0].run_dir} and 1 more were made with") == 2
    assert "made with 7, and the study now says 9" in told
    assert "another `name`" in told


def test_threads_and_the_rhythm_of_the_log_make_no_other_run(tmp_path: Path) -> None:
    cell = cells_of(tmp_path)[0]
    leave(cell)
    file = cell.run_dir / "config.yaml"
    changes = ["train.threads=3", "train.log_every=7", "train.probe_every=0", "data.cache=elsewhere"]
    other = load(type(cell.config), file, changes)  # type: ignore[arg-type]
    file.write_text(to_yaml(other), encoding="utf-8")
    assert state(cell) == "interrupted"

"""A short form of benchmarks/faults.py: each kind of fault once or a few times, by real processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fault_kinds
import fault_meeting  # noqa: F401
import fault_ranks
import pytest
from fault_trials import EXACT, FAULTS, REFUSED, Bench, Row, difference
from faults import table

from transformer.training.checkpoint import read_weights, write_weights


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench of twenty updates; the straight run is made by the first test that asks for it."""
    return Bench(tmp_path_factory.mktemp("faults"), updates=20)


OF_ONE = [name for name in FAULTS if "SIGKILL" in name and "again" not in name and "processes" not in name]


@pytest.mark.parametrize("name", OF_ONE)
def test_a_killed_run_goes_on_exactly(name: str, bench: Bench) -> None:
    row = FAULTS[name](bench, 1)
    assert row.outcomes == {EXACT: 1}, row.examples


def test_a_terminated_run_goes_on_exactly(bench: Bench) -> None:
    row = fault_kinds.terminated(bench, 1)
    assert row.outcomes == {EXACT: 1}, row.examples


class ForkedPair(fault_ranks.Pair):
    kind = fault_ranks.Forked


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench whose trainings have two processes each, which torch's agent looks after as torchrun's."""
    bench = Bench(tmp_path_factory.mktemp("pair"), updates=20)
    bench.pair = ForkedPair(bench.folder / "pair", bench.updates)  # type: ignore[attr-defined]
    return bench


OF_TWO = [name for name in FAULTS if "two processes" in name and "SIGTERM to torchrun" not in name]


@pytest.mark.parametrize("name", OF_TWO)
def test_two_processes_go_on_exactly_or_end_as_documented(name: str, pair: Bench) -> None:
    row = FAULTS[name](pair, 1)
    assert row.tried == 1
    assert not row.bad, row.examples


def test_a_damaged_file_is_refused_or_does_not_matter(bench: Bench) -> None:
    row = fault_kinds.damaged(bench, 3)
    assert not row.bad, row.examples
    assert row.tried == 3


@pytest.mark.parametrize("name", [name for name in FAULTS if "disk full" in name or "read-only" in name])
def test_a_full_or_read_only_disk_loses_nothing(name: str, bench: Bench) -> None:
    row = FAULTS[name](bench, 2)
    assert not row.bad, row.examples
    assert row.tried or row.note


def test_the_comparison_sees_one_bit_and_no_clock(bench: Bench, tmp_path: Path) -> None:
    straight, copy = bench.straight, tmp_path / "copy"
    shutil.copytree(straight, copy)
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps({**result, "seconds": 1e9, "command": "x"}))
    assert difference(straight, copy) == ""
    (copy / "result.json").write_text(json.dumps({**result, "valid_loss": result["valid_loss"] + 1e-15}))
    assert difference(straight, copy).startswith("result.json")
    (copy / "result.json").write_text(json.dumps(result))
    tensors, header = read_weights(copy / "checkpoints" / "best.safetensors")
    next(iter(tensors.values())).view(-1)[0].nextafter_(tensors[next(iter(tensors))].new_tensor(9.0))
    write_weights(copy / "checkpoints" / "best.safetensors", tensors, header)
    assert difference(straight, copy).startswith("checkpoints/best.safetensors")


def test_the_table_says_what_may_not_be() -> None:
    row = Row()
    for outcome in (EXACT, EXACT, REFUSED, "TRACEBACK"):
        row.add(outcome)
    assert row.bad == {"TRACEBACK": 1}
    assert table({"x": row}).splitlines()[-1] == "| x | 4 | 2 | 1 | 1 TRACEBACK |  |"

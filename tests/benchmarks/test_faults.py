"""A short form of benchmarks/fault_*.py: each kind of fault once or a few times, by real processes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import fault_data  # noqa: F401
import fault_disks  # noqa: F401
import fault_kinds
import fault_meeting  # noqa: F401
import fault_ranks
import fault_workers
import pytest
from fault_memory import _compared, beyond_rounding
from fault_rows import CRASHED, ENDED, EXACT, FAULTS, REFUSED, SAME, Row, fault
from fault_running import Running
from fault_trials import Bench, difference
from faults import table
from short_forms import ONE, SHORT, SLOW, TWO, pattern_of

from transformer.training.checkpoint import read_weights, write_weights


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench of twenty updates; the straight run is made by the first test that asks for it."""
    return Bench(tmp_path_factory.mktemp("faults"), updates=20)


def of(test: str) -> list[Any]:
    """The faults whose short form is this test."""
    names = [name for name in FAULTS if SHORT[pattern_of(name)] == test]
    slow = (pytest.mark.slow,)
    return [pytest.param(name, marks=slow if pattern_of(name) in SLOW else (), id=name) for name in names]


@pytest.mark.parametrize("name", of(ONE))
def test_one_process_goes_on_exactly(name: str, bench: Bench) -> None:
    """Once each; of damaged files and of second processes, three."""
    row = FAULTS[name](bench, 3 if "damaged" in name else 1)
    assert not row.bad, row.examples
    assert row.tried or row.note.startswith("not tried")


class ForkedPair(fault_ranks.Pair):
    kind = fault_ranks.Forked


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench whose trainings have two processes each, which torch's agent looks after as torchrun's."""
    bench = Bench(tmp_path_factory.mktemp("pair"), updates=20)
    bench.pair = ForkedPair(bench.folder / "pair", bench.updates)  # type: ignore[attr-defined]
    return bench


@pytest.mark.parametrize("name", of(TWO))
def test_two_processes_go_on_exactly_or_end_as_documented(name: str, pair: Bench) -> None:
    row = FAULTS[name](pair, 1)
    assert row.tried == 1
    assert not row.bad, row.examples


def test_a_translation_that_is_killed_leaves_no_process_and_gives_all_when_given_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "short", True)
    row = FAULTS["SIGKILL to a translation in two processes, and given again"](bench, 1)
    assert row.outcomes == {EXACT: 1}, row.examples
    assert row.note.startswith("1 kills came after the first line was written")


def test_the_short_forms_are_those_that_the_page_names() -> None:
    here = {
        f"tests/benchmarks/{Path(__file__).name}::{test.__name__}"
        for test in (test_one_process_goes_on_exactly, test_two_processes_go_on_exactly_or_end_as_documented)
    }
    assert here == {ONE, TWO}
    assert len(of(ONE)) == 9
    assert len(of(TWO)) == 11


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
    row = Row(allows=(EXACT, REFUSED))
    for outcome in (EXACT, EXACT, REFUSED, "TRACEBACK"):
        row.add(outcome)
    assert row.bad == {"TRACEBACK": 1}
    assert table({"x": row}).splitlines()[-1] == "| x | 4 | 2 | 1 | 1 TRACEBACK |  |"


def test_what_a_fault_does_not_allow_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fault_rows.FAULTS", {})

    def found(bench: Bench, tries: int) -> Row:
        row = Row()
        for outcome in (EXACT, REFUSED, ENDED):
            row.add(outcome)
        return row

    bench = cast(Bench, None)
    assert fault("x")(found)(bench, 1).bad == {REFUSED: 1, ENDED: 1}
    assert fault("y", allows=(EXACT, REFUSED))(found)(bench, 1).bad == {ENDED: 1}


RIGHT = {
    "a file of the run directory damaged": (EXACT, REFUSED),
    "a file of the encoded text overwritten while a training reads it": (EXACT, REFUSED),
    "SIGKILL to one of two processes that translate": (EXACT, REFUSED),
    "too little memory for a batch, on a CPU": (EXACT, SAME, REFUSED, CRASHED),
    "two processes diverge": (ENDED,),
    "two processes stop early, by train.patience": (ENDED,),
    "two processes that are not started alike, without torchrun": (ENDED,),
    "SIGTERM to one of two processes that wait for a third, without torchrun": (ENDED,),
}


def test_every_other_fault_has_to_go_on_exactly() -> None:
    found = {name: tuple(tried.allows) for name, tried in FAULTS.items()}
    assert {name: allows for name, allows in found.items() if allows != (EXACT,)} == RIGHT


def test_a_refusal_is_right_only_where_a_run_has_no_copy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every resume of `damaged` is made to be refused, with a remedy."""

    def refused(_: Running, run: Path, row: Row, besides: Sequence[str] = ()) -> None:
        row.add(REFUSED, "error: put back a copy")
        shutil.rmtree(run)

    monkeypatch.setattr(bench, "judge", refused)
    monkeypatch.setattr(bench, "resume", lambda run: None)
    monkeypatch.setattr(bench, "cut", lambda update: shutil.copytree(bench.straight, bench.fresh()))
    monkeypatch.setattr(fault_kinds, "DAMAGES", ("removed",))
    row = fault_kinds.damaged(bench, 30)
    (outcome,) = row.bad
    assert row.bad[outcome] + row.outcomes[REFUSED] == row.tried
    assert row.outcomes[REFUSED] >= 2
    assert row.bad[outcome] >= 6


def test_what_is_beyond_rounding_is_seen(bench: Bench, tmp_path: Path) -> None:
    straight, copy = bench.straight, tmp_path / "copy"
    shutil.copytree(straight, copy)
    assert beyond_rounding(straight, copy) == ""
    weights = copy / "checkpoints" / "last" / "model.safetensors"
    tensors, header = read_weights(weights)
    first = next(iter(tensors.values())).view(-1)
    for change, wrong in ((3e-7, ""), (3e-6, "a weight differs by 3"), (math.nan, "a weight differs by nan")):
        kept = first[0].clone()
        first[0] += change
        write_weights(weights, tensors, header)
        first[0] = kept
        assert beyond_rounding(straight, copy).startswith(wrong)
        assert bool(beyond_rounding(straight, copy)) == bool(wrong)
    write_weights(weights, tensors, header)
    metrics = (copy / "metrics.jsonl").read_text()
    *lines, last = (line for line in metrics.splitlines() if "loss" in json.loads(line))
    other = json.dumps({**json.loads(last), "loss": json.loads(last)["loss"] * (1 + 3e-5)})
    for content in (lines, [*lines, other], [*lines, last, last]):
        (copy / "metrics.jsonl").write_text("".join(f"{line}\n" for line in content))
        assert "losses" in beyond_rounding(straight, copy)


def test_only_a_run_in_parts_may_have_other_bits(bench: Bench, tmp_path: Path) -> None:
    copy, row = tmp_path / "copy", Row()
    shutil.copytree(bench.straight, copy)
    cut = "memory did not hold 3 pairs"
    _compared(row, EXACT, bench.straight, copy, "fine")
    _compared(row, CRASHED, bench.straight, copy, cut)
    assert row.outcomes == {EXACT: 1, CRASHED: 1}
    manifest = copy / "checkpoints" / "last" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "state": "0" * 64}))
    for whole, said in ((EXACT, "fine"), (CRASHED, "fine"), (EXACT, cut), (CRASHED, cut)):
        _compared(row, whole, bench.straight, copy, said)
    assert row.outcomes == {EXACT: 1, CRASHED: 2, SAME: 1, "OTHER NUMBERS": 2}


class Ended(Running):
    """A process that has ended with that code and these words."""

    def __init__(self, code: int, said: str) -> None:
        self.code, self.words = code, said

    def wait(self, seconds: float = 300.0) -> int:
        return self.code

    def text(self) -> str:
        return self.words


LOST = "error: translating process 7 ended by signal 9 "


@pytest.mark.parametrize(
    ("code", "said", "written", "left", "outcome"),
    [
        (1, f"{LOST}while it loaded its models", 0, [], REFUSED),
        (1, f"{LOST}before it had answered lines 3 to 4, of which nothing is written", 2, [], REFUSED),
        (1, f"{LOST}before it had answered lines 3 to 4, of which nothing is written", 1, [], "UNCLEAR"),
        (1, f"{LOST}before it had answered lines 3 to 4, of which nothing is written", 3, [], "UNCLEAR"),
        (1, f"{LOST}while it loaded its models", 1, [], "UNCLEAR"),
        (1, f"{LOST}while it loaded its models", 0, [8], "LEFT BEHIND"),
        (0, "", 5, [], EXACT),
        (0, "", 4, [], "UNCLEAR"),
    ],
)
def test_a_translation_that_lost_a_process_has_written_all_that_it_says(
    code: int, said: str, written: int, left: list[int], outcome: str, bench: Bench, tmp_path: Path
) -> None:
    row, output, lines = Row(), tmp_path / "x.hyp", [b"one\n", b"two\n", b"\n", b"four\n", b"five\n"]
    output.write_bytes(b"".join(lines[:written]))
    fault_workers._judge(bench, row, Ended(code, said), left, output, b"".join(lines), False)
    assert row.outcomes == {outcome: 1}
    output.write_bytes(b"other\n")
    fault_workers._judge(bench, row, Ended(code, said), left, output, b"".join(lines), False)
    assert row.outcomes["LEFT BEHIND"] == 1 + (outcome == "LEFT BEHIND")

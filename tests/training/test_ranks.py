"""A run in several processes makes the updates of a run in one: same data, same weights to rounding."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from rank_work import LOST, wait
from ranks import compare, free_port, handed_on
from torch import multiprocessing

CASES = ("batch norm", "few rows")  # "accumulate" is what is resumed, interrupted and short of memory


@pytest.mark.skipif(sys.platform == "win32", reason="gloo on one machine, and POSIX signals")
def test_two_processes_make_the_updates_of_one_and_end_when_one_is_killed(tmp_path: Path) -> None:
    """In each layout; with batches too small for all; resumed from one process, and from a state before a
    damaged one; after a signal in a validation, to the rank that is at it or to the one that waits; short of
    memory in one of them. All: benchmarks/ranks.py.
    """
    rows = compare(2, tmp_path, CASES)
    assert len(rows) == 9
    assert [row for row in rows if not row.good] == []
    assert "rank 0 of 2" in (tmp_path / "lost0").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="gloo on one machine")
def test_a_run_is_handed_on_to_two_processes_to_four_and_back(tmp_path: Path) -> None:
    assert handed_on(tmp_path).good


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo on one machine, and POSIX signals")
def test_four_processes_make_the_updates_of_one_and_end_when_one_is_killed(tmp_path: Path) -> None:
    rows = compare(4, tmp_path, ("pre",), resumed=False)
    assert [row.case for row in rows] == ["pre, ddp", "pre, fsdp"]
    assert all(row.good for row in rows)
    for rank in (0, 2, 3):
        assert f"rank {rank} of 4" in (tmp_path / f"lost{rank}").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="gloo on one machine, and POSIX signals")
def test_a_rank_that_waits_while_another_one_prepares_hears_a_signal_at_once(tmp_path: Path) -> None:
    arguments = (free_port(), str(tmp_path))
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=wait, args=(rank, *arguments)) for rank in range(2)]
    try:
        for rank in ranks:
            rank.start()
        while not (tmp_path / "preparing").exists():
            assert all(rank.is_alive() for rank in ranks)
            time.sleep(0.01)
        time.sleep(0.5)  # the other one has begun to wait
        ranks[1].terminate()
        ranks[1].join(20)
        assert ranks[1].exitcode == LOST
        assert ranks[0].is_alive()
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()

"""benchmarks/plan.py: the page has its tables, and what follows from constants follows from yours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import plan
import pytest

PAGE = Path(plan.__file__).parents[1] / "docs" / "scaling.md"
GIVEN = plan.Constants()


def test_the_page_has_the_plan_of_these_constants(tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text("utf-8"), "utf-8")
    plan.put(plan.table(GIVEN), copy)
    assert copy.read_text("utf-8") == PAGE.read_text("utf-8"), "run python benchmarks/plan.py --write PAGE"


def test_what_follows_is_what_one_finds_by_hand() -> None:
    """Width 1024: 4 d^2 an attention, 8 d^2 a feed-forward; the memory's keys and values by source token."""
    found, d = plan.plan(GIVEN), 1024
    source = 2 * (6 * 12 * d**2 + 6 * 2 * d**2)
    target = 2 * (6 * 14 * d**2 + 32768 * d)
    assert (found.source, found.target) == (source, target)
    assert found.corpus == 1e9 * (16 + 2 * 54)
    assert found.pair == 3 * 28 * (source + target)
    assert found.computing == pytest.approx(16384 / 28 * found.pair / 78e12)
    assert found.sent("ddp") == pytest.approx(2 * 63 / 64 * 4 * found.parameters)
    embedded = found.parameters - found.sublayers
    assert found.sent("fsdp") == pytest.approx(1.5 * found.sent("ddp") - 63 / 64 * 4 * embedded)
    assert 32768 * d < embedded < 32768 * d + 10 * d, "one embedding for all, and the norms at the top"


def test_your_own_constants_count(capsys: pytest.CaptureFixture[str]) -> None:
    half = plan.plan(replace(GIVEN, share=0.125, network=1e9))
    assert half.computing == pytest.approx(2 * plan.plan(GIVEN).computing)
    assert half.update("ddp") == half.sending("ddp") + half.voting
    assert plan.main(["--price", "3"]) == 0
    shown = capsys.readouterr().out
    assert "| `--price`: dollars of a GPU hour | 3 | [yours] | your bill |" in shown
    assert "| [a] |" in shown

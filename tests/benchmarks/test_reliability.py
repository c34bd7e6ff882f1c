"""benchmarks/reliability.py: parts are kept as they come, and a part that fails is said; all: `make slow`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

import fault_data  # noqa: F401
import fault_disks  # noqa: F401
import fault_kinds  # noqa: F401
import fault_meeting  # noqa: F401
import fault_memory  # noqa: F401
import fault_ranks  # noqa: F401
import fault_workers  # noqa: F401
import pytest
import reliability
from fault_rows import FAULTS
from reliability import KEPT, PARTS, ROOT, TEMPORARY, Part, Row, child, failures, found_in, main, put, table
from short_forms import ONE, SHORT, SLOW, TWO, pattern_of


def breaking(tiny: bool) -> Iterator[Row]:
    yield {
        "fault": "a | b",
        "tried": 7,
        "outcome": f"6 fine; {ROOT}/x, {gettempdir()}/tmpab_12cd3/y",
        "failed": 1,
    }
    raise RuntimeError("the machine is gone")


def whole(tiny: bool) -> Iterator[Row]:
    yield {"fault": "c", "tried": 1 if tiny else 1000, "outcome": "fine", "failed": 0}


def test_what_a_part_has_found_is_kept_and_its_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"one": breaking, "two": whole, "three": whole}
    parts = {name: Part(name.title(), rows) for name, rows in names.items()}
    monkeypatch.setattr(reliability, "PARTS", parts)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- reliability: begin -->\nold\n<!-- reliability: end -->\nafter\n")
    with pytest.raises(RuntimeError):
        child("one", tmp_path / "one.json", tiny=False)
    child("two", tmp_path / "two.json", tiny=False)
    assert main(["--only", "--folder", str(tmp_path), "--write", str(page)]) == 1
    text = page.read_text()
    assert text.startswith("before\n<!-- reliability: begin -->\n| fault |")
    assert text.endswith("<!-- reliability: end -->\nafter\n")
    assert "old" not in text
    assert "| a \\| b | 7 | 6 fine; x, y | 1 |" in text
    assert "| the rest of this part | 0 | FAILED: it did not come to its end | 1 |" in text
    assert "| c | 1,000 | fine | 0 |" in text
    assert "| **all** | **1,007** | | **2** |" in text
    assert "`python benchmarks/reliability.py --only two`, commit " in text
    assert "- not there yet: `three`" in text
    (tmp_path / "one.json").unlink()
    assert main(["--only", "--folder", str(tmp_path)]) == 0


def test_the_page_has_the_table_of_what_is_kept_and_no_place_of_a_machine(tmp_path: Path) -> None:
    page = ROOT / "docs" / "reliability.md"
    copy = tmp_path / "page.md"
    copy.write_text(page.read_text())
    found = found_in(KEPT)
    put(table(found), copy)
    assert copy.read_text() == page.read_text()
    assert failures(found) == 0
    kept = "".join(file.read_text() for file in KEPT.glob("*.json"))
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|work|usr)/", kept + copy.read_text())
    assert not TEMPORARY.findall(kept + copy.read_text())


def test_every_row_of_the_table_has_its_short_form_where_the_page_says() -> None:
    faults = [row["fault"] for each in found_in(KEPT).values() for row in each["rows"]]
    used = {pattern_of(fault) for fault in faults}
    assert used == set(SHORT), "patterns that no row has"
    assert {pattern_of(name) for name in FAULTS} < used
    for pattern, short in SHORT.items():
        file, _, test = short.partition("::")
        before, found, _ = (ROOT / file).read_text(encoding="utf-8").partition(f"\ndef {test}(")
        assert found, short
        if short not in (ONE, TWO):  # theirs are marked by SLOW itself
            assert ("@pytest.mark.slow" in before.rpartition("\n\n")[2]) == (pattern in SLOW), pattern
    assert set(SHORT) > SLOW


def test_what_is_kept_was_right_for_each_fault_as_it_is_judged_now() -> None:
    rows = [row for each in found_in(KEPT).values() for row in each["rows"] if row["fault"] in FAULTS]
    assert len(rows) >= 20
    for row in rows:
        right = FAULTS[row["fault"]].allows
        counts = [re.search(rf"(?:^|; )(\d+) {outcome}(?:;|$)", row["outcome"]) for outcome in right]
        assert sum(int(count[1]) for count in counts if count) == row["tried"] - row["failed"], row


@pytest.mark.slow
def test_every_part_works(tmp_path: Path) -> None:
    assert main(["--tiny", "--folder", str(tmp_path)]) == 0
    found = found_in(tmp_path)
    assert list(found) == list(PARTS)
    assert all(row["tried"] for each in found.values() for row in each["rows"])
    assert json.loads((tmp_path / "fuzz.json").read_text())["done"]

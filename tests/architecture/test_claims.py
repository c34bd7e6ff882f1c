"""docs/claims.md is what its reports say."""

from __future__ import annotations

import runpy
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LEDGER = runpy.run_path(str(ROOT / "benchmarks" / "ledger.py"))
WORDS = {"reproduced", "not reproduced", "mixed", "not testable at this size", LEDGER["OPEN"]}


def test_the_page_is_made_of_the_reports() -> None:
    made = LEDGER["text"]()
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8") == made, (
        "run python benchmarks/ledger.py"
    )


def test_every_claim_has_a_verdict() -> None:
    claims = yaml.safe_load((ROOT / "docs" / "claims" / "ledger.yaml").read_text(encoding="utf-8"))["claims"]
    assert len(claims) == 14
    assert {LEDGER["verdict"](claim) for claim in claims} <= WORDS


def test_a_verdict_is_that_of_its_questions() -> None:
    combined = LEDGER["combined"]
    assert combined(["reproduced", "reproduced"]) == "reproduced"
    assert combined(["reproduced", "not reproduced"]) == "mixed"
    assert combined(["not reproduced", "not testable"]) == "not reproduced"
    assert combined(["reproduced", "not testable"]) == "mixed", "part of the claim is open"
    assert combined(["not testable", "not testable"]) == "not testable at this size"
    assert combined(["reproduced", LEDGER["OPEN"]]) == LEDGER["OPEN"]

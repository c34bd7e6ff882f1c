"""docs/claims.md is what its reports say."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest
import yaml

from transformer.studies.config import load_study
from transformer.studies.rules import RULES

ROOT = Path(__file__).parents[2]
CLAIMS, STUDIES = ROOT / "docs" / "claims", ROOT / "configs" / "studies"
LEDGER = runpy.run_path(str(ROOT / "benchmarks" / "ledger.py"))
WORDS = {"reproduced", "not reproduced", "mixed", "not testable at this size"}


def test_the_page_is_made_of_the_reports() -> None:
    made = LEDGER["text"]()
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8") == made, (
        "run python benchmarks/ledger.py"
    )


@pytest.mark.parametrize("folder", sorted(CLAIMS.glob("*/table.json")), ids=lambda path: path.parent.name)
def test_a_kept_report_is_of_the_study_and_the_rules_that_are_there(folder: Path) -> None:
    kept, now = (
        load_study(path) for path in (folder.parent / "study.yaml", STUDIES / f"{folder.parent.name}.yaml")
    )
    assert kept.model_copy(update={"base": now.base}) == now
    assert os.path.samefile(kept.base, now.base)
    page = (folder.parent / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert [rule for rule in RULES if rule.replace("<", "&lt;") not in page and rule not in page] == []


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

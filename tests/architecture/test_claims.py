"""docs/claims.md is what its reports say."""

from __future__ import annotations

import json
import os
import runpy
import statistics
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


STUDENT = {3: 4.302653, 4: 3.182446}  # of n seeds: the 97.5th percentile of t with n - 1 degrees of freedom


def judged(expect: str, margin: float, low: float, high: float, significant: bool) -> str:
    """The rules on intervals, written down once more: positive is better, the margin is 0 where none is."""
    within, beyond = -margin < low and high < margin, low > margin or high < -margin
    shown, left_out = {
        "better": (significant and low > margin, high < margin or (significant and high < 0)),
        "worse": (significant and high < -margin, low > -margin or (significant and low > 0)),
        "differs": (significant and beyond, within),
        "same": (within, beyond),
        "no worse": (low > -margin, high < -margin),
        "no better": (high < margin, low > margin),
    }[expect]
    return "reproduced" if shown else "not reproduced" if left_out else "not testable"


def test_the_kept_verdicts_follow_from_the_kept_scores() -> None:
    """Of every comparison without a failed run whose scores are kept."""
    checked = 0
    for folder in CLAIMS.glob("*/table.json"):
        for answer in json.loads(folder.read_text(encoding="utf-8"))["answers"]:
            for found in answer["comparisons"]:
                ours, theirs = (found[side]["scores"] for side in ("this", "that"))
                whole = ours.keys() == theirs.keys() and len(ours) == len(found["seeds"])
                if not whole or len(ours) not in STUDENT or found["interval"] is None:
                    continue
                side = 1 if found["metric"].startswith(("test.", "lr_range")) else -1
                gains = [side * (ours[seed] - theirs[seed]) for seed in ours]
                reach = STUDENT[len(gains)] * statistics.stdev(gains) / len(gains) ** 0.5
                low, high = statistics.fmean(gains) - reach, statistics.fmean(gains) + reach
                assert found["interval"] == pytest.approx([low, high], rel=1e-4, abs=1e-7)
                assert (found["p"] < 0.05) == (low * high > 0)
                significant = found["p_holm" if found["p_holm"] is not None else "p"] < 0.05
                verdict = judged(answer["expect"], answer["margin"], low, high, significant)
                assert found["verdict"] == verdict, (folder.parent.name, answer["ask"], found["setting"])
                checked += 1
    assert checked >= 57


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

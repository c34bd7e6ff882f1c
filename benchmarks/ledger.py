"""Write docs/claims.md: every claim with its verdict, from docs/claims/ledger.yaml and the reports beside it.

python benchmarks/ledger.py        # after copying a study's report, without report.html, to docs/claims/NAME

No figure is typed by hand: verdicts and sentences are those of the reports' table.json. A claim is reproduced
when all its questions are, not reproduced when none is, mixed when some are; questions that the seeds did not
decide do not count beside others, and a claim with no other kind is not testable at this size. What stands
under `beside` is shown and does not count.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "docs" / "claims"
PAGE = ROOT / "docs" / "claims.md"
OPEN = "not run yet"

HEAD = """\
# The claims, tested

Made by `python benchmarks/ledger.py` from [the list of claims](claims/ledger.yaml) and the reports kept in
`docs/claims`. Every verdict is that of a study's own rules ([how the answers are found](reports.md)); each
report has its command, commit and settings. Models and corpora are small: a verdict says what happens at this
size, not at the papers'. Trainings ran on one thread each of an AMD EPYC with AVX512-BF16 (two cores, torch
2.13.0, November 2026), where `train.precision: auto` is bf16 products with float32 weights.

| | claim | source | verdict | study |
| ---: | --- | --- | --- | --- |"""


def questions(
    claim: Mapping[str, Any], key: str = "answers"
) -> Iterator[tuple[str, int, Mapping[str, Any] | None]]:
    """(study, number, answer) of a claim; None where the study has no report yet."""
    for study, numbers in claim.get(key, {}).items():
        table = CLAIMS / study / "table.json"
        answers = json.loads(table.read_text(encoding="utf-8"))["answers"] if table.is_file() else None
        for number in numbers:
            yield study, number, answers[number - 1] if answers else None


def verdict(claim: Mapping[str, Any]) -> str:
    """Of the claim, from its questions'."""
    if "verdict" in claim:
        return str(claim["verdict"])
    return combined([answer["verdict"] if answer else OPEN for _, _, answer in questions(claim)])


def combined(found: Sequence[str]) -> str:
    """One verdict of the verdicts of several questions."""
    if OPEN in found:
        return OPEN
    decided = {word for word in found if word != "not testable"}
    if not decided:
        return "not testable at this size"
    return decided.pop() if len(decided) == 1 else "mixed"


def page(ledger: Mapping[str, Any]) -> Iterator[str]:
    """The lines of docs/claims.md."""
    yield HEAD
    for number, claim in enumerate(ledger["claims"], 1):
        studies = ", ".join(_link(study) for study in claim.get("answers", {})) or f"[probe]({claim['page']})"
        yield (
            f"| [{number}](#claim-{number}) | {claim['claim']} | {claim['source']} "
            f"| **{verdict(claim)}** | {studies} |"
        )
    for number, claim in enumerate(ledger["claims"], 1):
        yield f"\n## Claim {number}\n\n{claim['claim']}  \n{claim['source']}. **{verdict(claim)}**"
        if "result" in claim:
            yield f"\n{claim['size']}. [Page]({claim['page']})\n\n- {claim['result']}"
        for key in ("answers", "beside"):
            last = ""
            for study, which, answer in questions(claim, key):
                if study != last:
                    word = "" if key == "answers" else "Beside it, not counted: "
                    size = ledger["sizes"][study]
                    yield f"\n{word}{_link(study)}: {size}. `configs/studies/{study}.yaml`\n"
                last = study
                yield f"- {answer['ask']} {_answer(answer)}" if answer else f"- question {which}: {OPEN}"
        if "reading" in claim:
            yield f"\n{claim['reading'].strip()}"


def _answer(answer: Mapping[str, Any]) -> str:
    """`**reproduced**: 3.915 against 4.163, ...`."""
    return f"**{answer['verdict']}**: " + str(answer["words"]).replace("_", r"\_").replace("<", r"\<")


def _link(study: str) -> str:
    report = CLAIMS / study / "report.md"
    return f"[{study}](claims/{study}/report.md)" if report.is_file() else f"`{study}`"


def text() -> str:
    """What docs/claims.md holds."""
    ledger = yaml.safe_load((CLAIMS / "ledger.yaml").read_text(encoding="utf-8"))
    return "\n".join(page(ledger)) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    PAGE.write_text(text(), encoding="utf-8")
    print(PAGE)

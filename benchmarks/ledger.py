"""Write docs/claims.md: every claim with its verdict, from docs/claims/ledger.yaml and the reports beside it.

python -m transformer study configs/studies/NAME.yaml --report-only --out docs/claims/NAME
python benchmarks/ledger.py

Verdicts, numbers and the sentences after a question are those of the reports' table.json, for the probe's
claim those of its JSON; only the readings are written by hand. How verdicts of questions are combined stands
at the head of the page. What stands under `beside` is shown and does not count.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import linear_regression
from typing import Any

import yaml

from transformer.studies.metrics import higher_is_better

ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "docs" / "claims"
PAGE = ROOT / "docs" / "claims.md"
OPEN = "not run yet"
UNDECIDED = "not testable"
MOST = 3  # settings of one question in the table
RESULTS = ("scores", "failed")  # of a side; its other keys say what it is

HEAD = """\
# The claims, tested

Made by `python benchmarks/ledger.py` from [the list of claims](claims/ledger.yaml) and the reports kept in
`docs/claims`. Every verdict is that of a study's own rules ([how the answers are found](reports.md)), claim
4's of a probe; each report has its command, commit and settings, and only the readings are written by hand.
Models and corpora are small: a verdict says what happens at this size, not at the papers'. Trainings ran on
one thread each of an AMD EPYC with AVX512-BF16 (two cores, torch 2.13.0, November 2026), where
`train.precision: auto` is bf16 products with float32 weights.

A claim is **reproduced** when all the questions that count for it are; **not reproduced** when the seeds
decided at least one of them and none is reproduced; **not testable at this size** when they decided none; and
**mixed** else: part reproduced, and part not reproduced or open. What is shown beside it does not count.

*Result* has a part for each question that counts: how much better or worse the first side is (95 % interval),
in nats of validation loss where nothing else is said; a gap is validation less training nll.

| | claim and source | tested on | result | verdict |
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
    """Of the claim, from its questions', or from where the probe's intervals lie."""
    if "within" in claim:
        rows = probed(claim)
        inside = [
            low <= rows[arm]["low"] and rows[arm]["high"] <= high
            for arm, (low, high) in claim["within"].items()
        ]
        return "reproduced" if all(inside) else "mixed" if any(inside) else "not reproduced"
    return combined([answer["verdict"] if answer else OPEN for _, _, answer in questions(claim)])


def combined(found: Sequence[str]) -> str:
    """One verdict of the verdicts of several questions."""
    if OPEN in found:
        return OPEN
    if set(found) == {UNDECIDED}:
        return "not testable at this size"
    return found[0] if len(set(found)) == 1 else "not reproduced" if _none(found) else "mixed"


def _none(found: Sequence[str]) -> bool:
    return set(found) <= {"not reproduced", UNDECIDED}


def counted(claim: Mapping[str, Any]) -> str:
    """`mixed: 2 reproduced, 1 not testable`, where the questions' verdicts are not one."""
    found = Counter(answer["verdict"] for _, _, answer in questions(claim) if answer)
    parts = ", ".join(f"{count} {word}" for word, count in found.items())
    return f"**{verdict(claim)}**" + (f": {parts}" if len(found) > 1 else "")


def probed(claim: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By arm, what the probe's summary says of the claim's stack, with the slopes that the theory gives."""
    found = json.loads((CLAIMS / claim["probe"]).read_text(encoding="utf-8"))
    rows = (dict(zip(found["summary_columns"], row, strict=True)) for row in found["summary"])
    by_arm = {row["arm"]: row for row in rows if row["stack"] == claim["stack"]}
    for line in found["facts"]["depth"]:
        if line["stack"] == claim["stack"]:
            logs = [math.log(depth) for depth in line["depths"]]
            slopes = [
                linear_regression(logs, [*map(math.log, values)]).slope for values in line["theory"].values()
            ]
            by_arm[line["arm"]] |= {"steepest": min(slopes), "flattest": max(slopes)}
    return by_arm


def short(answer: Mapping[str, Any]) -> str:
    """`pre: rate 1e-3 0.422 worse (0.144 to 0.700)`, for each setting, or what stands in a number's place."""
    parts = []
    for found in answer["comparisons"][:MOST]:
        parts.append(" ".join(part for part in (found["setting"], _gain(found)) if part))
    more = len(answer["comparisons"]) - MOST
    told = "; ".join(parts or [answer["words"]]) + (f"; {more} more" if more > 0 else "")
    return f"{_first([found['this'] for found in answer['comparisons']])}: {told}" if parts else told


def _first(sides: Sequence[Mapping[str, Any]]) -> str:
    """The side of which better or worse is said, without what varies over the settings: `post, warmup 0`."""
    if "arm" in sides[0]:
        return str(sides[0]["arm"])
    fixed = {
        key: value
        for key, value in sides[0].items()
        if key not in RESULTS and all(side.get(key) == value for side in sides)
    }
    return ", ".join(
        value if isinstance(value, str) else f"{key.split('.')[-1]} {value}" for key, value in fixed.items()
    )


def _gain(found: Mapping[str, Any]) -> str:
    metric, failed = found["metric"], [found[side]["failed"] for side in ("this", "that")]
    if any(failed) or found["gain"] is None:
        verbs = {"updates_to_target": "missed the target", "lr_range": "worked at no rate"}
        verb = verbs.get(metric, "diverged")
        return f"{verb} {failed[0]} of {len(found['seeds'])} against {failed[1]} of {len(found['seeds'])}"
    digits = 0 if metric == "updates_to_target" else 2 if higher_is_better(metric) else 3
    units = {"updates_to_target": " updates", "lr_range": " decades", "gap": " of gap"}
    unit = units.get(metric, "")
    unit = " BLEU" if metric.endswith("bleu") else unit
    side, sign = ("better", 1) if found["gain"] > 0 else ("worse", -1)
    bounds = ""
    if found["interval"] and None not in found["interval"]:
        low, high = sorted(sign * bound for bound in found["interval"])
        bounds = f" ({low:,.{digits}f} to {high:,.{digits}f})"
    return f"{sign * found['gain']:,.{digits}f}{unit} {side}{bounds}"


def page(ledger: Mapping[str, Any]) -> Iterator[str]:
    """The lines of docs/claims.md."""
    yield HEAD
    for number, claim in enumerate(ledger["claims"], 1):
        tested = [f"{_link(study)}: {ledger['sizes'][study]}" for study in claim.get("answers", {})]
        results = [short(answer) for _, _, answer in questions(claim) if answer]
        if "probe" in claim:
            tested, results = [f"[probe]({claim['page']}): {claim['size']}"], [_told(claim, "brief")]
        yield (
            f"| [{number}](#claim-{number}) | {claim['claim']} {claim['source']} "
            f"| {'<br>'.join(tested)} | {'<br>'.join(results)} | {counted(claim)} |"
        )
    for number, claim in enumerate(ledger["claims"], 1):
        yield f"\n## Claim {number}\n\n{claim['claim']}  \n{claim['source']}. **{verdict(claim)}**"
        if "probe" in claim:
            yield f"\n{claim['size']}. [Page]({claim['page']})\n\n- {_told(claim, 'result')}"
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


def _told(claim: Mapping[str, Any], key: str) -> str:
    return str(claim[key]).strip().format(**probed(claim))


def _answer(answer: Mapping[str, Any]) -> str:
    """`**reproduced**: 3.915 against 4.163, ...`, and what limits it."""
    words = "; ".join([str(answer["words"]), *answer["notes"]])
    return f"**{answer['verdict']}**: " + words.replace("_", r"\_").replace("<", r"\<")


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

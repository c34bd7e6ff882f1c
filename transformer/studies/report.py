"""Write a study's report: answers first, then what they rest on. Same outcomes, same bytes.

report.md  report.html (all in one)  figures/*.png  table.json  study.yaml
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..core.loading import to_yaml
from ..core.reading import written
from ..training.checkpoint import write_atomically
from .cells import Cell
from .config import Study
from .document import Answer, Block, Code, Heading, Points, Table, Words, html, markdown
from .figures import Picture, pictures
from .groups import TO_TARGET, Group, axes_of, grouped, identity, label, metric_name
from .outcomes import Outcome
from .rules import FEWEST, RULES
from .tables import agreed, bootstraps, comparisons, differences, metrics_of, results, sensitivities
from .verdicts import Verdict, answer

MOST_REASONS = 6  # of diverged runs, in the report


def report(study: Study, outcomes: Sequence[Outcome], folder: Path, command: str | None = None) -> list[Path]:
    """Write all files of the report and return their paths. `command` is what makes the runs again.

    Cells of the study without an outcome are named as missing. Nothing that a rerun would change, such as
    times and paths, is written. Each file is replaced as a whole, so that two commands may end together.
    """
    missing = missing_cells(study, outcomes)
    groups = grouped(outcomes, list(study.settings()))
    verdicts = [
        answer(question, outcomes, study.metric, missing, study.target) for question in study.questions
    ]
    drawn = pictures(study, groups, verdicts)
    command = command or f"python -m transformer study configs/studies/{study.name}.yaml"
    title = study.title or f"Study: {study.name}"
    blocks = _blocks(study, groups, verdicts, drawn, missing, command)
    texts = {
        "report.md": markdown(title, blocks),
        "report.html": html(title, blocks),
        "table.json": _json(_facts(study, groups, verdicts, missing)),
        "study.yaml": _study_file(study, folder, command),
    }
    files = {folder / name: text.encode() for name, text in texts.items()}
    files |= {folder / "figures" / f"{picture.name}.png": picture.data for picture in drawn}
    for path, data in files.items():
        write_atomically(path, partial(Path.write_bytes, data=data))
    for found in (folder / "figures").glob("*.png"):
        if found not in files:  # of an earlier report
            found.unlink(missing_ok=True)
    return list(files)


def missing_cells(study: Study, outcomes: Sequence[Outcome]) -> list[Cell]:
    """What the study asks for and no outcome tells of, named in words."""
    known = {(identity(outcome.cell.values), outcome.cell.seed) for outcome in outcomes}
    settings = list(study.settings())
    varying = list(axes_of([Group(setting, {}) for setting in settings]))
    return [
        Cell(f"{label(Group(s, {}).only(varying))}, seed {seed}", {}, Path(), seed, s)
        for s in settings
        for seed in study.seeds
        if (identity(s), seed) not in known
    ]


def _study_file(study: Study, folder: Path, command: str) -> str:
    """The study as a file that can be run in `folder`: there, `base` is seen from the file."""
    base, seen = os.path.abspath(study.base), os.path.abspath(folder)
    apart = os.path.commonpath([base, seen]) == os.path.abspath(os.sep)
    here = study.model_copy(update={"base": base if apart else os.path.relpath(base, seen)})
    words = " ".join(command.splitlines())
    return f"# {words}\n# `base` is seen from this file: a copy elsewhere needs another.\n{to_yaml(here)}"


def _blocks(
    study: Study,
    groups: Sequence[Group],
    verdicts: Sequence[Verdict],
    drawn: Sequence[Picture],
    missing: Sequence[Cell],
    command: str,
) -> list[Block]:
    blocks: list[Block] = [Words(_summary(study, groups, missing))]
    if verdicts:
        blocks.append(Heading("Answers"))
        blocks += [
            Answer(n, v.question.ask, v.verdict, v.words, v.question.claim, v.notes)
            for n, v in enumerate(verdicts, 1)
        ]
    if drawn:
        blocks += [Heading("Figures"), *drawn]
    blocks += [Heading("Results"), *_results(study, groups, verdicts)]
    blocks += [Heading("What differs between the arms"), differences(groups), Words(_fairness())]
    if missing:
        blocks += [Heading("Not finished"), Points([cell.name for cell in missing])]
    blocks += [Heading("How the answers are found"), Points(RULES)]
    blocks += [Heading("Settings"), Points(_settings(study, groups))]
    fold = "the study file, complete; here base is seen from where the command is given"
    blocks += [Heading("How to reproduce"), Code(command), Code(to_yaml(study), fold)]
    return blocks


def _summary(study: Study, groups: Sequence[Group], missing: Sequence[Cell]) -> str:
    runs = sum(len(group.runs) for group in groups)
    failed = sum(len(group.failed) for group in groups)
    seeds = len({seed for group in groups for seed in group.runs})
    ended = f"{failed} diverged" if failed else "none diverged"
    text = f"{runs} of {runs + len(missing)} runs have ended, {ended}: {len(groups)} settings, {seeds} seed"
    text += f"{'s' if seeds != 1 else ''}. Measured by {metric_name(study.metric)}."
    if missing:
        text += f" The {len(missing)} missing runs are named below; what they would change is not known."
    if seeds < FEWEST:
        text += f" Fewer than {FEWEST} seeds are too few for any answer."
    return text


def _results(study: Study, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> list[Block]:
    words = (
        "Means over the seeds that trained, with half of Student's 95 % interval."
        " A setting in which seeds diverged shows the others: read the two together."
    )
    if study.target is not None:
        words += (
            f" Target: a validation loss of {study.target:g}; the mean is over the seeds that reached it,"
            " and an upper bound (≤) where one was there by its first validation."
        )
    blocks: list[Block] = [Words(words), results(study, groups)]
    if (table := sensitivities(groups)) is not None:
        words = "Sensitivity to the learning rate, over the rates that were run, and the best of them:"
        blocks += [Words(words), table]
    for n, verdict in enumerate(verdicts, 1):
        if len(verdict.comparisons) > 1:
            table = comparisons(verdict)
            blocks.append(Table(table.head, table.rows, folded=table.folded.format(number=n)))
    if (found := bootstraps(verdicts)) is not None:
        table, signature = found
        words = (
            "Paired bootstrap within seeds: does the difference in BLEU hold over sentences,"
            " for these two very models? It knows nothing of other seeds."
            f" First and second as in the question. {signature}"
        )
        blocks += [Words(words), Table(table.head, table.rows, left=table.left, folded="BLEU, seed by seed")]
    return blocks


def _fairness() -> str:
    return (
        "Options that are not listed are the same in all runs. With one seed, parameters of the same"
        " name and shape start from the same numbers in all arms, and the data come in the same order."
        " FLOP: 2 for each entry of each matrix that a token meets, forward; training takes about three"
        " times as many. The products of queries with keys and of weights with values, which grow with"
        " the sentence, are left out."
    )


def _settings(study: Study, groups: Sequence[Group]) -> list[str]:
    found = [f"base configuration: {study.base}", f"seeds: {', '.join(map(str, study.seeds))}"]
    found += [f"{key}: {', '.join(map(written, values))}" for key, values in study.axes.items()]
    found += [f"arm {arm.label}: {_pairs(arm.set)}" for arm in study.arms]
    found += [f"in all runs: {_pairs(study.budget)}"] if study.budget else []
    found += [f"left out: {_pairs(skipped)}" for skipped in study.skip]
    varying = list(axes_of(groups))
    reasons = {
        f"{label(group.only(varying))}, seed {seed}: {group.runs[seed].result.get('reason')}"
        for group in groups
        for seed in group.failed
    }
    found += [f"diverged: {reason}" for reason in sorted(reasons)[:MOST_REASONS]]
    if len(reasons) > MOST_REASONS:
        found.append(f"diverged: {len(reasons) - MOST_REASONS} more; their result.json says how")
    found += [f"{key}: {agreed(groups, key)}" for key in ("device", "commit")]
    versions = {
        json.dumps(run.result.get("versions"), sort_keys=True) for g in groups for run in g.runs.values()
    }
    for text in sorted(versions - {"null"}):
        found.append("versions: " + ", ".join(f"{name} {v}" for name, v in json.loads(text).items()))
    return found


def _pairs(values: Any) -> str:
    return ", ".join(f"{key} = {written(value)}" for key, value in values.items())


def _facts(
    study: Study, groups: Sequence[Group], verdicts: Sequence[Verdict], missing: Sequence[Cell]
) -> dict[str, Any]:
    """What a program reads: every setting with every seed, and every verdict with its numbers."""
    metrics = metrics_of(study, groups)
    settings = [
        {
            "values": dict(group.values),
            "seeds": list(group.runs),
            "diverged": group.failed,
            "parameters": sorted({run.parameters for run in group.runs.values()}),
            **{m: {str(s): v for s, v in group.scores(m).items()} for m in metrics},
            **({"at_target_at_once": at_once} if (at_once := group.bounded(TO_TARGET)) else {}),
        }
        for group in groups
    ]
    answers = [
        {
            "ask": v.question.ask,
            "claim": v.question.claim,
            "expect": v.question.expect,
            "margin": v.question.margin,
            **({"against": v.question.against.model_dump(mode="json")} if v.question.against else {}),
            "verdict": v.verdict,
            "words": v.words,
            "notes": v.notes,
            "comparisons": v.numbers,
        }
        for v in verdicts
    ]
    return {
        "study": study.name,
        "metric": study.metric,
        "answers": answers,
        "settings": settings,
        "missing": [cell.name for cell in missing],
    }


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(_finite(facts), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

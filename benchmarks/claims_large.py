"""Run study files at the papers' model size, for as long as it is given, and print their answers.

python benchmarks/claims_large.py configs/studies/warmup.yaml --corpus multi30k --device cuda --minutes 9

The study file's questions, arms and seeds stay; --seeds gives others. Overridden is what fits its small
model: the base, which is configs/paper/CORPUS.yaml, the updates (--updates), and of the budget the size,
dropout, vocabulary, test sets, batch, validation interval and threads. Warm-ups and time scales grow with the
updates, and learning rates are multiplied by --rates, but SGD's are not: Adam's best rate falls with the
width. What is not finished in time goes on with the same command; the report says what is missing. A target
stays what it was, and may be easy for the large model. SIGTERM ends it as the time does.

A grid of 36 runs of 3,000 updates takes longer than nine minutes on any one GPU: its seeds come one after
the other, so a first call ends in answers that are not testable yet. Fewer --updates, or more calls.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from transformer.cli.command import INTERRUPTED
from transformer.core.errors import UserError
from transformer.studies.cells import FINISHED, read_result
from transformer.studies.config import Study, load_study

ROOT = Path(__file__).parents[1]
# Configuration and test set of each corpus.
CORPORA = {"multi30k": ("multi30k.yaml", "test2016"), "iwslt14": ("iwslt14_de_en.yaml", "test")}
# Options by which a study fits its small machine. The large configuration has its own.
SMALL = {
    *("model.d_model", "model.d_ff", "model.dropout", "data.test", "data.tokenizer.vocab_size"),
    *("train.threads", "train.batch_tokens", "train.updates", "train.validate_every"),
}
IN_UPDATES = ("train.warmup", "train.timescale")
SMALL_UPDATES = 1000  # of configs/multi30k_small.yaml


def enlarged(
    study: Study, base: Path, test_set: str, updates: int, rates: float, seeds: Sequence[int] | None
) -> dict[str, Any]:
    """The study as a file for the large model; questions and arms name the new values. None: own seeds."""
    shorter = updates / study.budget.get("train.updates", SMALL_UPDATES)

    if study.budget.get("train.optimizer") == "sgd":
        rates = 1.0

    def value(key: str, old: Any) -> Any:
        if key in IN_UPDATES:
            return round(old * shorter)
        return float(f"{old * rates:.3g}") if key == "train.lr" else old

    def renewed(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value(key, old) for key, old in values.items()}

    plain = study.model_dump(mode="json")
    plain["base"] = str(base)
    plain["title"] = f"{study.title.partition(' (')[0]} ({base.stem}, the paper's size)"
    plain["metric"] = plain["metric"].replace("test2016", test_set)
    plain["seeds"] = list(seeds or study.seeds)
    plain["axes"] = {key: [value(key, old) for old in values] for key, values in study.axes.items()}
    plain["budget"] = renewed({key: old for key, old in study.budget.items() if key not in SMALL})
    plain["budget"]["train.updates"] = updates
    for arm in plain["arms"]:
        arm["set"] = renewed(arm["set"])
    plain["skip"] = [renewed(skipped) for skipped in plain["skip"]]
    for question in plain["questions"]:
        for sides in (question, question["against"] or {}):
            sides.update({side: renewed(sides[side]) for side in ("this", "that") if side in sides})
        for key in ("metric", "ask"):
            question[key] = question[key] and question[key].replace("test2016", test_set)
    return plain


def answers(report: Path) -> Iterator[str]:
    """A line for each question."""
    table = json.loads((report / "table.json").read_text(encoding="utf-8"))
    for answer in table["answers"]:
        yield f"| {answer['ask']} | {answer['verdict']} | {answer['words']} |"


def trained(command: Sequence[str], ends: float) -> int | None:
    """Train until the time is over or a signal comes; the command's exit code, None if it was stopped.

    Stopped, its trainings save before they end, which takes some seconds more.
    """
    job = subprocess.Popen(command, cwd=ROOT)

    def stop(*_: object) -> None:
        job.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return job.wait(max(0.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        stop()
        job.wait()
        return None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    """Run, stop in time, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("studies", nargs="*", default=["configs/studies/warmup.yaml"], metavar="FILE")
    parser.add_argument("--corpus", choices=CORPORA, default="multi30k")
    parser.add_argument("--base", type=Path, help="another configuration than the corpus's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=8, help="runs side by side")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="of all trainings together; reports follow"
    )
    parser.add_argument("--updates", type=int, default=3000, help="of each run")
    parser.add_argument("--rates", type=float, default=0.25, help="the study's learning rates times this")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the study's own")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "large")
    arguments = parser.parse_args()
    name, test_set = CORPORA[arguments.corpus]
    base = (arguments.base or ROOT / "configs" / "paper" / name).resolve()
    ends, code = time.monotonic() + 60 * arguments.minutes, 0
    try:
        studies = [load_study(file) for file in arguments.studies]
    except UserError as error:
        parser.error(str(error))
    for study in studies:
        if time.monotonic() > ends:
            print(f"{study.name}: no time is left for it", flush=True)
            continue
        plain = enlarged(study, base, test_set, arguments.updates, arguments.rates, arguments.seeds)
        place = arguments.runs / base.stem
        place.mkdir(parents=True, exist_ok=True)
        derived = place / f"{study.name}.yaml"
        derived.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
        command = [sys.executable, "-m", "transformer", "study", str(derived), "--runs", str(place)]
        ended = trained([*command, "--jobs", str(arguments.jobs), "--device", arguments.device], ends)
        if ended == INTERRUPTED:
            return INTERRUPTED  # the same command goes on
        if ended is None:
            print(f"{study.name}: the time is over; the same command goes on", flush=True)
        cells = (place / study.name / "cells").glob("*")
        if not any(read_result(run).get("status") in FINISHED for run in cells):
            print(f"{study.name}: no run has ended yet, there is nothing to report", flush=True)
            code = code if ended in (0, None) else 1
            continue
        reported = subprocess.run([*command, "--report-only"], cwd=ROOT, check=False)
        if ended not in (0, None) or reported.returncode:
            code = 1
            continue
        print(f"\n## {plain['title']}\n\n| question | verdict | measured |\n| --- | --- | --- |")
        print("\n".join(answers(place / study.name / "report")), flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())

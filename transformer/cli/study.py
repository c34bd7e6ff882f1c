"""python -m transformer study FILE: run a grid of trainings, once each, and report what it shows."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.cpus import MOST_PROCESSES
from ..core.errors import ConfigError, Problem, UserError
from ..core.loading import parse_override, similar_file
from ..core.reading import written
from ..studies.cells import FINISHED, RUNS, Cell, State, plan, refuse_damaged, shard, states
from ..studies.config import Study, load_study
from ..studies.estimate import estimate
from ..studies.launch import launch
from ..studies.locks import held, holder
from ..studies.outcomes import outcomes_of
from ..studies.report import report
from ..studies.runner import Slots, lock_of, run
from .command import INTERRUPTED, Parser, command
from .lines import say
from .resolve import new_config

DESCRIPTION = """\
Run a study: every cell of its grid is a run directory, trained by train.py, and never twice. A study that was
stopped goes on where it was. At the end, and with --report-only at any time, a report is written from the
cells that are finished."""
EPILOG = """\
exit codes: 0 every cell has ended and the report is written; 1 some cells failed (their logs say why) or were
interrupted by others, or the report could not be made; 2 the study file or the command line is wrong; 130
interrupted by Ctrl-C or SIGTERM: the cells are saved, the same command goes on"""


@command
def main(argv: Sequence[str]) -> int:
    """Plan, run, report."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.launch_set and not arguments.launch:
        raise ConfigError("--launch-set is for --launch slurm or --launch local")
    study = load_study(arguments.file, arguments.overrides, arguments.base)
    _require_base(study.base, arguments.file)
    cells = plan(study, new_config, arguments.runs)
    known = states(cells)
    again = _again(arguments.file, arguments.base, arguments.overrides)
    own = shard(cells, *_part(arguments.shard)) if arguments.shard else cells
    out = arguments.out or arguments.runs / study.name / "report"
    if arguments.report_only:
        _report(study, cells, out, again)
        return 0
    slots = Slots.of(arguments.jobs, arguments.device)
    left = [cell for cell in own if known[cell.name] not in FINISHED]
    if arguments.dry_run:
        print("\n".join(_plan_text(study, cells, own, known)), flush=True)
        print(estimate(own, known, slots).text(len(slots.devices), len(left)))
        return 0
    refuse_damaged(own, known)
    if find_spec("matplotlib") is None:
        say("note: matplotlib is missing, and the report needs it: pip install prepost-transformer[report]")
    say(_counts(study, own, known))
    if arguments.launch:
        return _launch(left, arguments, arguments.runs / study.name / "jobs")
    summary = run(own, slots, say)
    for name, end in summary.unfinished.items():
        say(f"{name}: {end}")
    if summary.interrupted:
        say(f"{summary.interrupted}: the same command goes on")
        return INTERRUPTED
    try:
        missing = _report(study, cells, out, again)
    except UserError as error:
        say(f"no report: {error}")
        return 1
    return 1 if summary.unfinished or missing & {cell.name for cell in own} else 0


def _require_base(base: str, file: str) -> None:
    """ConfigError where there is no such file; the study itself is no base."""
    if not os.path.isfile(base):
        hint = similar_file(base, but=file) or "it is seen from the study file"
        raise ConfigError([Problem("base", f"cannot read {base}: no such file", file, hint)])


def _launch(cells: Sequence[Cell], arguments: argparse.Namespace, folder: Path) -> int:
    """Hand in the cells that nobody trains."""
    idle = [cell for cell in cells if not held(lock_of(cell))]
    for cell in cells:
        if cell not in idle:
            say(f"{cell.name}: not launched, it is with {holder(lock_of(cell))}")
    parameters = _parameters(arguments.launch_set)
    jobs = launch(idle, arguments.launch, folder, parameters, arguments.device) if idle else {}
    for name, job in jobs.items():
        say(f"{name}: job {job.job_id}")
    if not idle:
        say("nothing to launch")
    return 0


def _report(study: Study, cells: Sequence[Cell], out: Path, again: str) -> set[str]:
    """Write the report from what is finished; say what is missing, and return it."""
    outcomes = outcomes_of(study, cells)
    if not outcomes:
        raise ConfigError("no cell of the study is finished: there is nothing to report")
    finished = {outcome.cell.name for outcome in outcomes}
    missing = [cell.name for cell in cells if cell.name not in finished]
    report(study, outcomes, out, again)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        say(f"{len(missing)} of {len(cells)} cells are missing: {', '.join(missing[:5])}{more}")
    print(out / "report.md")
    return {*missing}


def _again(file: str, base: str | None, overrides: Sequence[str]) -> str:
    """The command that makes the same runs."""
    words = ["python", "-m", "transformer", "study", file, *(["--base", base] if base else [])]
    return shlex.join([*words, *(word for text in overrides for word in ("--set", text))])


def _plan_text(
    study: Study, cells: Sequence[Cell], own: Sequence[Cell], known: Mapping[str, State]
) -> Iterator[str]:
    """What --dry-run prints: the grid, the questions, and the state of each cell."""
    yield _counts(study, own, known) + ("" if len(own) == len(cells) else f" (of {len(cells)} in all)")
    yield f"base {study.base}; metric {study.metric}; seeds {', '.join(map(str, study.seeds))}"
    if study.arms:
        yield f"arms: {', '.join(arm.label for arm in study.arms)}"
    yield from (f"axis {key}: {', '.join(map(written, values))}" for key, values in study.axes.items())
    yield from (f"skipped: {_pairs(skipped)}" for skipped in study.skip)
    yield from (f"all runs: {_pairs({key: value})}" for key, value in study.budget.items())
    for question in study.questions:
        sides = f"{_pairs(question.this)} {question.expect} than {_pairs(question.that)}"
        if question.expect in ("same", "differs"):
            sides = f"{_pairs(question.this)} {question.expect}: {_pairs(question.that)}"
        yield f"question: {question.ask}\n          {sides} ({question.metric or study.metric})"
    yield from (f"{known[cell.name]:<12} {cell.name}" for cell in own)


def _counts(study: Study, cells: Sequence[Cell], known: Mapping[str, State]) -> str:
    """`study warmup: 36 cells, 4 completed, 1 diverged, 31 new`."""
    count = Counter(known[cell.name] for cell in cells)
    return ", ".join(
        [f"study {study.name}: {len(cells)} cells", *(f"{n} {name}" for name, n in sorted(count.items()))]
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={written(value)}" for key, value in values.items())


def _parameters(texts: Sequence[str]) -> dict[str, Any]:
    """`timeout_min=60` and so on, read as options are."""
    problems: list[Problem] = []
    read = [parse_override(text, problems) for text in texts]
    if problems:
        raise ConfigError(problems)
    return {".".join(item.path): item.value for item in read if item is not None}


def _part(text: str) -> tuple[int, int]:
    parts = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if parts is None:
        raise ConfigError(f"--shard {text}: give i/n, such as 1/4 for the first of four parts")
    return int(parts[1]), int(parts[2])


def _jobs(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"give a whole number from 1 on, not {text!r}")
    if len(text.lstrip("0")) > len(str(MOST_PROCESSES)) or int(text) > MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"{text}: at most {MOST_PROCESSES}")
    return int(text)


def _parser() -> Parser:
    parser = Parser("study", DESCRIPTION, lambda: EPILOG)
    parser.add_argument("file", metavar="FILE", help="a study file, such as configs/studies/warmup.yaml")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and how long it will take, and stop"
    )
    parser.add_argument(
        "--jobs",
        type=_jobs,
        metavar="N",
        help="cells trained side by side (default: one on the CPU, or one on each CUDA device)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument(
        "--shard", metavar="I/N", help="only the I-th of N parts of the cells, for several machines"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="train nothing; report what is finished so far"
    )
    parser.add_argument(
        "--runs", type=Path, default=RUNS, metavar="DIR", help=f"where studies are kept (default: {RUNS})"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the report goes (default: DIR/NAME/report)"
    )
    parser.add_argument("--base", metavar="CONFIG", help="another configuration in place of the study's base")
    parser.add_argument(
        "--launch",
        choices=("slurm", "local"),
        help="hand the cells to SLURM as an array of jobs, by submitit, and stop; local: processes here",
    )
    parser.add_argument(
        "--launch-set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of submitit: timeout_min=600, slurm_partition=gpu; may be given often",
    )
    parser.add_options({})
    return parser

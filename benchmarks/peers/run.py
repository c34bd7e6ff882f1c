"""Measure this toolkit beside its peers: the same text, vocabulary, shape and batches, in alternating rounds.

    python benchmarks/peers/run.py                                   # everything: hours
    python benchmarks/peers/run.py --shapes small --systems ours,plain,huggingface --rounds 1 --json a.json
    python benchmarks/peers/run.py --from a.json b.json --write page.md    # measures nothing: makes them one

Makes each peer's environment from the package index on first use (.cache/peers), prepares Multi30k
(data/multi30k, see README) and trains and translates with each system in a process of its own, one at a time.
Every second round goes through the systems backwards, so that a machine that drifts does so for all. Printed
are medians over the rounds, and how many times as fast the first system is. A system that cannot be run stays
in the tables with the reason. With --json each trial is kept when it is done: Ctrl-C loses none but the one
under way, and prints the tables of what there is.

What the figures mean is in `report.py`, what each system does in its file's first lines. Run it from this
toolkit's environment with the extra `ctranslate2`, on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
if not __package__:  # run as a file
    sys.path[0] = str(ROOT)

from benchmarks.arguments import at_least, new_file, old_file  # noqa: E402
from benchmarks.peers.environments import CACHE, Unusable, environment, reason  # noqa: E402
from benchmarks.peers.others import Spent  # noqa: E402
from benchmarks.peers.page import facts, page, saved  # noqa: E402
from benchmarks.peers.report import Trial, summary, tables  # noqa: E402
from benchmarks.peers.shapes import SHAPES  # noqa: E402
from benchmarks.peers.systems import SYSTEMS, TASKS  # noqa: E402

INTERRUPTED = 130  # exit code


class Job(NamedTuple):
    """One process to be run in a round."""

    round: int
    shape: str
    task: str
    system: str


def jobs(rounds: int, shapes: Sequence[str], tasks: Sequence[str], systems: Sequence[str]) -> list[Job]:
    """All processes in their order: every second round goes through the systems backwards."""
    return [
        Job(turn, shape, task, system)
        for turn in range(rounds)
        for shape in shapes
        for task in tasks
        for system in (systems if turn % 2 == 0 else tuple(reversed(systems)))
        if task in SYSTEMS[system].tasks
    ]


def measure(plan: Sequence[Job], run: Callable[[Job], dict[str, Any]]) -> Iterator[Trial]:
    """Run the jobs one after the other. What failed once in a shape and task is not tried again."""
    failed = set()
    for job in plan:
        key = job.shape, job.task, job.system
        if key in failed:
            continue
        try:
            trial = Trial(*key, job.round, run(job))
        except Unusable as error:
            trial = Trial(*key, job.round, {}, str(error))
            failed.add(key)
        said = f"could not be run: {trial.failure}" if trial.failure else trial.summary()
        print(f"round {job.round + 1}  {' '.join(key)}: {said}", file=sys.stderr, flush=True)
        yield trial


def keep(file: Path, known: dict[str, Any], trials: Sequence[Trial]) -> None:
    """Write what `--from` reads: whole, or not at all."""
    text = json.dumps({**known, "trials": [trial._asdict() for trial in trials]}, indent=1) + "\n"
    if file.exists() and not file.is_file():  # a pipe or device has no other to take its place
        file.write_text(text, encoding="utf-8")
        return
    new = file.with_name(f"{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


class Runner:
    """Runs a job in a process of its own; what that needs and is not there yet is made by `prepare`."""

    def __init__(self, threads: int, updates: int, timeout: float, calm: float = 1.0, tries: int = 1) -> None:
        """A trial in which others had more than `calm` of the time is done again, up to `tries` times."""
        self.threads, self.updates, self.timeout = threads, updates, timeout
        self.calm, self.tries = calm, tries
        self.broken: dict[str | None, Unusable] = {}  # environments that could not be made

    def prepare(self, plan: Sequence[Job]) -> None:
        """Make environments, text and models before anything is timed. What fails will say so in its turn."""
        for job in dict.fromkeys(job._replace(round=0) for job in plan):
            with suppress(Unusable):
                self.needs(job)

    def needs(self, job: Job) -> tuple[Path, Path, Path]:
        """Python, text and model of a job; no model for training."""
        python = self.environment(SYSTEMS[job.system].environment)
        data = self.data(job.shape)
        return python, data, self.model(job, python, data) if job.task == "translate" else CACHE

    def environment(self, name: str | None) -> Path:
        if name in self.broken:
            raise self.broken[name]
        try:
            return environment(name)
        except Unusable as error:
            self.broken[name] = error
            raise

    def __call__(self, job: Job) -> dict[str, Any]:
        """Of several tries the one in which others had least; they do not depend on how fast it was."""
        needed, found = self.needs(job), list[dict[str, Any]]()
        while len(found) < self.tries and (not found or found[-1].get("others", 0.0) > self.calm):
            found.append(self.adapter(job, job.task, *needed))
        return min(found, key=lambda each: float(each.get("others", 0.0)))

    def data(self, shape: str) -> Path:
        directory = CACHE / "data" / f"{shape}-{SHAPES[shape].vocabulary}"
        return made(
            directory,
            lambda new: self.process(
                [sys.executable, "-m", "benchmarks.peers.preparation", shape, str(new)], "the text"
            ),
        )

    def model(self, job: Job, python: Path, data: Path) -> Path:
        job = job._replace(system=SYSTEMS[job.system].weights or job.system)
        system = SYSTEMS[job.system]
        directory = CACHE / "models" / f"{job.system}-{job.shape}"
        maker = Path(sys.executable) if system.model_is_ours else python
        return made(directory, lambda new: self.adapter(job, "model", maker, data, new))

    def adapter(self, job: Job, task: str, python: Path, data: Path, model: Path) -> dict[str, Any]:
        """What an adapter writes down, with the seconds from its start to its first work."""
        system = SYSTEMS[job.system]
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory, "result.json")
            command = [str(python), "-m", f"benchmarks.peers.{system.module}", task]
            command += ["--shape", job.shape, "--data", str(data), "--model", str(model), "--out", str(out)]
            command += ["--threads", str(self.threads), "--updates", str(self.updates)]
            command += ["--variant", system.variant] if system.variant else []
            started, before = time.time(), Spent.now()
            self.process(command, task)
            after = Spent.now()
            if not out.is_file():
                raise Unusable(f"{task}: it ended without a result")
            result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        for name, moment in (
            ("first_update_at", "seconds_to_first_update"),
            ("ready_at", "seconds_to_ready"),
        ):
            if name in result:
                result[moment] = result.pop(name) - started
        if before and after:
            result["others"] = before.others(after)
        return result

    def process(self, command: Sequence[str], what: str) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        settings = {**os.environ, **threads, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        settings |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=settings, stdout=said, stderr=said, timeout=self.timeout
                )
            except subprocess.TimeoutExpired:
                raise Unusable(f"{what}: not done after {self.timeout:.0f} seconds") from None
            if done.returncode:
                said.seek(0)
                raise Unusable(f"{what}: {reason(said.read())}")


def made(directory: Path, make: Callable[[Path], object]) -> Path:
    """The directory, whole: `make` fills one beside it, which then takes its place."""
    if not directory.is_dir():
        new = directory.with_name(f"{directory.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        make(new)
        new.rename(directory)
    return directory


def names(text: str, known: Sequence[str]) -> list[str]:
    """A list of names without doubles; argparse's error for an unknown one."""
    found = list(dict.fromkeys(filter(None, text.split(","))))
    if unknown := [name for name in found if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if not found:
        raise argparse.ArgumentTypeError("name at least one")
    return found


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def several(flag: str, known: Sequence[str]) -> None:
        options.add_argument(flag, type=lambda text: names(text, known), default=list(known), metavar="A,B")

    options.add_argument("--rounds", type=at_least(1), default=3)
    several("--shapes", list(SHAPES))
    several("--systems", list(SYSTEMS))
    several("--tasks", TASKS)
    options.add_argument(
        "--updates", type=at_least(0), default=0, help="timed updates (0: as the shape says)"
    )
    options.add_argument("--threads", type=at_least(1), default=cores(), help="default: all cores")
    options.add_argument("--timeout", type=float, default=3600.0, help="seconds one process may take")
    options.add_argument(
        "--calm", type=float, default=1.0, help="do a trial again where others had more than this share"
    )
    options.add_argument(
        "--tries", type=at_least(1), default=3, help="of a trial that is not calm (default: 3)"
    )
    options.add_argument("--json", type=new_file, metavar="FILE", help="every trial, when it is done")
    options.add_argument(
        "--from", dest="files", type=old_file, nargs="+", metavar="FILE", help="take what --json wrote"
    )
    options.add_argument("--write", type=new_file, metavar="FILE.md", help="the tables as a page")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 when a system could not be run, 130 after Ctrl-C, which writes no page."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(words)
    interrupted = False
    plan = jobs(arguments.rounds, arguments.shapes, arguments.tasks, arguments.systems)
    if arguments.files:
        try:
            trials, known = saved(arguments.files)
        except (OSError, ValueError) as error:
            parser().error(str(error))
        wanted = {job[1:] for job in plan}
        trials = [trial for trial in trials if trial[:3] in wanted]
    else:
        each = arguments.threads, arguments.updates, arguments.timeout
        runner = Runner(*each, arguments.calm, arguments.tries)
        command = shlex.join(["python", "benchmarks/peers/run.py", *words])
        known = [facts(command, arguments.threads, arguments.rounds, arguments.updates)]
        trials = []
        try:
            runner.prepare(plan)
            for trial in measure(plan, runner):
                trials.append(trial)
                if arguments.json:
                    keep(arguments.json, known[0], trials)
        except KeyboardInterrupt:
            interrupted = True
            print(f"interrupted: {len(trials)} of {len(plan)} trials are done", file=sys.stderr)
    print(tables(trials, arguments.systems), summary(trials, arguments.systems), sep="\n\n")
    if interrupted:
        return INTERRUPTED
    if arguments.write:
        arguments.write.write_text(page(trials, arguments.systems, known), encoding="utf-8")
    return int(any(trial.failure for trial in trials))


if __name__ == "__main__":
    sys.exit(main())

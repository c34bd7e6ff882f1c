"""Run cells: each a process of its own, several side by side, none of them twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import ConfigError
from ..training.interruption import Interruption
from .cells import FINISHED, Cell, flat, read_result, state
from .locks import Lock, holder, take

Say = Callable[[str], None]
POLL = 0.2  # seconds between looks at what runs, here and in other processes
PACKAGES = str(Path(__file__).parents[2])  # where children find this package
ENDS = {0: "completed", 3: "diverged", 130: "interrupted"}


@dataclass(frozen=True)
class Slots:
    """Where cells run side by side: `jobs` places on the devices in turn, `threads` threads in each."""

    devices: tuple[str, ...]
    threads: int

    @classmethod
    def of(cls, jobs: int | None = None, device: str = "auto") -> Slots:
        """One place on the CPU, or one on each CUDA device, unless `jobs` says how many.

        The processor's cores are shared out, so that the places do not fight for them.
        """
        names = _devices(device)
        count = (len(names) if jobs is None else jobs) or 1
        return cls(tuple(names[i % len(names)] for i in range(count)), max(1, cores() // count))


@dataclass
class Job:
    """A cell that is being trained."""

    cell: Cell
    device: str
    lock: Lock
    log: Path
    process: subprocess.Popen[bytes]
    started: float


@dataclass
class Summary:
    """How the cells ended: a name to `completed`, `diverged`, `interrupted` or what went wrong."""

    ends: dict[str, str] = field(default_factory=dict)
    interrupted: str = ""  # the signal's name

    @property
    def failed(self) -> dict[str, str]:
        return {name: end for name, end in self.ends.items() if end not in ENDS.values()}

    @property
    def unfinished(self) -> dict[str, str]:
        """What failed, and what somebody else has interrupted."""
        return {name: end for name, end in self.ends.items() if end not in FINISHED}


def run(cells: Sequence[Cell], slots: Slots, say: Say) -> Summary:
    """Train every cell that is not finished; interrupted ones go on. Returns when all have ended.

    A cell that another process trains is waited for. SIGINT and SIGTERM end the trainings, which save what
    they have; once more ends them at once.
    """
    pending, running, summary = deque(cells), list[Job](), Summary()
    free, held = list(slots.devices), set[str]()
    try:
        with Interruption() as interruption:
            while (pending or running) and not interruption.name:
                while free and (found := _next(pending, held, summary, say)) is not None:
                    cell, lock, resume = found
                    running.append(_start(cell, resume, free.pop(0), slots, lock))
                    say(f"{cell.name}: {'goes on' if resume else 'begins'}")
                time.sleep(POLL if pending or running else 0)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    free.append(job.device)
                    summary.ends[job.cell.name] = _ended(job)
                    say(f"[{len(summary.ends)}/{len(cells)}] {_told(job, summary.ends[job.cell.name])}")
        summary.interrupted = interruption.name
    finally:
        _stop(running, summary, say)
    return summary


def _next(pending: deque[Cell], held: set[str], summary: Summary, say: Say) -> tuple[Cell, Lock, bool] | None:
    """The next cell that is nobody else's, locked, and whether it goes on; finished ones are taken out."""
    for _ in range(len(pending)):
        cell = pending.popleft()
        lock = take(lock_of(cell))
        if lock is None:
            pending.append(cell)
            if cell.name not in held:
                say(f"{cell.name}: waiting for {holder(lock_of(cell))}")
            held.add(cell.name)
            continue
        known = state(cell)
        if known in ("new", "interrupted"):
            return cell, lock, known == "interrupted"
        summary.ends[cell.name] = known
        lock.release()
    return None


def lock_of(cell: Cell) -> Path:
    """The lock of a cell, beside the run directories."""
    return cell.run_dir.parent.parent / "locks" / f"{cell.name}.lock"


def log_of(cell: Cell) -> Path:
    """What a cell's training has written to the console."""
    return cell.run_dir.parent.parent / "logs" / f"{cell.name}.txt"


def command_of(cell: Cell, resume: bool, device: str, threads: int) -> list[str]:
    """The command that trains a cell, or goes on with it."""
    start = (
        ["--resume", str(cell.run_dir)]
        if resume
        else [cell.base, *cell.arguments(), "--run-dir", str(cell.run_dir)]
    )
    words = ["train", *start, "--device", device, "--set", f"train.threads={threads_of(cell, threads)}"]
    return [sys.executable, "-m", "transformer", *words]


def threads_of(cell: Cell, share: int) -> int:
    """The cell's own number of threads where its configuration has one, else its share of the cores."""
    config = {} if cell.config is None else flat(cell.config.model_dump(mode="json"))
    return int(config.get("train.threads") or 0) or share


def environment(threads: int) -> dict[str, str]:
    """The environment of a training: our own, `threads` threads, and this package."""
    path = [PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])]
    limits: Mapping[str, str] = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**os.environ, **limits, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def cores() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _devices(device: str) -> list[str]:
    import torch

    count = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and not count):
        return ["cpu"]
    if device in ("auto", "cuda") and count:
        return [f"cuda:{i}" for i in range(count)]
    if device.startswith("cuda:") and device[5:].isdigit() and int(device[5:]) < count:
        return [device]
    raise ConfigError(f"--device {device}: there are {count} CUDA devices; use auto, cpu, cuda or cuda:0")


def _start(cell: Cell, resume: bool, device: str, slots: Slots, lock: Lock) -> Job:
    log = log_of(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command_of(cell, resume, device, slots.threads),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(threads_of(cell, slots.threads)),
            pass_fds=[lock.descriptor],  # the training holds the lock, too
            start_new_session=True,  # Ctrl-C reaches it through us, and once
        )
    lock.write(training=process.pid)
    return Job(cell, device, lock, log, process, time.monotonic())


def _ended(job: Job, asked: bool = False) -> str:
    code = job.process.returncode
    job.lock.release()
    if code in ENDS or (asked and code in (-signal.SIGTERM, -signal.SIGINT)):  # it had not begun
        return ENDS.get(code, "interrupted")
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = job.log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    return f"failed, {how}: {lines[-1] if lines else 'it said nothing'} (see {job.log})"


def _told(job: Job, end: str) -> str:
    minutes = (time.monotonic() - job.started) / 60
    result = read_result(job.cell.run_dir)
    loss = result.get("valid_loss")
    facts = [f"valid loss {loss:.4g}" if isinstance(loss, float) else "", f"{minutes:.1f} min"]
    return f"{job.cell.name}: {end} ({', '.join(filter(None, facts))})"


def _stop(running: Sequence[Job], summary: Summary, say: Say) -> None:
    """End what runs: once asked it saves, asked again it ends at once."""
    if running:
        say(f"ending {len(running)} of the cells; they save what they have")
    for job in running:
        _ask(job)
    for job in running:
        while job.process.poll() is None:
            try:
                job.process.wait()
            except KeyboardInterrupt:
                for other in running:
                    _ask(other)
        summary.ends[job.cell.name] = _ended(job, asked=True)


def _ask(job: Job) -> None:
    with suppress(ProcessLookupError):
        job.process.send_signal(signal.SIGTERM)

"""Faults of runs in several processes, started by torchrun: killed, terminated, diverged, stopped early."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fault_rows import ENDED, Row, fault
from fault_running import ROOT, Running, children
from fault_trials import Bench, saved_update

OURS = f'File "{ROOT / "transformer"}'  # a traceback of ours; torchrun has one of its own


class Together(Running):
    """torchrun with two processes of train.py, in the place of one process."""

    def __init__(self, argv: list[str], said: Path, restarts: int = 0) -> None:
        self.begin(argv, said, ["--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"])

    def begin(
        self,
        argv: list[str],
        said: Path,
        how: list[str],
        before: Sequence[str] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start torchrun with the options `how`; `before` is what becomes torchrun."""
        command = [*before, sys.executable, "-m", "torch.distributed.run", *how]
        command += [str(ROOT / "train.py"), *argv]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
        self.said, self.began, self.at = said, time.monotonic(), time.time()
        with open(said, "wb") as file:
            self.torchrun = subprocess.Popen(command, stdout=file, stderr=file, env=environment)

    @property
    def alive(self) -> bool:
        return self.torchrun.poll() is None

    @property
    def agent(self) -> int:
        """The process that looks after the ranks."""
        return self.torchrun.pid

    @property
    def ranks(self) -> list[int]:
        return children(self.agent)

    def signal(self, number: int) -> None:
        self.torchrun.send_signal(number)

    def wait(self, seconds: float = 300.0) -> int:
        try:
            return self.torchrun.wait(seconds)
        except subprocess.TimeoutExpired:
            for process in (*self.ranks, self.agent):
                os.kill(process, signal.SIGKILL)
            raise AssertionError(f"still running after {seconds} s: {self.text()[-500:]}") from None


class Forked(Together):
    """The same by what torchrun consists of, forked from a server that has imported torch already."""

    def __init__(self, argv: list[str], said: Path, restarts: int = 0) -> None:
        there = {"rdzv_endpoint": "localhost:0", "run_id": uuid.uuid4().hex}
        self.fork(argv, said, {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, **there}, restarts)

    def fork(
        self,
        argv: list[str],
        said: Path,
        how: dict[str, Any],
        restarts: int,
        variables: Mapping[str, str] = MappingProxyType({}),
        after: Path | None = None,
    ) -> None:
        """Start it with the settings `how`, once the file `after` is there."""
        settings = {**how, "rdzv_backend": "c10d", "max_restarts": restarts, "start_method": "fork"}
        Running.__init__(self, "train", argv, said, work=partial(_agent, settings, dict(variables), after))

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    @property
    def agent(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        Running.signal(self, number)

    def wait(self, seconds: float = 300.0) -> int:
        return Running.wait(self, seconds)


def _agent(
    settings: dict[str, Any],
    variables: dict[str, str],
    after: Path | None,
    main: Callable[[list[str]], int],
    argv: list[str],
) -> int:
    """What torchrun does with these settings, of which each process is a fork."""
    while after and not after.exists():
        time.sleep(0.01)
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.api import MultiprocessContext
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    close = MultiprocessContext._close

    def released(context: Any, **how: Any) -> None:
        """A forked rank that is done waits to be asked for its result; a signalled agent asks no more."""
        context._worker_finished_event.set()
        close(context, **how)

    MultiprocessContext._close = released  # type: ignore[method-assign]
    os.environ.update({"OMP_NUM_THREADS": "1", **variables})
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        elastic_launch(LaunchConfig(**settings), _rank)(main, argv)
    except (SignalException, ChildFailedError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _rank(main: Callable[[list[str]], int], argv: list[str]) -> None:
    if code := main(argv):
        sys.exit(code)


class Pair(Bench):
    """A bench whose trainings, the straight one too, have two processes."""

    kind: type[Together] = Together

    def start(self, run: Path, *more: str, **limits: Any) -> Running:
        return self.kind([str(self.config), "--run-dir", str(run), *more], self._said(run), **limits)

    def resume(self, run: Path, *more: str, **limits: Any) -> Running:
        return self.kind(["--resume", str(run), *more], self._said(run), **limits)


def pair_of(bench: Bench) -> Pair:
    """One for all the faults of this file, beside the bench of one process."""
    if not hasattr(bench, "pair"):
        bench.pair = Pair(bench.folder / "pair", bench.updates)  # type: ignore[attr-defined]
    return bench.pair  # type: ignore[attr-defined,no-any-return]


def _hit(pair: Pair, restarts: int, hit: Callable[[Together], None]) -> tuple[Path, Together]:
    """A run that was hit once it had saved some random update."""
    assert pair.straight
    while True:
        run, target = pair.fresh(), pair.random.randrange(5, pair.updates - 4)
        running = pair.start(run, restarts=restarts)
        assert isinstance(running, Together)
        while running.alive and saved_update(run) < target:
            time.sleep(0.002)
        try:
            hit(running)
        except (IndexError, ProcessLookupError):  # it was at its end: that was no hit
            assert running.wait() == 0, running.text()
            shutil.rmtree(run)
        else:
            return run, running


def _one_killed(pair: Pair) -> Callable[[Together], None]:
    return lambda running: os.kill(pair.random.choice(running.ranks), signal.SIGKILL)


@fault("SIGKILL to one of two processes, which torchrun starts anew")
def restarted(bench: Bench, tries: int) -> Row:
    row, pair = Row(), pair_of(bench)
    for _ in range(tries):
        run, running = _hit(pair, 3, _one_killed(pair))
        pair.judge(running, run, row)
    return row


@fault("SIGKILL to one of two processes; resumed by hand")
def killed(bench: Bench, tries: int) -> Row:
    row, pair, told = Row(), pair_of(bench), 0
    for _ in range(tries):
        run, running = _hit(pair, 0, _one_killed(pair))
        code, text = running.wait(60), running.text()
        told += "error: rank " in text
        if OURS in text:
            row.add("TRACEBACK", f"exit code {code}: {text[-1500:]}")
            continue
        pair.judge(pair.resume(run) if code else running, run, row)
    row.note = f"the other one ended, {told} times with a message before torchrun ended it"
    return row


def _terminated(pair: Pair, tries: int, hit: Callable[[Together], None]) -> Row:
    row, slowest = Row(), 0.0
    for _ in range(tries):
        run, running = _hit(pair, 0, hit)
        began = time.monotonic()
        running.wait(60)
        slowest = max(slowest, time.monotonic() - began)
        text, result = running.text(), run / "result.json"
        status = json.loads(result.read_text())["status"] if result.exists() else "no result"
        if status not in ("interrupted", "completed") or OURS in text:
            row.add("UNCLEAR", f"{status}: {text[-1500:]}")
            continue
        pair.judge(pair.resume(run), run, row)
    row.note = f"at most {slowest:.1f} s from the signal to the end of torchrun"
    return row


@fault("SIGTERM to one of two processes")
def one_terminated(bench: Bench, tries: int) -> Row:
    pair = pair_of(bench)
    return _terminated(pair, tries, lambda r: os.kill(pair.random.choice(r.ranks), signal.SIGTERM))


@fault("SIGTERM to torchrun with two processes")
def all_terminated(bench: Bench, tries: int) -> Row:
    return _terminated(pair_of(bench), tries, lambda running: running.signal(signal.SIGTERM))


@fault("SIGTERM to torchrun and to both processes, as a scheduler signals a job")
def job_terminated(bench: Bench, tries: int) -> Row:
    """A rank gets it twice, in any order: torchrun passes its own on."""
    pair = pair_of(bench)

    def signal_all(running: Together) -> None:
        everyone: list[Callable[[], object]] = [lambda: running.signal(signal.SIGTERM)]
        everyone += [lambda rank=rank: os.kill(rank, signal.SIGTERM) for rank in running.ranks]
        pair.random.shuffle(everyone)
        for each in everyone:
            with suppress(ProcessLookupError):  # it was quick
                each()

    return _terminated(pair, tries, signal_all)


@fault("SIGTERM to one of two processes while they load a saved run")
def loading_terminated(bench: Bench, tries: int) -> Row:
    """They would be started anew, to train on, if one of them ended otherwise than with 0."""
    row, pair = Row(), pair_of(bench)
    for _ in range(tries):
        run, running = _hit(pair, 0, lambda first: os.kill(first.ranks[0], signal.SIGTERM))
        running.wait(60)
        there, again = saved_update(run), pair.resume(run, restarts=2)
        assert isinstance(again, Together)
        while again.alive and ", resumed" not in again.text():
            time.sleep(0.002)
        os.kill(pair.random.choice(again.ranks), signal.SIGTERM)
        code, status = again.wait(60), json.loads((run / "result.json").read_text())["status"]
        if code or status != "interrupted" or saved_update(run) > there + 1 or OURS in again.text():
            row.add("UNCLEAR", f"exit code {code}, {status}: {again.text()[-1500:]}")
            continue
        pair.judge(pair.resume(run), run, row)
    return row


def _ends(bench: Bench, tries: int, status: str, said: str, *options: str) -> Row:
    row, pair = Row(), pair_of(bench)
    for _ in range(tries):
        run = pair.fresh()
        running = pair.start(run, *(word for option in options for word in ("--set", option)))
        code, text, result = running.wait(), running.text(), run / "result.json"
        found = json.loads(result.read_text())["status"] if result.exists() else "no result"
        fine = found == status and said in text and OURS not in text and bool(code) == (status == "diverged")
        row.add(ENDED if fine else "UNCLEAR", f"exit code {code}, {found}: {text[-1500:]}")
    return row


@fault("two processes diverge", allows=(ENDED,))
def diverged(bench: Bench, tries: int) -> Row:
    """All of them end with 3, once, whatever torchrun makes of it."""
    loose = ("train.optimizer=sgd", "train.lr=1e30", "train.clip=0", "train.warmup=0")
    return _ends(bench, max(1, tries // 3), "diverged", "exitcode  : 3", *loose)


@fault("two processes stop early, by train.patience", allows=(ENDED,))
def early(bench: Bench, tries: int) -> Row:
    still = ("train.patience=1", "train.lr=1e-12", "train.validate_every=5")
    return _ends(bench, max(1, tries // 3), "completed", "patience", *still)

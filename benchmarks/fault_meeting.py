"""Faults while the processes of a run find each other: unlike ones, signals, a machine that is replaced."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from fault_ranks import OURS, Forked, Pair, Together, pair_of
from fault_rows import ENDED, Row, fault
from fault_running import Running
from fault_trials import Bench, saved_update

INTERRUPTED = 130
UNLIKE = (
    ("train.lr", "0.5"),
    ("train.clip", "7.0"),
    ("seed", "2"),
    ("model.placement", "post"),
    ("data.max_length", "5"),
)


def by_hand(pair: Pair, run: Path, rank: int, size: int, port: int, *more: str) -> Running:
    """One process of several, without torchrun."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    variables = {**where, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    work = partial(_with, {name: str(value) for name, value in variables.items()})
    argv = [str(pair.config), "--run-dir", str(run), "--device", "cpu", *more]
    return Running("train", argv, pair.folder / f"{run.name}-{rank}.txt", work=work)


def _with(variables: dict[str, str], main: Callable[[list[str]], int], argv: list[str]) -> int:
    os.environ.update(variables)
    return main(argv)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _ended(row: Row, processes: list[Running], code: int, said: list[str], run: Path) -> None:
    """Each with that code and these words, and nothing was begun."""
    codes, texts = [each.wait(60) for each in processes], [each.text() for each in processes]
    fine = codes == [code] * len(codes) and all(map(str.__contains__, texts, said))
    fine = fine and not any(OURS in text for text in texts) and not (run / "config.yaml").exists()
    row.add(ENDED if fine else "UNCLEAR", f"exit codes {codes}: {' | '.join(text[-500:] for text in texts)}")
    shutil.rmtree(run, ignore_errors=True)


@fault("two processes that are not started alike, without torchrun", allows=(ENDED,))
def unlike(bench: Bench, tries: int) -> Row:
    """Each time another option of rank 1 is not that of rank 0."""
    row, pair = Row(), pair_of(bench)
    for number in range(tries):
        (name, value), run, port = UNLIKE[number % len(UNLIKE)], pair.fresh(), free_port()
        first = by_hand(pair, run, 0, 2, port)
        other = by_hand(pair, run, 1, 2, port, "--set", f"{name}={value}")
        said = ["not all processes are started as rank 0 is", "rank 1 of 2 is not started as rank 0 is: here"]
        _ended(row, [first, other], 1, said, run)
    return row


@fault("SIGTERM to one of two processes that wait for a third, without torchrun", allows=(ENDED,))
def waiting_terminated(bench: Bench, tries: int) -> Row:
    """Both end, and say why."""
    row, pair = Row(), pair_of(bench)
    for _ in range(tries):
        run, port = pair.fresh(), free_port()
        both = [by_hand(pair, run, rank, 3, port) for rank in (0, pair.random.choice([1, 2]))]
        hit = pair.random.choice(both)
        while hit.alive and not all("; waiting" in each.text() for each in both):
            time.sleep(0.05)
        time.sleep(pair.random.random())
        hit.signal(signal.SIGTERM)
        said = ["interrupted" if each is hit else "before all had come: nothing was done" for each in both]
        _ended(row, both, INTERRUPTED, said, run)
    return row


APART = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class Machine(Together):
    """One of two torchruns, each with one process, as on two machines; the one that listens comes first."""

    def __init__(self, argv: list[str], said: Path, port: int, after: Path | None = None) -> None:
        """`after`: begins to be a torchrun when that file is there, under a number that it has before."""
        wait = ["sh", "-c", 'until [ -e "$0" ]; do sleep 0.1; done; exec "$@"', str(after)] if after else []
        how = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=one"]
        self.begin(argv, said, [*how, f"--rdzv-endpoint=localhost:{port}"], wait, APART)


class ForkedMachine(Forked):
    """The same, forked. A machine that is gone is missed after 3 s, not after 15 s."""

    def __init__(self, argv: list[str], said: Path, port: int, after: Path | None = None) -> None:
        there = {"rdzv_endpoint": f"localhost:{port}", "run_id": "one"}
        there["rdzv_configs"] = {"keep_alive_interval": 1}
        self.fork(argv, said, {"min_nodes": 2, "max_nodes": 2, "nproc_per_node": 1, **there}, 3, APART, after)


@fault("one of two machines is killed, and another takes its place")
def replaced(bench: Bench, tries: int) -> Row:
    """With rank 0 on the one that goes, and on the one that stays, in turn."""
    row, pair = Row(), pair_of(bench)
    assert pair.straight
    machine = ForkedMachine if issubclass(pair.kind, Forked) else Machine
    for number in range(max(1, tries // 3)):
        run, port = pair.fresh(), free_port()
        argv, there = (
            [str(pair.config), "--run-dir", str(run), "--overwrite"],
            pair.folder / f"{run.name}.there",
        )
        texts = [pair.folder / f"{run.name}-{name}.txt" for name in ("stays", "goes", "comes")]
        early = machine(argv, texts[1], port, after=there) if number % 2 else None  # torch counts by numbers
        stays = machine(argv, texts[0], port)
        _wait_for_listener(port)
        there.touch()
        goes = early or machine(argv, texts[1], port)
        target = pair.random.randrange(5, pair.updates // 2)
        while stays.alive and saved_update(run) < target:
            time.sleep(0.002)
        for process in (goes.agent, *goes.ranks):
            os.kill(process, signal.SIGKILL)
        goes.wait()
        comes = machine(argv, texts[2], port)
        code = comes.wait()
        log = (run / "log.txt").read_text() if (run / "log.txt").exists() else ""
        again = max(map(int, re.findall(r"resumed after update (\d+)", log)), default=0)
        if code or OURS in stays.text() + comes.text() or again < target:
            said = f"{stays.text()[-700:]} | {comes.text()[-700:]}"
            row.add("UNCLEAR", f"exit code {code}, resumed after {again} of {target}: {said}")
            stays.wait()
            continue
        pair.judge(stays, run, row)
    return row


def _wait_for_listener(port: int) -> None:
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens at port {port}")

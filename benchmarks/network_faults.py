"""What happens to a run between hosts when one of them, or its cable, is gone."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from network_hosts import Network, alive, ip
from network_runs import HERE, ROOT, Training, configuration

LOST = 1  # the host that is killed or cut off
START = 180.0  # seconds until a training must have done something
ENDLESS = 1_000_000  # updates
SHORT = 8  # times that the kernel sends anew what nobody acknowledges; 15 if nobody says otherwise


@dataclass(frozen=True)
class Fault:
    """What is done to the host LOST, and when."""

    name: str
    do: Callable[[Training], None]
    validating: float = 0.0  # seconds of the first validation, in which it is done; 0: in an update
    retries: int = 0  # net.ipv4.tcp_retries2 of the hosts; 0: the kernel's own


@dataclass(frozen=True)
class Ending:
    """How a host's part of the run has ended; seconds after the fault, infinity for not within the limit."""

    fault: str
    host: int
    rank: float  # until its rank was gone
    agent: float  # until torchrun was
    code: int | None  # of torchrun
    message: str  # of its rank


def kill_rank(training: Training) -> None:
    os.kill(training.rank(LOST), signal.SIGKILL)


def kill_host(training: Training) -> None:
    """All its processes at once; its kernel still closes their connections."""
    for process in sorted(training.network.processes(LOST), key=training.agents[LOST].pid.__ne__):
        os.kill(process, signal.SIGKILL)


def cut(training: Training) -> None:
    training.network.cut(LOST)


SHORTER = f"net.ipv4.tcp_retries2={SHORT}"
FAULTS = {
    "rank": Fault("its rank is killed", kill_rank),
    "host": Fault("all its processes are killed", kill_host),
    "update": Fault("its cable is cut in an update", cut),
    "short": Fault(f"its cable is cut in an update, {SHORTER}", cut, retries=SHORT),
    "validation": Fault("its cable is cut while rank 0 validates, for 300 s", cut, validating=300.0),
    "both": Fault(
        f"its cable is cut while rank 0 validates, {SHORTER}", cut, validating=300.0, retries=SHORT
    ),
}


def endings(
    fault: Fault, folder: Path, limit: float, checkout: Path = ROOT, silence: float | None = None
) -> list[Ending]:
    """Do it to a run of two hosts, and wait for both; at most `limit` seconds."""
    more = {"validate_every": 3} if fault.validating else {"log_every": 1}
    config = configuration(folder, ENDLESS, **more)
    with Network(2) as network:
        if fault.retries:
            for host in range(network.hosts):
                command = ["sysctl", "-qw", f"net.ipv4.tcp_retries2={fault.retries}"]
                ip("netns", "exec", network.host(host), *command)
        place = folder / fault.name.replace("/", " ")
        notes = [str(place), "0", str(fault.validating), "" if silence is None else str(silence)]
        argv = [str(HERE / "network_work.py"), *notes, str(config), "--run-dir", str(place / "run")]
        training = Training(network, place, argv, checkout)
        mark = place / "validating" if fault.validating else place / "run" / "metrics.jsonl"
        lines = 1 if fault.validating else 10
        deadline = time.monotonic() + START
        while not (mark.exists() and (fault.validating or mark.read_text().count("\n") >= lines)):
            assert time.monotonic() < deadline, training.text(0)[-1500:]
            time.sleep(0.05)
        return _watched(fault, training, limit)


def _watched(fault: Fault, training: Training, limit: float) -> list[Ending]:
    ranks = [training.rank(host) for host in range(training.network.hosts)]
    assert all(ranks)
    fault.do(training)
    start = time.monotonic()
    gone: dict[tuple[str, int], float] = {}
    while len(gone) < 2 * len(ranks) and time.monotonic() - start < limit:
        for host, rank in enumerate(ranks):
            if not alive(rank):
                gone.setdefault(("rank", host), time.monotonic() - start)
            if training.agents[host].poll() is not None:
                gone.setdefault(("agent", host), time.monotonic() - start)
        time.sleep(0.05)
    return [
        Ending(
            fault.name,
            host,
            gone.get(("rank", host), float("inf")),
            gone.get(("agent", host), float("inf")),
            training.agents[host].returncode,
            message(training.text(host)),
        )
        for host in range(len(ranks))
    ]


def message(text: str) -> str:
    """What the rank itself has said at its end, without gloo's advice; empty if nothing."""
    said = [line for line in text.splitlines() if "error: rank " in line]
    words = said[-1].partition("error: ")[2] if said else ""
    words = re.sub(r"\[/\S+/(\w+\.cc:\d+)\]", r"\1:", words)  # the path is of who has built torch
    return words.partition(". This is typically")[0].partition("). If another process")[0]

"""Trainings between the hosts of a Network, by torchrun, and what a run of them has measured."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from network_hosts import Network, alive, ended

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
PORT = 29500
BYTES = 4  # of a parameter and of its gradient
FIRST = 3  # updates that are not counted: they make what later ones find
TIMEOUT = 600.0  # seconds a training may take
PROBED = {0.0: 100_000_000, 1e9: 50_000_000}  # rate -> bytes to measure it with, if not 10 MB

MODEL = {"d_model": 128, "heads": 4, "d_ff": 512, "encoder_layers": 2, "decoder_layers": 2}
# SGD adds rounding up and no more; Adam makes whole steps of it where a gradient is nothing else.
TRAIN = {
    "optimizer": "sgd",
    "lr": 0.1,
    "warmup": 5,
    "batch_tokens": 1024,
    "metric": "loss",
    "validate_bleu": False,
    "validate_every": 1_000_000,
    "log_every": 1_000_000,
    "average": 0,
    "threads": 1,
    "precision": "float32",
}


@dataclass(frozen=True)
class Case:
    """A training to measure. `rate` in bits a second (0: no limit), `delay` in seconds of a round trip."""

    hosts: int
    layout: str
    rate: float = 0.0
    delay: float = 0.0


@dataclass(frozen=True)
class Found:
    """What a case has been found to do; times in seconds, bytes of one host."""

    case: Case
    parameters: int
    gathered_twice: int  # parameters of sublayers
    difference: float  # of the weights from those of one process, relative to 1 or to the weight
    round_trip: float  # of one byte over this link, measured
    rate: float  # bits a second of one connection over this link, measured
    update: float  # median
    sent: float  # bytes an update, mean
    votes: float  # number, of an update
    voting: float  # seconds of an update in them, waiting for the others included; the first rank's
    vote: float  # one vote when all come at once, median; the first rank's


def ring(hosts: int, parameters: int) -> float:
    """Bytes that each host sends to add up so many numbers of each, in a ring. Half of it gathers them."""
    return 2 * (hosts - 1) / hosts * BYTES * parameters


def expected_bytes(found: Found) -> float:
    """Bytes that each host sends for the gradients of an update, and in fsdp for weights.

    In fsdp those of sublayers are gathered twice, those of embeddings and the norms at the top once; and
    gloo scatters sums at the price of an all-reduce, where others pay half of it.
    """
    whole = ring(found.case.hosts, found.parameters)
    if found.case.layout == "ddp":
        return whole
    return whole + ring(found.case.hosts, found.parameters + found.gathered_twice) / 2


def expected_update(found: Found, unlimited: Found) -> float:
    """Seconds of an update by the plan: what it takes without a limit, and the bytes at this rate."""
    return unlimited.update + 8 * expected_bytes(found) / found.rate


def delays(found: Found, undelayed: Found) -> tuple[float, float]:
    """One-way delays that a vote waits for, in an update and right after another; a ring has 2 (N - 1)."""
    one_way = (found.round_trip - undelayed.round_trip) / 2
    more = found.voting / found.votes - undelayed.voting / undelayed.votes
    return more / one_way, (found.vote - undelayed.vote) / one_way


class Training:
    """torchrun at every host, with one process each, of `argv`: a script and its arguments."""

    def __init__(self, network: Network, folder: Path, argv: Sequence[str], checkout: Path = ROOT) -> None:
        self.network, self.folder = network, folder
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        environment |= {"GLOO_SOCKET_IFNAME": "eth0"}
        self.agents = []
        for host in range(network.hosts):
            launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"]
            launch += ["--nnodes", str(network.hosts), "--rdzv-backend", "c10d", "--rdzv-id", "network"]
            launch += ["--rdzv-endpoint", f"{network.address(0)}:{PORT}", "--max-restarts", "0"]
            # Of hosts with names torchrun finds out both by itself; these share the machine's.
            launch += ["--local-addr", network.address(host), "--rdzv-conf", f"is_host={int(host == 0)}"]
            with open(self._said(host), "wb") as file:
                command = network.command(host, [*launch, *argv])
                self.agents.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment))

    def _said(self, host: int) -> Path:
        return self.folder / f"host{host}.txt"

    def text(self, host: int) -> str:
        return self._said(host).read_text(errors="replace")

    def rank(self, host: int) -> int:
        """The process that trains there; 0 while there is none."""
        agent = self.agents[host].pid
        for process in self.network.processes(host):
            try:
                parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == agent and alive(process):
                return process
        return 0

    def wait(self) -> None:
        """Until all have ended well; what they said, if not."""
        for host, agent in enumerate(self.agents):
            assert ended(agent, TIMEOUT), f"host {host} still runs: {self.text(host)[-1500:]}"
            assert agent.returncode == 0, f"host {host}, exit code {agent.returncode}: {self.text(host)}"


def configuration(folder: Path, updates: int, **train: Any) -> Path:
    """A small model of the embedded corpus, without dropout, whose masks differ between ranks."""
    data = {"source": "en", "target": "de", "train": "demo", "valid": "demo"}
    data |= {"tokenizer": {"vocab_size": 2000}, "cache": str(folder / "cache")}  # type: ignore[dict-item]
    config = {"seed": 1, "data": data, "model": {**MODEL, "dropout": 0.0, "tie_embeddings": "all"}}
    config |= {"train": {**TRAIN, "updates": updates, **train}}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"config{updates}.yaml"
    path.write_text(json.dumps(config))
    return path


def alone(folder: Path, config: Path, checkout: Path = ROOT) -> Path:
    """The run of one process, outside of all hosts."""
    run = folder / "alone"
    command = [sys.executable, str(checkout / "train.py"), str(config), "--run-dir", str(run)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return run


def difference(run: Path, other: Path) -> float:
    """The largest of any weight, relative to 1 or to the weight, whichever is larger."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(each / "model.safetensors") for each in (run, other))
    assert ours.keys() == theirs.keys()
    return max(
        float(((w - theirs[name]).abs() / theirs[name].abs().clamp(min=1)).max()) for name, w in ours.items()
    )


def probe(network: Network, size: int = 10_000_000) -> dict[str, float]:
    """The link from the second host to the first, by so many bytes."""
    script = [sys.executable, str(HERE / "network_probe.py")]
    client = network.command(1, [*script, network.address(0), str(size)])
    with subprocess.Popen(network.command(0, [*script, "serve"]), stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        done = subprocess.run(client, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(case: Case, folder: Path, config: Path, reference: Path, votes: int) -> Found:
    """Train between hosts of this kind, and read what the ranks have noted."""
    place = folder / f"{case.hosts} {case.layout} {case.rate:g} {case.delay:g}"
    with Network(case.hosts, case.rate, case.delay) as network:
        link = probe(network, PROBED.get(case.rate, 10_000_000))
        options = ["--run-dir", str(place / "run"), "--set", f"train.parallel={case.layout}"]
        argv = [str(HERE / "network_work.py"), str(place), str(votes), "0", "", str(config), *options]
        Training(network, place, argv).wait()
    notes = [json.loads((place / f"rank{rank}.json").read_text()) for rank in range(case.hosts)]
    return Found(
        case,
        json.loads((place / "run" / "result.json").read_text())["parameters"],
        notes[0]["gathered_twice"],
        difference(place / "run", reference),
        link["round_trip"],
        link["rate"],
        **of_updates([note["marks"] for note in notes]),
        vote=statistics.median(notes[0]["votes"]),
    )


def of_updates(marks: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
    """From what each rank noted after each update: time, bytes, votes and the seconds in them."""
    counted = [each[FIRST:] for each in marks]
    first, spans = counted[0], len(counted[0]) - 1
    times = [after[0] - before[0] for before, after in pairwise(first)]
    return {
        "update": statistics.median(times),
        "sent": statistics.mean((each[-1][1] - each[0][1]) / spans for each in counted),
        "votes": (first[-1][2] - first[0][2]) / spans,
        "voting": (first[-1][3] - first[0][3]) / spans,
    }

"""Runs in several processes beside the same run in one: a table, and exit code 1 if any differs.

    python benchmarks/ranks.py [--processes 2 4]      (PYTHONPATH=. to take the code that lies here)

On one machine, CPU and gloo, dropout 0. Of each case (kind of model or training) and layout (DDP, FSDP2): are
the pairs of every micro-batch those of one process, are counters the same, are the weights the same bits in
all ranks, and how far are they from those of one process after the last update. `resumed` goes on with a run
of one process, with fsdp from the state before the last one, which is damaged. `interrupted` goes on after a
signal to one rank broke the validation off: with fsdp to the one that validates, with ddp to the last one.
Of `short`, memory fails the last rank in a forward pass, and in a backward pass. At the end a rank is killed,
and the others must have seen it.
The last row hands a run on from 1 process to 2, to 4 and back to 1.

In float64: Adam divides by the gradient's size, so where that is zero but for rounding (a key's bias) the
same numbers, summed in another order, give updates of another sign.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rank_work import CASES, LOST, train, work
from torch import multiprocessing

TOLERANCE = 1e-8
COUNTERS = ("update", "epoch", "batch", "target_tokens", "validated", "waited", "best_update")
TIMEOUT = 1800  # seconds for all that a group of processes does, on a machine with other work


@dataclass(frozen=True)
class Row:
    """A run in several processes beside the same run in one."""

    case: str
    processes: int
    same_data: bool
    same_counters: bool
    same_ranks: bool  # bit for bit
    difference: float  # the largest of any weight, relative to 1 or to the weight, whichever is larger

    @property
    def good(self) -> bool:
        return self.same_data and self.same_counters and self.same_ranks and self.difference <= TOLERANCE


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_together(
    size: int, folder: Path, names: Sequence[str], *, resumed: str = "", killed: bool = False
) -> list[dict[str, Any]]:
    """What each of `size` new processes reports; a server that has imported torch forks them."""
    arguments = (size, free_port(), str(folder), tuple(names), resumed, killed)
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, "a rank waits for the others, or they for it"
    codes = [process.exitcode for process in processes]
    assert codes == ([LOST, -9] + [LOST] * (size - 2) if killed else [0] * size), codes
    return [torch.load(folder / f"results{rank}.pt", weights_only=True) for rank in range(size)]


def compare(
    size: int, folder: Path, names: Sequence[str], *, killed: bool = True, resumed: bool = True
) -> list[Row]:
    """The named cases in `size` processes and in one; `resumed`: also what goes on, or is short of memory."""
    if resumed:
        for layout in ("ddp", "fsdp"):
            train("accumulate", folder / f"resumed, {layout}", updates=2, save_every=1)
        with open(folder / "resumed, fsdp" / "checkpoints" / "last" / "trainer.pt", "r+b") as file:
            file.write(b"damaged")
    ranks = run_together(size, folder, names, resumed="accumulate" if resumed else "", killed=killed)
    alone = {name: train(name, folder / f"{name}, alone") for name in names}
    if resumed:
        alone |= dict.fromkeys(("resumed", "interrupted", "short"), train("accumulate", folder / "straight"))
    return [row(key, size, [rank[key] for rank in ranks], alone[key.rpartition(", ")[0]]) for key in ranks[0]]


def row(case: str, size: int, ranks: list[dict[str, Any]], alone: dict[str, Any]) -> Row:
    parts = zip(*(rank["dealt"] for rank in ranks), strict=True)
    dealt = [sorted(chain.from_iterable(rows)) for rows in parts]
    expected = [sorted(batch) for batch in alone["dealt"]][-len(dealt) :]  # a resumed run has the last ones
    chief = ranks[0]
    others = ranks[1:] if case.endswith("ddp") else []  # of fsdp, only the chief gathers the weights
    return Row(
        case,
        size,
        dealt == expected,
        all(chief["progress"][name] == alone["progress"][name] for name in COUNTERS),
        all(torch.equal(each["weights"][name], w) for each in others for name, w in chief["weights"].items()),
        max(
            float(((w - alone["weights"][name]).abs() / alone["weights"][name].abs().clamp(min=1)).max())
            for name, w in chief["weights"].items()
        ),
    )


def handed_on(folder: Path, counts: Sequence[int] = (1, 2, 4, 1)) -> Row:
    """A run that goes on in another number of processes, and layout, after every second update."""
    case, place, dealt = "accumulate", folder / "resumed, ddp", []
    for turn, size in enumerate(counts, start=1):
        more = {"updates": 2 * turn, "save_every": 1}
        if size == 1:
            parts = [train(case, place, resume=turn > 1, **more)]
        else:
            parts = run_together(size, folder, (), resumed=f"{case} {2 * turn}")
            parts = [part["resumed, ddp"] for part in parts]
        dealt += [list(chain.from_iterable(rows)) for rows in zip(*(p["dealt"] for p in parts), strict=True)]
    straight = train(case, folder / "straight, long", updates=2 * len(counts))
    return row(f"{' -> '.join(map(str, counts))}, ddp", counts[-1], [{**parts[0], "dealt": dealt}], straight)


def show(rows: Sequence[Row]) -> None:
    print(f"{'case':24} {'processes':>9}  same data  counters  ranks alike  largest difference")
    for each in rows:
        data, counters, alike = (
            "yes" if value else "NO" for value in (each.same_data, each.same_counters, each.same_ranks)
        )
        print(
            f"{each.case:24} {each.processes:9}  {data:9}  {counters:8}  {alike:11}  {each.difference:.1e}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    torch.set_num_threads(1)
    rows: list[Row] = []
    for size in parser.parse_args().processes:
        with tempfile.TemporaryDirectory() as folder:
            rows += (fresh := compare(size, Path(folder), list(CASES)))
            show(fresh)
    with tempfile.TemporaryDirectory() as folder:
        rows.append(handed_on(Path(folder)))
    show(rows[-1:])
    return int(not all(each.good for each in rows))


if __name__ == "__main__":
    raise SystemExit(main())

"""train.py with a clock: what each rank of a run between hosts writes down; torchrun starts it.

    torchrun ... benchmarks/network_work.py NOTES VOTES HOLD SILENCE CONFIG [OPTION...]

Trains as `train.py CONFIG OPTION...` does. Before the first update VOTES votes are held for their own sake.
After each update the time, the bytes that eth0 has sent, and the seconds in votes and their number are noted,
in NOTES/rankN.json. HOLD: seconds that a validation takes longer, while the other ranks wait. SILENCE: as
training/ranks.py has it, in seconds, empty for what it has.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformer.__main__ import program
from transformer.training import ranks
from transformer.training.ranks import Processes
from transformer.training.trainer import Trainer

COUNTER = Path("/sys/class/net/eth0/statistics/tx_bytes")
VOTES = ("total", "largest", "sum")  # what an update asks of all ranks besides gradients


def sent() -> int:
    """Bytes that this host has sent so far, headers counted once for what leaves in one segment."""
    return int(COUNTER.read_text()) if COUNTER.exists() else 0


class Clock:
    """Counts the votes, and the seconds in them; a vote that is part of another is not one."""

    def __init__(self) -> None:
        self.votes, self.seconds, self._inside = 0, 0.0, False

    def counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def vote(*arguments: Any) -> Any:
            if self._inside:
                return method(*arguments)
            self._inside, start = True, time.perf_counter()
            try:
                return method(*arguments)
            finally:
                self.votes, self.seconds = self.votes + 1, self.seconds + time.perf_counter() - start
                self._inside = False

        return vote


def noting(notes: Path, votes: int, hold: float) -> None:
    """Have every trainer of this process write down what it does."""
    clock, marks, step, fit = Clock(), [], Trainer.step, Trainer.fit

    def noted(self: Trainer, batches: Any) -> None:
        step(self, batches)
        marks.append((time.perf_counter(), sent(), clock.votes, clock.seconds))

    def voting(self: Trainer) -> Any:
        validator, times = self.validator, []

        def held(model: Any) -> Mapping[str, float]:
            (notes / "validating").touch()
            time.sleep(hold)
            return validator(model)

        if hold:
            self.validator = held
        self.ranks.barrier()
        for _ in range(votes):
            start = time.perf_counter()
            self.ranks.barrier()
            times.append(time.perf_counter() - start)
        outcome = fit(self)
        groups = {id(p): p.numel() for site in self.model.sites() for m in site for p in m.parameters()}
        found = {"marks": marks, "votes": times, "gathered_twice": sum(groups.values())}
        (notes / f"rank{self.ranks.rank}.json").write_text(json.dumps(found))
        return outcome

    for name in VOTES:
        setattr(Processes, name, clock.counted(getattr(Processes, name)))
    Trainer.step, Trainer.fit = noted, voting  # type: ignore[method-assign]


if __name__ == "__main__":
    folder, votes, hold, silence = sys.argv[1:5]
    noting(Path(folder), int(votes), float(hold))
    if silence:
        ranks.LONGEST_SILENCE = float(silence)
    sys.argv[1:] = sys.argv[5:]
    raise SystemExit(program("train"))

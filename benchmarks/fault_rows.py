"""What comes of a fault: outcomes, the rows of the table, and which outcomes each fault may have.

A fault is a function of a `Bench` and a number of tries that returns a `Row`; `@fault("...")` puts it into
the table of faults.py. What it does not name in `allows` counts as failed: a run that was killed has to go
on, and a refusal, with a remedy or not, is then no good end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fault_trials import Bench


EXACT, REFUSED, ENDED = "went on exactly", "refused with a remedy", "ended as documented"
SAME = "went on in parts, the same to rounding"
CRASHED = "crashed in a library that does not check whether it got memory; resumed, the same"


@dataclass
class Row:
    """What came of a fault: how often it was tried, an outcome to how many, and examples of what was said."""

    outcomes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    note: str = ""
    allows: tuple[str, ...] = (EXACT,)

    @property
    def tried(self) -> int:
        return sum(self.outcomes.values())

    @property
    def bad(self) -> dict[str, int]:
        """Outcomes that are not right for this fault."""
        return {name: count for name, count in self.outcomes.items() if name not in self.allows}

    def add(self, outcome: str, example: str = "") -> None:
        self.outcomes[outcome] += 1
        if example:
            self.examples.setdefault(outcome, example)


class Fault:
    """A function that tries a fault, and the outcomes that are right for it."""

    def __init__(self, function: Callable[[Bench, int], Row], allows: Sequence[str]) -> None:
        self.function, self.allows = function, tuple(allows)
        self.__module__ = function.__module__

    def __call__(self, bench: Bench, tries: int) -> Row:
        row = self.function(bench, tries)
        row.allows = self.allows
        return row


FAULTS: dict[str, Fault] = {}


def fault(name: str, allows: Sequence[str] = (EXACT,)) -> Callable[[Callable[[Bench, int], Row]], Fault]:
    """Put a fault into the table; `allows`: the outcomes that are right for it."""

    def register(function: Callable[[Bench, int], Row]) -> Fault:
        FAULTS[name] = Fault(function, allows)
        return FAULTS[name]

    return register

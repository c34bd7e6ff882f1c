"""What was read, what was kept, what was not and why: for data.json, and for a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

_EXAMPLES = 3
_SHOWN = 60
_COUNTS = ("read", "kept", "source_tokens", "target_tokens", "source_unknown", "target_unknown")

EMPTY_SOURCE = "the source is blank"
EMPTY_TARGET = "the target is blank"
EMPTY_BOTH = "both sides are blank"
TOO_LONG = "a side is too long"
RATIO = "the sides' lengths differ too much"
COPY = "the target is a copy of the source"


@dataclass
class SplitReport:
    """Counts of one split. `reasons`: why -> how many pairs; `examples`: why -> `file, line: text`."""

    name: str
    read: int = 0
    kept: int = 0
    source_tokens: int = 0
    target_tokens: int = 0
    source_unknown: int = 0
    target_unknown: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    oddities: list[str] = field(default_factory=list)
    drops: bool = True  # False: `reasons` counts pairs that were kept all the same (validation)

    def add(self, reason: str, where: str, text: str) -> None:
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            shown.append(f"{where}: {text[:_SHOWN]!r}" + ("..." if len(text) > _SHOWN else ""))

    def merge(self, later: SplitReport) -> None:
        """Add the counts of a part of the split that comes after what this one has counted."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for reason, count in later.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
            self.examples[reason] = (self.examples.get(reason, []) + later.examples[reason])[:_EXAMPLES]

    def unknown_share(self, side: str) -> float:
        """Share of a side's tokens that are UNK."""
        tokens, unknown = getattr(self, f"{side}_tokens"), getattr(self, f"{side}_unknown")
        return unknown / tokens if tokens else 0.0

    def lines(self) -> Iterator[str]:
        yield (
            f"{self.name}: {self.read:,} pairs read, {self.kept:,} kept; "
            f"{self.source_tokens:,} source and {self.target_tokens:,} target tokens"
        )
        for reason, count in self.reasons.items():
            share = 100 * count / self.read
            fate = "dropped" if self.drops else "kept, cut to the limit" if reason == TOO_LONG else "kept"
            yield f"  {fate}: {count:,} pairs ({share:.3g} %), {reason}"
            for example in self.examples[reason]:
                yield f"    {example}"
        for side in ("source", "target"):
            if getattr(self, f"{side}_unknown"):
                yield f"  {100 * self.unknown_share(side):.3g} % of the {side} tokens are unknown"
        for text in self.oddities:
            yield f"  {text}"


@dataclass
class FilterReport:
    """The report of a run's training and validation data."""

    train: SplitReport
    valid: SplitReport
    source_vocabulary: int
    target_vocabulary: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for data.json."""
        return asdict(self)

    def text(self) -> str:
        """A few lines for the console and the log."""
        if self.source_vocabulary == self.target_vocabulary:
            sizes = f"vocabulary: {self.source_vocabulary:,} pieces"
        else:
            sizes = (
                f"vocabulary: {self.source_vocabulary:,} source and {self.target_vocabulary:,} target pieces"
            )
        return "\n".join([sizes, *self.train.lines(), *self.valid.lines()])

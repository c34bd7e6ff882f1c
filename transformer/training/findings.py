"""What is known of a failure, and how it is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .divergence import COLLAPSED, DATA, EXPLODED, NEVER_STARTED, OVERFLOW, UNCLEAR

# The words of each class.
MEANING = {
    NEVER_STARTED: "the loss has never come clearly below the unigram level",
    COLLAPSED: "the model had learned, and its loss rose back to the unigram level or above it",
    EXPLODED: "numbers grew far beyond where they began",
    OVERFLOW: "not finite in the low-precision products, finite in float32 with the same weights and batch",
    DATA: "this batch alone is not fit to be trained on",
    UNCLEAR: "nothing that was measured tells why",
}


@dataclass
class Findings:
    """What is known of a failure."""

    first: Mapping[str, Any] | None = None  # where it was first not finite
    spike: Mapping[str, Any] | None = None  # which layer's gradient rose far above its median, at last
    batch: Mapping[str, Any] | None = None
    replayed: Mapping[str, Any] | None = None
    evidence: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kind: str = ""

    def words(self) -> str:
        said = [f"{self.kind}: {MEANING[self.kind]}"]
        if self.first:
            said.append(f"first not finite: {self.first['words']} ({self.first['pass']} pass)")
        if self.spike:
            spike = self.spike
            said.append(
                f"the gradient of {spike['layer']} was {spike['times']:.2g} times its median"
                f" at update {spike['update']:,}"
            )
        said += self.evidence
        if self.batch:
            said.append(f"{_which(self.batch)} of epoch {self.batch['epoch']:,}")
            if self.batch.get("pairs"):
                said[-1] += f" (pairs {', '.join(map(str, self.batch['pairs']))}, ...)"
        return "; ".join([*said, *self.notes])


def _which(batch: Mapping[str, Any]) -> str:
    if "batches" not in batch:
        return f"batch {batch['batch']:,}"
    first, last = batch["batches"]
    return f"one of batches {first:,} to {last:,}"

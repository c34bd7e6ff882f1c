"""What a run can be measured by: names, and whether more is better."""

from __future__ import annotations

import re

from ..core.registry import nearest

# Name, and whether more is better; `test.NAME.bleu` besides.
METRICS = {
    "valid_loss": False,
    "valid_bleu": True,
    "train_loss": False,
    "gap": False,
    "updates_to_target": False,
}
LR_RANGE = "lr_range"  # of all rates together, so a question's metric and never a run's
SCORES = ("bleu", "chrf", "ter")
_TEST = re.compile(rf"test\.(.+)\.({'|'.join(SCORES)})")


def known_metric(name: str) -> str:
    """The name, if it is one; ValueError with a suggestion."""
    if name in METRICS or name == LR_RANGE or _TEST.fullmatch(name):
        return name
    tested = [f"{name.rpartition('.')[0]}.{score}" for score in SCORES] if name.startswith("test.") else []
    guess = nearest(name, tested or [*METRICS, LR_RANGE])
    raise ValueError(
        f"unknown metric {name!r}"
        + (f"; did you mean {guess!r}?" if guess else "")
        + f" (one of {', '.join([*METRICS, LR_RANGE])}, test.NAME.bleu)"
    )


def higher_is_better(metric: str) -> bool:
    """Is more of the metric better? A rate of edits (`test.NAME.ter`) is better when low."""
    test = _TEST.fullmatch(metric)
    return test[2] != "ter" if test else metric == LR_RANGE or METRICS[metric]


def scored_set(metric: str) -> tuple[str, str] | None:
    """(`NAME`, `bleu`) of `test.NAME.bleu`; None for another metric."""
    test = _TEST.fullmatch(metric)
    return (test[1], test[2]) if test else None

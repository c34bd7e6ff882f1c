"""What a failed run died of: where, when, on which batch, and of which kind. Costs nothing before it fails.

A sum on the device tells, at the next log line, which update was the first that was not finite; by then the
weights are poisoned. So the last good state is taken up again (of those that an uninterrupted run saves, or
the initial values before there is one), the updates up to the bad one are run once more, and the bad one is
run with hooks on the weights that it met. In float32 on a CPU that is the very same computation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoint import set_weights
from .divergence import COLLAPSED, DATA, EXPLODED, NEVER_STARTED, OVERFLOW, RISEN, UNCLEAR, Diverged
from .findings import Findings
from .history import EARLIER, last_rise, last_spike, level_of, read_past, spread
from .inspection import Inspector, Place, Recorder, ill_formed, located, named, not_finite
from .interruption import Interruption
from .limits import updates_of
from .passes import copied

if TYPE_CHECKING:
    from .trainer import Trainer

REPLAY = 1000  # updates that are run again, at most
GROWN = 100.0  # times the magnitude at the same place, on the same batch, with the last good weights
STEEP = 1e6  # times the embedding's magnitude, within one pass
OTHERS = 3  # updates that are tried besides
RECENT = 200  # updates before the failure: a spike that is older was survived


def examine(trainer: Trainer, diverged: Diverged) -> dict[str, Any]:
    """What `divergence` in result.json holds. The model's weights are another update's afterwards.

    A failure of its own is a note and not an error: the run's result is worth more than its reasons.
    """
    bad = trainer.window.offender(trainer.ranks)
    if not trainer.ranks.chief:
        return {"words": "rank 0 says why"}
    found = Findings(kind=diverged.kind, batch=diverged.batch)
    past = read_past(trainer.logbook.metrics_path)
    if past.lines and (rise := last_rise(past, RISEN * level_of(past, trainer.unigram_loss))):
        found.evidence.append(
            f"the logged nll rose from {past.lines[0].nll:.3g} to {past.lines[-1].nll:.3g},"
            f" seen first at update {rise.update:,}"
        )
    try:
        if not found.kind:
            place = trainer.progress, diverged.update, trainer.config.accumulate, bad
            found.batch = located(trainer.stream, *place)
            _replay(trainer, diverged.update, bad, found, trainer.interruption)
    except Exception as error:  # whatever it is
        found.notes.append(f"the replay failed ({type(error).__name__}: {error})")
    if diverged.measured:
        found.batch = None  # of the last update before the validation, which was finite
    if not found.spike:
        stalled = found.kind in (NEVER_STARTED, COLLAPSED)
        _note_spike(found, past.gradients, trainer.progress.learned if stalled else diverged.update)
    grown = bool(found.evidence or found.spike)
    if found.kind == OVERFLOW and grown:  # bf16 reaches as far as float32: a little later that would end, too
        found.kind = EXPLODED
        found.notes.append("finite in float32 with the same weights and batch")
    found.kind = found.kind or (EXPLODED if grown else UNCLEAR)
    if found.kind == EXPLODED and not (found.first or found.spike):
        found.notes.append("in which layer it began is not known: no probe shows it")
    if found.kind == NEVER_STARTED and past.gradients:
        found.notes.append(spread(*past.gradients[-1]))
    losses: list[float | None] = [*(line.nll for line in past.lines)] or [None]
    result = {
        "class": found.kind,
        "update": diverged.update,
        "learning_rate": diverged.rate,
        "first": found.first,
        "spike": found.spike,
        "batch": found.batch,
        "logged_nll": {"first": losses[0], "last": losses[-1]},
        "replayed": found.replayed,
    }
    return {**result, "words": found.words()}


def _note_spike(found: Findings, history: Sequence[tuple[int, Mapping[str, float]]], failed: int) -> None:
    """Note the last spike, if not long survived at `failed`; of a finite explosion, a rise is enough."""
    earlier = EARLIER
    if found.kind == EXPLODED:
        after = sum(update < failed for update, _ in history)
        history, earlier = history[: after + 1], 1
    spike = last_spike(history, earlier=earlier)
    if spike and failed - spike[0] <= RECENT:
        found.spike = dict(zip(("update", "layer", "times"), spike, strict=True))


# --- the replay


def _replay(trainer: Trainer, broken: int, bad: int, found: Findings, interruption: Interruption) -> None:
    """Run the updates up to `broken` once more, then that one with hooks; fill in `found`.

    `bad` is what the window says of its micro-batches.
    """
    if trainer.ranks.size > 1:
        found.notes.append(
            f"not run again: the run has {trainer.ranks.size} processes; resumed in one, it says more"
        )
        return
    poisoned = not_finite(trainer.model)
    with _elsewhere(trainer, broken) as start:
        progress = trainer.progress
        if not 0 <= broken - 1 - start <= REPLAY:
            found.notes.append(f"not run again: that would begin with update {start:,}, too long before")
            return _poisoned(poisoned, found)
        trainer.logbook.say(f"not finite: updates {start + 1:,} to {broken:,} are run again to see where")
        good, recorder = copied(trainer.model), Recorder(trainer.model)
        updates = updates_of(trainer.stream, progress, trainer.config.accumulate)
        trainer.observer = recorder
        while progress.update < broken - 1 and not interruption.name:
            trainer.step(next(updates))
        if interruption.name:
            found.notes.append("the replay was interrupted")
            return _poisoned(poisoned, found)
        _note_spike(found, recorder.history(start + 1), broken)
        micro_batches = next(updates)
        place = progress.epoch, progress.batch - len(micro_batches) + 1
        recorded = bad - 1 if 1 <= bad <= len(micro_batches) else None
        found.batch = named(micro_batches, recorded, *place)
        if wrong := ill_formed(micro_batches, trainer.model):
            found.batch, found.kind = named(micro_batches, wrong[0], *place), DATA
            found.notes.append(wrong[1])
        weights = copied(trainer.model)
        inspector, loss = _inspect(trainer, micro_batches, broken, weights)
        which, found.first = _first(inspector, loss)
        found.replayed = {"from": start, "updates": broken - 1 - start, "same": found.first is not None}
        if found.first is None:
            return _afterwards(trainer, micro_batches, broken, good, start, poisoned, found)
        if not found.kind:
            if which is None or len(inspector.passes) > len(micro_batches):  # or they were cut (oom.py)
                alone = recorded is None
                which = _offender(trainer, micro_batches, broken, weights) if alone else recorded
            found.batch = named(micro_batches, which, *place)
            low = trainer.passes.dtype != torch.float32
            found.evidence += _growth(inspector, _inspect(trainer, micro_batches, broken, good)[0], start)
            if low and _finite(trainer, micro_batches, broken, weights, torch.float32):
                found.kind = OVERFLOW
            elif not found.evidence:
                _try_others(trainer, updates, broken, weights, found)


@contextmanager
def _elsewhere(trainer: Trainer, broken: int) -> Iterator[int]:
    """The trainer in a good state before update `broken`, and that state's update; its counters come back."""
    kept = trainer.progress, trainer.window, trainer.observer
    try:
        yield trainer.rewind(broken)
    finally:
        trainer.progress, trainer.window, trainer.observer = kept
        trainer.optimizer.zero_grad(set_to_none=True)


def _inspect(
    trainer: Trainer,
    micro_batches: Sequence[Any],
    update: int,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
) -> tuple[Inspector, float]:
    """One update's passes with these weights, which stay as they are; and its loss a token."""
    set_weights(trainer.model, weights, "the replay")
    inspector, passes, kept = Inspector(trainer.model), trainer.passes, trainer.passes.dtype
    trainer.optimizer.zero_grad(set_to_none=True)
    try:
        passes.dtype = kept if dtype is None else dtype
        tokens, loss, _ = passes.run(micro_batches, update, inspector)
        inspector.gradients()
    finally:
        passes.dtype = kept
        trainer.optimizer.zero_grad(set_to_none=True)
        set_weights(trainer.model, weights, "the replay")  # norms with running statistics have moved
    return inspector, loss.item() / tokens if tokens else math.nan


def _first(inspector: Inspector, loss: float) -> tuple[int | None, dict[str, Any] | None]:
    """(micro-batch, if it is known, place) of the first number that was not finite, as they were computed."""
    if forward := inspector.first_forward():
        return forward[0], {"pass": "forward", **forward[1].as_dict(), "words": str(forward[1])}
    if not math.isfinite(loss):
        return None, {"pass": "forward", **Place("output", "loss").as_dict(), "words": "the loss"}
    if backward := inspector.first_backward():
        return None, {"pass": "backward", **backward.as_dict(), "words": f"the gradient of {backward}"}
    return None, None


def _finite(
    trainer: Trainer,
    micro_batches: Sequence[Any],
    update: int,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
) -> bool:
    return _first(*_inspect(trainer, micro_batches, update, weights, dtype))[1] is None


def _offender(
    trainer: Trainer, micro_batches: Sequence[Any], update: int, weights: Mapping[str, Tensor]
) -> int | None:
    """The first micro-batch that is not finite by itself: a loss and a gradient are sums over all."""
    if len(micro_batches) == 1:
        return 0
    fine = (_finite(trainer, [batch], update, weights) for batch in micro_batches)
    return next((i for i, finite in enumerate(fine) if not finite), None)


def _growth(now: Inspector, then: Inspector, start: int) -> list[str]:
    """Finite magnitudes far above those of the last good weights on the same batch, or of the embedding."""
    said: list[str] = []
    passes = list(zip(now.magnitudes(), then.magnitudes(), strict=True))
    pairs = [(p, a, b) for one, other in passes for (p, a), (_, b) in zip(one, other, strict=True)]
    ratios = [(a / b, place) for place, a, b in pairs if math.isfinite(a) and math.isfinite(b) and b > 0]
    if ratios and (most := max(ratios, key=lambda each: each[0]))[0] >= GROWN:
        said.append(f"{most[1]}: {most[0]:.2g} times as large as with the weights after update {start:,}")
    for met in now.magnitudes():
        finite = [(value, place) for place, value in met if math.isfinite(value)]
        if (
            finite
            and finite[0][0] > 0
            and (most := max(finite, key=lambda each: each[0]))[0] >= (STEEP * finite[0][0])
        ):
            said.append(f"{most[1]}: {most[0] / finite[0][0]:.2g} times as large as the embedding")
            break
    return said


def _try_others(
    trainer: Trainer,
    updates: Iterator[list[Any]],
    broken: int,
    weights: Mapping[str, Tensor],
    found: Findings,
) -> None:
    """With the same weights: are the batches that follow finite?"""
    others = [next(updates) for _ in range(OTHERS)]
    fine = sum(_finite(trainer, batches, broken, weights) for batches in others)
    found.notes.append(f"with the same weights {fine} of the {OTHERS} updates that follow are finite")
    if fine == OTHERS:
        found.kind = DATA


def _afterwards(
    trainer: Trainer,
    micro_batches: Sequence[Any],
    broken: int,
    good: Mapping[str, Tensor],
    start: int,
    poisoned: list[Place],
    found: Findings,
) -> None:
    """The passes of the bad update are finite: are its new weights, and what they make of the same batch?"""
    trainer.step(micro_batches)
    if bad := not_finite(trainer.model):
        found.replayed = {**(found.replayed or {}), "same": True}
        found.first = {"pass": "update", **bad[0].as_dict(), "words": f"the new weights of {bad[0]}"}
        found.evidence.append("finite gradients, and an update beyond the largest number")
        return
    weights = copied(trainer.model)
    inspector, loss = _inspect(trainer, micro_batches, broken, weights)
    _, first = _first(inspector, loss)
    grown = _growth(inspector, _inspect(trainer, micro_batches, broken, good)[0], start)
    low = trainer.passes.dtype != torch.float32
    if first is not None:
        found.replayed = {**(found.replayed or {}), "same": True}
        found.first = {**first, "words": f"{first['words']}, with the new weights"}
        if low and _finite(trainer, micro_batches, broken, weights, torch.float32):
            found.kind = OVERFLOW
        elif not grown:
            grown = ["finite gradients, and an update after which the same batch is not finite"]
    elif grown:
        found.notes.append("the new weights are finite, and so is what they make of this batch")
    else:
        found.notes.append("run again, the update was finite: what broke it is not in weights and batch")
        _poisoned(poisoned, found)
    found.evidence += grown


def _poisoned(places: list[Place], found: Findings) -> None:
    """All there is without a replay: which weights are not finite now."""
    if places:
        found.first = {"pass": "weights", **places[0].as_dict(), "words": f"the weights of {places[0]}"}
        found.notes.append(
            f"seen afterwards only: {len(places)} places of the model had weights that were not finite"
        )

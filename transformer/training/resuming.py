"""A trainer's state: what it is, how it is kept, and how it is taken up, exactly or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.errors import CheckpointError
from .checkpoint import PARTIAL
from .fingerprint import SHOWN, lines_of, state_hash
from .manifest import file_digest
from .moments import fitting
from .passes import copied
from .progress import Progress
from .states import (
    PREVIOUS,
    Saved,
    adopt,
    find_training,
    intact,
    load_training,
    read_training,
    require_same,
    save_training,
)

if TYPE_CHECKING:
    from .trainer import Trainer


def current(trainer: Trainer) -> dict[str, Any]:
    """All that a resumed run must know beside the weights: plain values and tensors, whole. Collective."""
    return {
        "fixed": trainer.fixed,
        "changeable": trainer.config.changeable(),
        "machine": machine(trainer),
        "optimizer": trainer.layout.optimizer_state(trainer.optimizer),
        "schedule": trainer.schedule.state_dict(),
        "progress": trainer.progress.state_dict(),
        "window": trainer.window.state_dict(),
    }


def machine(trainer: Trainer) -> dict[str, str]:
    """What else decides the last bits of a number."""
    return {
        "torch": str(torch.__version__),
        "device": trainer.device.type,
        "products": str(trainer.passes.dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "processes": str(trainer.ranks.size),
    }


def save(trainer: Trainer) -> None:
    """Make checkpoints/last this state, and say its hash. All ranks gather it, the chief writes it."""
    weights, state = trainer.layout.weights(), current(trainer)
    trainer.ranks.decide(lambda: _write(trainer, weights, state))
    trainer.saved = trainer.progress.update
    if _is_due(trainer, trainer.saved):
        trainer.initial = None


def _write(trainer: Trainer, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    progress, logbook = trainer.progress, trainer.logbook
    logged = logbook.position()
    measured = file_digest(logbook.metrics_path, logged) if logged else None
    whole = {**state, "logged": logged, "measured": measured}
    digest = save_training(trainer.shelf.last, weights, whole, progress.update, trainer.shelf.metadata)
    every, update = trainer.config.validate_every, progress.update
    pending = ", before its validation" if update % every == 0 and progress.validated < update else ""
    logbook.say(f"state {digest[:SHOWN]} after update {update:,}{pending}")


def resume(trainer: Trainer) -> None:
    """Take up the last good state, verified before and after; say what it is and what has changed since.

    CheckpointError if there is none, if something is different that may not be, or if the trainer has not
    come to be in the state that was saved. Until then nothing on the disk is changed. Collective: the chief
    decides which state that is, and changes the disk when all ranks have taken it up.
    """
    ranks, say = trainer.ranks, trainer.logbook.say
    saved = _found(trainer)
    if ranks.size == 1 and not any(
        _is_due(trainer, update) for update in range(1, saved.state["update"] + 1)
    ):
        trainer.initial = copied(trainer.model), deepcopy(current(trainer))  # a straight run had them still
    with ranks.chief_first(), intact(saved.directory):
        restore(trainer, saved.weights, saved.state)
        trainer.logged = int(saved.state["logged"])
    for fault in saved.faults:
        say(f"cannot be used: {fault}")
    if saved.faults:
        update = trainer.progress.update
        say(f"going on from {saved.directory}, update {update:,}: what came after it is done anew")
    weights, now = trainer.layout.weights(), current(trainer)
    ranks.decide(lambda: _verify(trainer, saved, weights, now))
    trainer.saved = trainer.progress.update
    ranks.decide(lambda: _settle(trainer, saved))


def _found(trainer: Trainer) -> Saved:
    """The last good state that this run may go on from: the chief's choice, which the others read, too."""
    found: list[Saved] = []

    def find() -> list[str | None]:
        saved = find_training(trainer.shelf.last)
        with intact(saved.directory):
            require_same(saved.state["fixed"], trainer.fixed, saved.directory)
        found.append(saved)
        return [saved.directory.name, saved.hash]

    name, digest = trainer.ranks.decide(find)
    if found:
        return found[0]
    saved = read_training(trainer.shelf.last.with_name(str(name)))
    if saved.hash != digest:
        raise CheckpointError(
            f"{saved.directory}: rank {trainer.ranks.rank} reads another state than rank 0;"
            " all processes must see the same run directory"
        )
    return saved


def _settle(trainer: Trainer, saved: Saved) -> None:
    """Make what was taken up checkpoints/last, tidy up, and say what is different."""
    shelf, say = trainer.shelf, trainer.logbook.say
    adopt(saved, shelf.last)
    _tidy(trainer)
    say(f"resumed after update {trainer.progress.update:,}, {_named(saved)}")
    for note in [*_notes(trainer, saved.state), *shelf.reopen(trainer.progress)]:
        say(f"note: {note}")
    shelf.prune(trainer.progress)  # what a save that was killed had still to remove


def rewind(trainer: Trainer, before: int) -> int:
    """Take up the state from which update `before` is run again; its update. Files stay.

    It is the one that the run would have without an interruption: of the two on the disk the newer one that
    is due by the configuration, and before there is one the initial state. Else it is the last one.
    """
    restore(trainer, *(trainer.initial or _due_before(trainer, before) or load_training(trainer.shelf.last)))
    return trainer.progress.update


def _due_before(trainer: Trainer, before: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    last = trainer.shelf.last
    for place in (last, last.with_name(PREVIOUS)):
        with suppress(CheckpointError):  # it is not there, or damaged: then another will do
            saved = read_training(place)
            if saved.state["update"] < before and _is_due(trainer, saved.state["update"]):
                return saved.weights, saved.state
    return None


def _is_due(trainer: Trainer, update: int) -> bool:
    """Is a state of this update saved by the configuration, and not by the end of a run or a signal?"""
    intervals = trainer.config.validate_every, trainer.config.save_every
    return any(every > 0 and update % every == 0 for every in intervals)


def restore(trainer: Trainer, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Put a trainer into a state that `current` described."""
    trainer.layout.load(weights, str(trainer.shelf.last))
    trainer.layout.load_optimizer(trainer.optimizer, state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.progress = Progress.from_state(state["progress"])
    trainer.window.load_state_dict(state["window"])


def _verify(trainer: Trainer, saved: Saved, weights: Mapping[str, Tensor], now: Mapping[str, Any]) -> None:
    """CheckpointError if the trainer, as it is `now`, has another hash than what was saved.

    Another version of torch may keep other things in an optimizer: that is said, and what was saved holds.
    """
    if saved.hash is None:
        return
    found = state_hash(weights, now)
    if found == saved.hash:
        return
    expected = {**saved.state, "optimizer": fitting(saved.state["optimizer"], trainer.optimizer)}
    if found == state_hash(saved.weights, expected):  # in another layout
        return
    before = set(lines_of(saved.weights, expected))
    wrong = next((line for line in lines_of(weights, now) if line not in before), "something is missing")
    message = f"taken up, the state of {saved.directory} is another: {wrong[:100]}"
    written = saved.state.get("machine", {}).get("torch")
    if written == torch.__version__:
        raise CheckpointError(
            f"{message}. Either something else has written it, or this is a fault of the toolkit:"
            " then please report it"
        )
    trainer.logbook.say(f"note: {message}; it was written with torch {written}, this is {torch.__version__}")


def _named(saved: Saved) -> str:
    return f"state {saved.hash[:SHOWN]}" if saved.hash else "written by an older version, without checksums"


def _notes(trainer: Trainer, state: Mapping[str, Any]) -> Iterator[str]:
    """What is different from when the state was saved, and what is damaged and not needed to go on."""
    config = trainer.config.changeable()
    for name, before in state.get("changeable", {}).items():
        if name in config and config[name] != before:
            yield f"{name} was {before} until here, and is {config[name]} from here on"
    here = machine(trainer)
    for name, before in state.get("machine", {}).items():
        if name in here and here[name] != before:
            yield (
                f"{name} was {before} until here, and is {here[name]} from here on:"
                " the last bits of the numbers may not be the straight run's"
            )
    metrics, measured = trainer.logbook.metrics_path, state.get("measured")
    if measured is not None and (
        not metrics.is_file()
        or metrics.stat().st_size < trainer.logged
        or file_digest(metrics, trainer.logged) != measured
    ):
        yield (
            f"{metrics} is not what was written until here: cut short, edited or damaged. Lines that cannot"
            " be read are not used; weights do not hang on them"
        )


def _tidy(trainer: Trainer) -> None:
    """Remove what writes that were killed have left."""
    shelf = trainer.shelf
    for pattern in ("update-*", "best.*"):
        for path in shelf.checkpoints.glob(pattern + PARTIAL):
            path.unlink()
    for path in trainer.run_dir.glob("*" + PARTIAL):
        with suppress(OSError):
            path.unlink()

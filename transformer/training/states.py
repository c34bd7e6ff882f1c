"""A training on disk: weights, all else that a resumed run must know, and which copy of it is whole.

checkpoints/last holds the newest state and checkpoints/previous the one before it: each is a directory of
weights, trainer.pt (read with `weights_only=True`) and a manifest with the checksum of both. A new one is
complete on the disk before anything is renamed.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.disk import clear, regular, sync_directory
from ..core.errors import CheckpointError
from ..core.holding import require_held
from ..core.rundir import WEIGHTS
from .checkpoint import beside, others, read_weights, write_atomically, write_weights
from .fingerprint import SHOWN, leaves, state_hash
from .manifest import MANIFEST, verified, write_manifest
from .unfolding import require_bounded

STATE = "trainer.pt"
HASH = "hash"
PREVIOUS, DAMAGED, FRESH = "previous", "damaged", ".new"


@dataclass(frozen=True)
class Saved:
    """A state that was read whole. `hash` is None if an older version wrote it, without checksums.

    `faults` tells what is wrong with the newer ones that were tried before it.
    """

    directory: Path
    weights: dict[str, Tensor]
    state: dict[str, Any]
    hash: str | None
    faults: tuple[str, ...] = ()


def save_training(
    directory: Path,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    update: int,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Make `directory` the state of one update, and what it held before `previous`; the state's hash.

    `metadata` goes into the header of the weights, which may be used without the rest.
    The new one is complete on disk before the old one moves: after a crash or a failure at any point,
    `find_training` finds one that is whole.
    """
    new, previous = beside(directory, FRESH), directory.with_name(PREVIOUS)
    digest = state_hash(weights, state)
    require_held(directory)
    try:
        clear(new)
        new.mkdir(parents=True)
        write_weights(new / WEIGHTS, weights, {**(metadata or {}), "update": str(update)})
        whole = {"update": update, HASH: digest, **state}
        write_atomically(new / STATE, lambda temporary: torch.save(whole, temporary))
        write_manifest(new, {"update": update, "state": digest, "torch": str(torch.__version__)})
        sync_directory(new.parent)
        sync_directory(new.parent.parent)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)  # a full disk needs the room
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{directory}: cannot be written ({error.strerror}); what was there before is kept"
            ) from error
        raise
    require_held(directory)
    try:
        if os.path.lexists(directory):
            clear(previous)
            directory.rename(previous)
        new.rename(directory)
        sync_directory(directory.parent)
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot be replaced ({error.strerror}); {new} is whole"
        ) from error
    return digest


def load_training(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, state) as `find_training` finds them."""
    saved = find_training(directory)
    return saved.weights, saved.state


def find_training(directory: Path) -> Saved:
    """The last good state: `directory`, else what was to replace it, else the one before it.

    Nothing on the disk is changed. CheckpointError, with what is wrong with each, when none is whole.
    """
    faults: list[str] = []
    for place in (directory, beside(directory, FRESH), directory.with_name(PREVIOUS)):
        if place.is_dir():
            try:
                return read_training(place, tuple(faults))
            except CheckpointError as error:
                faults.append(str(error))
        elif place == directory:
            faults.append(f"{place}: no such directory")
    path = directory / STATE
    if len(faults) == 1 and not directory.is_dir():
        lost = "there is nothing to resume; put it back (is its disk there?), or begin anew with --overwrite"
        raise CheckpointError(f"{path}: no such file; {lost}{others(path)}")
    raise CheckpointError(
        f"nothing can be resumed: {'; '.join(faults)}; put back a copy of one of them, or train anew"
        f" in another directory{others(path)}"
    )


def read_training(directory: Path, faults: tuple[str, ...] = ()) -> Saved:
    """What `save_training` wrote to one directory, every checksum verified, or CheckpointError."""
    manifest, path = verified(directory), directory / STATE
    state = read_state(path)
    weights, metadata = read_weights(directory / WEIGHTS)
    if metadata.get("update") != str(state["update"]):
        raise CheckpointError(
            f"{directory}: {WEIGHTS} is of update {metadata.get('update')}, {STATE} of {state['update']};"
            " the two were not saved together"
        )
    digest = state.pop(HASH, None)
    known = {digest, state_hash(weights, state)} if digest else set()
    if manifest is not None:
        known.add(manifest.get("state"))
    if len(known) > 1:
        hashes = ", ".join(sorted(str(each)[:SHOWN] for each in known))
        raise CheckpointError(
            f"{directory}: damaged (its content, {STATE} and {MANIFEST} disagree: {hashes})"
        )
    return Saved(directory, weights, state, digest, faults)


def read_state(path: Path) -> dict[str, Any]:
    """trainer.pt, every part of its kind and no larger than the file lets expect, or CheckpointError."""
    try:
        with open(path, "rb", opener=regular) as file:
            require_bounded(torch._C.PyTorchFileReader(file).get_record("data.pkl"))
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except pickle.UnpicklingError:  # torch's words tell how to have the code in it run
        raise CheckpointError(
            f"{path}: holds objects other than plain values, or is damaged; it was not loaded"
        ) from None
    except Exception as error:  # what damaged bytes raise is nowhere promised
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise CheckpointError(f"{path}: cut short or damaged ({reason})") from error
    if not isinstance(state, dict) or "update" not in state:
        raise CheckpointError(f"{path}: not a trainer state of this toolkit")
    _require_form(state, path)
    return state


def _require_form(state: Mapping[str, Any], path: Path) -> None:
    """CheckpointError if a part is there that is nothing of its kind; older versions have fewer parts.

    Tensors are moments and the window's sums, plain ones; all else is numbers, texts and their containers.
    """
    sections = ("fixed", "changeable", "machine", "optimizer", "schedule", "progress", "window")
    wrong = [name for name in sections if not isinstance(state.get(name, {}), dict)]
    wrong += [name for name in (HASH, "measured") if not isinstance(state.get(name), str | None)]
    wrong += [
        name for name in ("update", "logged") if type(state.get(name, 0)) is not int or state.get(name, 0) < 0
    ]
    wrong += [
        "/".join(place)
        for place, value in leaves(state)
        if isinstance(value, Tensor) and not _plain(place, value)
    ]
    if wrong:
        raise CheckpointError(f"{path}: not a trainer state of this toolkit: {', '.join(wrong)}")


def _plain(place: tuple[str, ...], tensor: Tensor) -> bool:
    stored = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.is_contiguous()
    return stored and place[0] in ("optimizer", "window")


def is_whole(directory: Path) -> bool:
    """Does a directory hold a whole state?"""
    try:
        read_training(directory)
    except CheckpointError:
        return False
    return True


def adopt(saved: Saved, directory: Path) -> None:
    """Make the state that was found `directory`; what was there and is damaged stays beside it."""
    if saved.directory == directory:
        return
    damaged = directory.with_name(DAMAGED)
    try:
        if os.path.lexists(directory):
            clear(damaged)
            directory.rename(damaged)
        saved.directory.rename(directory)
        sync_directory(directory.parent)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be replaced ({error.strerror})") from error


@contextmanager
def intact(directory: Path) -> Iterator[None]:
    """A context in which a trainer takes its state from `directory`; CheckpointError if some is missing."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        path = directory / STATE
        raise CheckpointError(f"{path}: not a whole trainer state ({error!r}){others(path)}") from error


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], source: Path) -> None:
    """CheckpointError for the first thing that a resumed run may not change and did.

    What an older version did not write down is not compared.
    """
    for name, value in now.items():
        if name in before and before[name] != value:
            raise CheckpointError(
                f"{source}: written with {name} = {_brief(before[name])}, now it is {_brief(value)};"
                " a run can only go on with what it was started with"
            )


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 64 else f"{text[:12]}..."

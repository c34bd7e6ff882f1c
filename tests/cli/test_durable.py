"""What has its name has it for good: contents are synced before they are renamed, and names after that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from transformer.cli.result import write_text
from transformer.cli.room import room, settle
from transformer.core.disk import clear
from transformer.data.cache import fetch
from transformer.data.report import SplitReport
from transformer.data.tokenizer import Tokenizer
from transformer.data.vocabulary import _install
from transformer.data.writing import CorpusWriter
from transformer.export.directory import written_whole
from transformer.training.states import PREVIOUS, adopt, find_training, save_training

Event = tuple[str, Path]  # what was done, to which place


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Every sync and rename, in order."""
    done: list[Event] = []
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    for name in ("rename", "replace"):
        change = getattr(os, name)

        def renamed(old: Path, new: Path, change: Callable[[Path, Path], None] = change) -> None:
            done.extend([("from", Path(old)), ("to", Path(new))])
            change(old, new)

        monkeypatch.setattr(os, name, renamed)
    return done


def tokenizer(tmp_path: Path) -> None:
    made = Tokenizer.__new__(Tokenizer)
    made.model = b"pieces"
    made.save(tmp_path / "joint.model")


def stamp(tmp_path: Path) -> None:
    class Model:
        digest = "0"

        def save(self, path: Path) -> None: ...

    _install((Model(), Model()), tmp_path / "tokenizer", {})  # type: ignore[arg-type]


def encoded(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path, (9, 9), False, SplitReport("train")) as writer:
        writer.commit()


def cached(tmp_path: Path) -> None:
    fetch(tmp_path, "key", lambda folder: (folder / "ids").touch(), lambda entry: True)


def served(tmp_path: Path) -> None:
    for _ in range(2):
        with written_whole(tmp_path / "export") as folder:
            (folder / "model.bin").touch()


def text(tmp_path: Path) -> None:
    write_text(tmp_path / "result.json", "{}")


def overwritten(tmp_path: Path) -> None:
    for name in ("config.yaml", "model.safetensors"):
        (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt), room(tmp_path, overwrite=True):
        raise KeyboardInterrupt
    with room(tmp_path, overwrite=True):
        settle(tmp_path)


def saved(last: Path, update: int) -> None:
    save_training(last, {"vector": torch.zeros(2)}, {"value": update}, update)


def adopted(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last"
    for update in (1, 2):
        saved(last, update)
    (last / "trainer.pt").write_bytes(b"damaged")
    adopt(find_training(last), last)


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads what is synced from /proc")


@needs_proc
@pytest.mark.parametrize("write", [tokenizer, stamp, encoded, cached, served, text, overwritten, adopted])
def test_contents_are_synced_before_a_rename_and_the_directory_after_it(
    write: Callable[[Path], None], tmp_path: Path, events: list[Event]
) -> None:
    write(tmp_path)
    assert events
    for i, (what, place) in enumerate(events):
        if what == "from":
            target = events[i + 1][1]
            if target.name == "old":  # an export that is about to be deleted
                continue
            assert ("sync", target.parent) in events[i:], f"the name {target} may be lost"
            if write not in (overwritten, adopted):  # they move what is there for good
                assert ("sync", place) in events[:i], f"{target} may be empty"


@needs_proc
def test_a_state_is_synced_before_it_is_renamed_and_its_new_names_after_that(
    tmp_path: Path, events: list[Event]
) -> None:
    """A state that lost its name with the machine would take the one before it along, which has moved."""
    last = tmp_path / "checkpoints" / "last"
    new, previous = last.with_name("last.new"), last.with_name(PREVIOUS)
    for update in (1, 2):
        events.clear()
        saved(last, update)
        renames = [("from", new), ("to", last)]
        if update == 2:
            renames = [("from", last), ("to", previous), *renames]
        named = [("sync", new.parent), ("sync", new.parent.parent), *renames, ("sync", last.parent)]
        assert events[-len(named) :] == named
        written = [place.name for what, place in events[: -len(named)] if what == "to"]
        assert sorted(written) == ["manifest.json", "model.safetensors", "trainer.pt"]
        for i, (what, place) in enumerate(events[: -len(named)]):
            if what == "to":
                assert ("sync", events[i - 1][1]) in events[:i], f"{place} may be empty"
                assert ("sync", new) in events[i : -len(named)], f"the name {place} may be lost"


def test_whatever_has_a_name_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("folder", "file", "link", "nothing"):
        clear(tmp_path / name)
    assert os.listdir(tmp_path) == ["kept"]
    shutil.rmtree(tmp_path)

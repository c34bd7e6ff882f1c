"""A training's state on disk: never half written, known by its checksums, the last good one found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_places import as_state

from transformer.core.disk import clear
from transformer.core.errors import CheckpointError
from transformer.training import states
from transformer.training.checkpoint import write_weights
from transformer.training.fingerprint import state_hash
from transformer.training.manifest import verified
from transformer.training.states import adopt, find_training, load_training, save_training


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def weights_at(update: int) -> dict[str, torch.Tensor]:
    return {"vector": torch.full((3,), float(update)), "count": torch.tensor(update)}


def state_at(directory: Path, update: int) -> None:
    save_training(directory, weights_at(update), {"value": [update]}, update)


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """checkpoints/last of update 2, and checkpoints/previous of update 1."""
    directory = tmp_path / "checkpoints" / "last"
    state_at(directory, 1)
    state_at(directory, 2)
    return directory


def test_a_state_comes_back_the_newest_wins_and_the_one_before_it_is_kept(last: Path) -> None:
    weights, state = load_training(last)
    assert state == {"update": 2, "value": [2]}
    assert weights["vector"].tolist() == [2.0, 2.0, 2.0]
    assert sorted(os.listdir(last.parent)) == ["last", "previous"]
    assert find_training(last.with_name("previous")).state["update"] == 1


@pytest.mark.parametrize("renames", range(4))
def test_a_crash_at_any_rename_leaves_a_whole_state(
    renames: int, last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first, between the two, and after the second."""
    done = []
    rename = Path.rename

    def crash(self: Path, target: Path) -> Path:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(self)
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash)
        if renames < 2:
            with pytest.raises(KeyboardInterrupt):
                state_at(last, 3)
        else:
            state_at(last, 3)
    saved = find_training(last)
    assert saved.state["update"] == saved.weights["vector"][0] == (2 if renames == 0 else 3)
    adopt(saved, last)
    state_at(last, 4)
    assert [find_training(p).state["update"] for p in (last, last.with_name("previous"))] == [
        4,
        saved.state["update"],
    ]


FILES = ("trainer.pt", "model.safetensors", "manifest.json")


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "flipped":
        path.write_bytes(
            whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 4]) + whole[len(whole) // 2 + 1 :]
        )
    else:
        path.write_bytes(whole[: int(len(whole) * float(how))])


@pytest.mark.parametrize("how", ["0", "0.5", "0.99", "flipped", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_of_a_damaged_state_the_one_before_it_is_found(name: str, how: str, last: Path) -> None:
    damage(last / name, how)
    saved = find_training(last)
    if (name, how) == ("manifest.json", "missing"):  # the hash in trainer.pt vouches for the rest
        assert (saved.state["update"], saved.faults) == (2, ())
        return
    assert saved.directory == last.with_name("previous")
    assert (saved.state["update"], saved.weights["count"].item()) == (1, 1)
    assert len(saved.faults) == 1
    assert str(last / name) in saved.faults[0] or (name == "manifest.json" and str(last) in saved.faults[0])
    adopt(saved, last)
    assert find_training(last).state["update"] == 1
    assert (last.with_name("damaged")).is_dir()


def test_a_link_that_leads_nowhere_is_moved_aside(last: Path) -> None:
    for take_up in (lambda: adopt(find_training(last), last), lambda: state_at(last, 3)):
        shutil.rmtree(last)
        last.symlink_to("gone")
        take_up()
        assert not last.is_symlink()
        state_at(last, 2)
    assert last.with_name("damaged").is_symlink()


def test_every_byte_of_a_state_counts(last: Path) -> None:
    """A flip anywhere is found out, or the state read is the one written."""
    for name in FILES:
        whole = (last / name).read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 23)):
            (last / name).write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
            saved = find_training(last)
            assert saved.weights["count"] == saved.state["update"] == saved.state["value"][0]
            assert saved.state["update"] == (2 if saved.directory == last else 1)
        (last / name).write_bytes(whole)


def test_when_none_is_whole_the_message_names_each_fault_and_what_to_do(last: Path) -> None:
    for place in (last, last.with_name("previous")):
        damage(place / "trainer.pt", "0.5")
    write_weights(last.with_name("update-0000001.safetensors"), weights_at(1), {})
    with pytest.raises(
        CheckpointError, match=r"last/trainer.*previous/trainer.*put back a copy.*update-0000001"
    ):
        find_training(last)


def test_nothing_to_resume_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        find_training(tmp_path / "checkpoints" / "last")


def test_a_state_that_would_run_code_is_refused(last: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    shutil.rmtree(last.with_name("previous"))
    (last / "manifest.json").unlink()
    torch.save({"update": 2, "evil": Evil()}, last / "trainer.pt")
    with pytest.raises(CheckpointError, match=r"trainer\.pt: holds objects other than plain") as caught:
        find_training(last)
    assert "weights_only" not in str(caught.value), "no advice to have it run"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["damaged", "previous", "last.new"])
def test_a_file_with_the_name_of_a_state_is_in_nobodys_way(name: str, last: Path) -> None:
    shutil.rmtree(last.with_name("previous"))
    last.rename(last.with_name("kept"))
    state_at(last, 3)
    shutil.rmtree(last.with_name("previous"), ignore_errors=True)
    last.with_name("kept").rename(last.with_name("previous"))
    if name == "damaged":
        last.with_name(name).write_text("a file")
        damage(last / "trainer.pt", "flipped")
        adopt(find_training(last), last)
        assert find_training(last).state["update"] == 2
        return
    clear(last.with_name(name))
    last.with_name(name).write_text("a file")
    state_at(last, 4)
    assert find_training(last).state["update"] == 4


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", ".", "", "a/b", "a\\b", "a\0b"])
def test_a_manifest_names_files_of_its_directory_only(name: str, last: Path) -> None:
    path = last / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"manifest\.json: names|no such file"):
        verified(last)
    assert find_training(last).state["update"] == 1


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "3", "{}", '{"files": 3}', '{"files": {"a": {}}, "format": 1}', "[" * 99999),
        '{"files": {"a": {"bytes": 1e999, "sha256": ""}}, "format": 1}',
    ],
)
def test_a_manifest_that_is_none_is_damage(text: str, last: Path) -> None:
    (last / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
        verified(last)


def test_files_of_two_states_are_not_mixed(last: Path) -> None:
    for place in (last, last.with_name("previous")):
        (place / "manifest.json").unlink()
    os.replace(last.with_name("previous") / "model.safetensors", last / "model.safetensors")
    with pytest.raises(CheckpointError, match="not saved together"):
        find_training(last)


def test_a_state_of_an_older_version_is_read_without_checksums(last: Path) -> None:
    (last / "manifest.json").unlink()
    torch.save({"update": 2, "value": [2]}, last / "trainer.pt")
    saved = find_training(last)
    assert (saved.state["update"], saved.hash, saved.faults) == (2, None, ())


def test_a_disk_that_is_full_keeps_what_was_there_and_takes_no_room(
    last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_weights", "write_atomically", "write_manifest", "sync_directory"):
        with monkeypatch.context() as patched:
            patched.setattr(states, name, full)
            with pytest.raises(CheckpointError, match="No space left"):
                state_at(last, 3)
        assert sorted(os.listdir(last.parent)) == ["last", "previous"]
        assert find_training(last).state["update"] == 2


def test_the_hash_knows_every_bit_and_no_clock() -> None:
    weights = {"a": torch.tensor([0.0, 1.0]), "b": torch.zeros(0), "c": torch.tensor(3)}
    progress = {"update": 3, "best": (1.0, 2.0), "recent": [1, 2], "seconds": 1.0, "training_seconds": 1.0}
    moments = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}}
    state = {"progress": progress, "window": {"seconds": 2.0, "sums": torch.ones(2)}, "logged": 5}
    state |= {"optimizer": moments, "schedule": {"lowered": 0}}
    before = state_hash(weights, state)
    assert before == state_hash(dict(reversed(weights.items())), state)
    clocks = {**state, "progress": {**progress, "seconds": 9.0, "training_seconds": 7.0}, "logged": 9}
    clocks["window"] = {"seconds": 0.1, "sums": torch.ones(2)}
    assert state_hash(weights, clocks) == before
    others = [
        ({**weights, "a": torch.tensor([-0.0, 1.0])}, state),  # a bit, and equal to `==`
        ({**weights, "a": torch.tensor([[0.0, 1.0]])}, state),
        ({**weights, "a": torch.tensor([0.0, 1.0], dtype=torch.float64)}, state),
        ({**weights, "d": torch.tensor([0.0])}, state),
        (weights, {**state, "optimizer": {"state": {0: {**moments["state"][0], "step": torch.tensor(4.0)}}}}),
        (weights, {**state, "optimizer": {"state": {1: moments["state"][0]}}}),
        (weights, {**state, "schedule": {"lowered": 1}}),
        (weights, {**state, "progress": {**progress, "update": 4}}),
        (weights, {**state, "progress": {**progress, "best": (1.0, 2.0000000000000004)}}),
        (weights, {**state, "progress": {**progress, "recent": [1, 2, 3]}}),
        (weights, {**state, "window": {"seconds": 2.0, "sums": torch.tensor([1.0, 1.0 + 2**-23])}}),
    ]
    assert len({before, *(state_hash(*other) for other in others)}) == 1 + len(others)


@pytest.mark.parametrize("key", ["fixed", "optimizer", "schedule", "progress", "window", "logged"])
def test_a_state_without_one_of_its_parts_is_refused(key: str, workshop: Any) -> None:
    trainer = workshop.trainer(updates=1)
    trainer.fit()
    weights, state = load_training(trainer.shelf.last)
    whole = {name: value for name, value in state.items() if name != "update"}
    save_training(trainer.shelf.last, weights, whole, 1)
    workshop.trainer(updates=1).resume()
    save_training(trainer.shelf.last, weights, {n: v for n, v in whole.items() if n != key}, 1)
    with pytest.raises(CheckpointError, match=r"trainer\.pt: not a whole trainer state"):
        workshop.trainer(updates=1).resume()


ODD: list[tuple[tuple[str, ...], Any]] = [
    (("progress", "update"), -5),
    (("progress", "update"), 1.5),
    (("progress", "epoch"), 0),
    (("progress", "batch"), 10**30),
    (("progress", "recent"), ["../../../x"]),
    (("progress", "best"), "abc"),
    (("progress", "best_metrics"), "abc"),
    (("window", "sums"), torch.zeros(2)),
    (("window", "tokens"), "x"),
    (("window", "seconds"), None),
    (("progress", "seconds"), float("nan")),
    (("schedule",), {"best": "x"}),
    (("optimizer", "param_groups"), []),
    (("fixed", "train.lr"), torch.zeros(3)),
    (("changeable", "train.keep"), torch.zeros(3)),
    (("progress", "best_metrics"), {"nll": torch.zeros(2)}),
    (("window", "sums"), torch.zeros(6).to_sparse()),
    (("window", "sums"), torch.zeros(6, device="meta")),
    (("window", "sums"), torch.zeros(1).expand(6)),
    (("logged",), -7),
    (("fixed",), [1]),
    (("changeable",), [1]),
    (("machine",), "m"),
    (("measured",), 5),
]


@pytest.mark.parametrize(
    ("path", "value"), ODD, ids=[f"{i}-{'.'.join(path)}" for i, (path, _) in enumerate(ODD)]
)
def test_a_state_of_odd_values_is_refused_although_its_checksums_are_right(
    path: tuple[str, ...], value: Any, workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = workshop.trainer(updates=1)
    last.fit()
    weights, state = load_training(last.shelf.last)
    *parents, name = path
    section = state
    for parent in parents:
        section = section[parent]
    section[name] = value
    whole = {k: v for k, v in state.items() if k != "update"}
    monkeypatch.setattr(states, "state_hash", lambda *_: "0" * 64)  # the checksum is right whatever is in it
    save_training(last.shelf.last, weights, whole, 1)
    last.shelf.last.with_name("previous").rename(last.shelf.last.with_name("away"))
    with pytest.raises(CheckpointError, match=r"trainer\.pt: not a"):
        workshop.trainer(updates=1).resume()


def test_a_state_that_is_nested_too_deeply_is_refused(last: Path) -> None:
    """Python does not write such a one; others may."""
    lists = b"]" * 100_000 + b"a" * 99_999
    (last / "manifest.json").unlink()
    (last / "trainer.pt").write_bytes(as_state(b"\x80\x02" + lists + b"."))
    with pytest.raises(CheckpointError, match="nested too deeply"):
        states.read_training(last)

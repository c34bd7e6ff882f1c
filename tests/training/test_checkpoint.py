"""Weights files: exact, tied once, whole or refused; averages; training state that cannot be half written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from transformer.core.errors import CheckpointError
from transformer.training import checkpoint
from transformer.training.checkpoint import (
    average_checkpoints,
    load_model_weights,
    load_training,
    read_weights,
    save_training,
    write_weights,
)


class Tied(nn.Module):
    """Two names for one matrix, a vector, and a counter that must never be averaged."""

    def __init__(self, scale: float = 1.0, count: int = 0) -> None:
        super().__init__()
        self.first = nn.Parameter(scale * torch.arange(6.0).view(2, 3))
        self.second = self.first
        self.vector = nn.Parameter(torch.full((3,), scale))
        self.register_buffer("count", torch.tensor(count))


def test_weights_come_back_exactly_with_tied_ones_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path, Tied().state_dict(), {"update": "7"})
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["count", "first", "vector"]
    tensors, metadata = read_weights(path)
    assert metadata == {"update": "7"}
    assert tensors["first"] is tensors["second"]
    torch.testing.assert_close(tensors, dict(Tied().state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("tying", ["none", "source_target", "target_output", "all"])
def test_a_model_with_any_tying_survives_a_file(tying: str, workshop: Any, tmp_path: Path) -> None:
    model, other = workshop.model(tie_embeddings=tying), workshop.model(tie_embeddings=tying, seed=5)
    write_weights(tmp_path / "m.safetensors", model.state_dict(), {})
    load_model_weights(tmp_path / "m.safetensors", other)
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert other.parameter_count() == model.parameter_count()


def test_every_way_to_cut_a_weights_file_short_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path, Tied().state_dict(), {})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut short"):
            read_weights(path)


def test_weights_of_another_model_are_refused_by_the_tensors_names(workshop: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_weights(path, workshop.model(d_ff=32, norm="rms").state_dict(), {})
    with pytest.raises(CheckpointError) as caught:
        load_model_weights(path, workshop.model(norm="layer"))
    text = str(caught.value)
    assert str(path) in text
    assert "missing: " in text
    assert "norm.bias" in text
    assert "hidden.weight (32, 16), here (24, 16)" in text


def test_a_missing_file_names_the_weights_that_are_there(tmp_path: Path) -> None:
    other = tmp_path / "checkpoints" / "update-0000005.safetensors"
    write_weights(other, Tied().state_dict(), {})
    with pytest.raises(CheckpointError, match=r"no such file.*update-0000005"):
        read_weights(tmp_path / "model.safetensors")


def test_average_is_the_mean_and_leaves_counters_and_ties_alone(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, path in enumerate(paths):
        write_weights(path, Tied(scale=float(i), count=10 + i).state_dict(), {})
    averaged = average_checkpoints(paths)
    torch.testing.assert_close(averaged["first"], Tied(scale=1.0).first.detach())
    assert averaged["first"] is averaged["second"]
    assert averaged["first"].dtype == torch.float32
    assert averaged["count"] == 12
    assert set(averaged) == set(Tied().state_dict())


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_equal_checkpoints_average_to_themselves_exactly(count: int, workshop: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = workshop.model()
    write_weights(path, model.state_dict(), {})
    torch.testing.assert_close(average_checkpoints([path] * count), dict(model.state_dict()), rtol=0, atol=0)


def test_weights_of_different_models_are_not_averaged(workshop: Any, tmp_path: Path) -> None:
    write_weights(tmp_path / "a.safetensors", workshop.model().state_dict(), {})
    write_weights(tmp_path / "b.safetensors", workshop.model(d_ff=32).state_dict(), {})
    with pytest.raises(CheckpointError, match="another model"):
        average_checkpoints([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def test_a_failed_write_keeps_the_old_file_and_leaves_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path, Tied(1.0).state_dict(), {})

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        write_weights(path, Tied(2.0).state_dict(), {})
    assert read_weights(path)[0]["vector"].tolist() == [1.0, 1.0, 1.0]
    assert os.listdir(tmp_path) == ["model.safetensors"]


def state_at(directory: Path, update: int) -> None:
    save_training(directory, Tied(scale=float(update)).state_dict(), {"value": [update]}, update)


def test_training_state_comes_back_and_the_newest_wins(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last"
    state_at(last, 1)
    state_at(last, 2)
    weights, state = load_training(last)
    assert state == {"update": 2, "value": [2]}
    assert weights["vector"].tolist() == [2.0, 2.0, 2.0]
    assert os.listdir(last.parent) == ["last"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_crash_at_any_rename_leaves_a_whole_checkpoint(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = tmp_path / "checkpoints" / "last"
    state_at(last, 1)
    done = []
    rename = Path.rename

    def crash(self: Path, target: Path) -> Path:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(self)
        moved = rename(self, target)
        if len(done) == 2:
            raise KeyboardInterrupt
        return moved

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            state_at(last, 2)
    weights, state = load_training(last)
    assert state["update"] == weights["vector"][0] == (1 if renames == 0 else 2)
    state_at(last, 3)
    assert load_training(last)[1]["update"] == 3


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_trainer_state_cut_short_is_refused_and_names_what_is_left(keep: int, tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last"
    state_at(last, 1)
    write_weights(tmp_path / "checkpoints" / "update-0000001.safetensors", Tied().state_dict(), {})
    whole = (last / "trainer.pt").read_bytes()
    (last / "trainer.pt").write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=r"cut short or damaged.*update-0000001"):
        load_training(last)


def test_a_trainer_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    last = tmp_path / "last"
    state_at(last, 1)
    torch.save({"update": 1, "evil": Evil()}, last / "trainer.pt")
    with pytest.raises(CheckpointError, match=r"trainer\.pt"):
        load_training(last)
    assert not (tmp_path / "ran").exists()


def test_weights_and_state_of_different_updates_are_refused(tmp_path: Path) -> None:
    state_at(tmp_path / "a", 1)
    state_at(tmp_path / "b", 2)
    os.replace(tmp_path / "a" / "model.safetensors", tmp_path / "b" / "model.safetensors")
    with pytest.raises(CheckpointError, match="not saved together"):
        load_training(tmp_path / "b")


def test_nothing_to_resume_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        load_training(tmp_path / "checkpoints" / "last")


@pytest.mark.parametrize("tied", ["{", "[]", "3", '{"second": "gone"}', '{"second": ["first"]}'])
def test_a_broken_header_is_a_broken_file(tied: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"first": torch.ones(2)}, path, {"tied": tied})
    with pytest.raises(CheckpointError, match="not a weights file"):
        read_weights(path)


@pytest.mark.parametrize("key", ["fixed", "optimizer", "schedule", "progress", "window", "logged"])
def test_a_state_without_one_of_its_parts_is_refused(key: str, workshop: Any) -> None:
    trainer = workshop.trainer(updates=1)
    trainer.fit()
    path = trainer.shelf.last / "trainer.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if name != key}, path)
    with pytest.raises(CheckpointError, match=r"trainer\.pt: not a whole trainer state"):
        workshop.trainer(updates=1).resume()


def test_a_file_that_cannot_be_where_it_should_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_weights(tmp_path / "file" / "x" / "m.safetensors", Tied().state_dict(), {})

"""Weights files: exact, tied once, whole or refused; averages."""

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
    read_weights,
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


def test_every_byte_of_a_weights_file_counts(tmp_path: Path) -> None:
    """A flip anywhere is refused, or changes nothing that is read: no silent other weights."""
    path = tmp_path / "model.safetensors"
    write_weights(path, Tied().state_dict(), {"update": "7"})
    whole = path.read_bytes()
    before = read_weights(path)
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            after = read_weights(path)
        except CheckpointError:
            refused += 1
        else:
            assert after[1].items() >= before[1].items()  # the checksum's own name may be another
            torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert refused > 0.9 * len(whole)


def test_a_weights_file_of_another_program_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"first": torch.ones(2)}, path)
    assert read_weights(path)[0]["first"].tolist() == [1, 1]


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


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(
    dtype: torch.dtype, workshop: Any, tmp_path: Path
) -> None:
    path, model = tmp_path / "m.safetensors", workshop.model()
    write_weights(path, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, {})
    with pytest.raises(CheckpointError, match=rf"another kind of number: .*{dtype}, here torch.float32"):
        load_model_weights(path, model)


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


@pytest.mark.parametrize("tied", ["{", "[]", "3", '{"second": "gone"}', '{"second": ["first"]}'])
def test_a_broken_header_is_a_broken_file(tied: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"first": torch.ones(2)}, path, {"tied": tied})
    with pytest.raises(CheckpointError, match="not a weights file"):
        read_weights(path)


def test_a_file_that_cannot_be_where_it_should_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_weights(tmp_path / "file" / "x" / "m.safetensors", Tied().state_dict(), {})
    with pytest.raises(CheckpointError, match=r"too long.*what was there before is kept"):
        write_weights(tmp_path / ("m" * 300), Tied().state_dict(), {})
    with pytest.raises(CheckpointError, match=r"too long.*what was there before is kept"):
        checkpoint.write_atomically(tmp_path / ("m" * 300), Path.touch)


def test_a_directory_in_the_place_of_a_file_is_told_of_and_kept(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="a directory has this name: move it away"):
        write_weights(tmp_path / "m.safetensors", Tied().state_dict(), {})
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_who_may_read_a_file_is_as_of_every_new_one(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    write_weights(tmp_path / "m.safetensors", Tied().state_dict(), {})
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_where_modes_cannot_be_changed_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    write_weights(tmp_path / "m.safetensors", Tied(2.0).state_dict(), {})
    assert read_weights(tmp_path / "m.safetensors")[0]["vector"].tolist() == [2.0, 2.0, 2.0]

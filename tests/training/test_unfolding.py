"""A pickle that refers to what it holds is bounded before anything walks through it."""

from __future__ import annotations

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_places import as_state, laughing

from transformer.core.errors import CheckpointError
from transformer.training.manifest import MANIFEST
from transformer.training.states import find_training, read_state, read_training, save_training
from transformer.training.unfolding import DEEPEST, require_bounded

UNFOLDS = "unfolds to far more than it holds"


def pickled(value: Any) -> bytes:
    """As torch pickles it."""
    return pickle.dumps(value, 2)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize("name", laughing())
def test_a_state_that_unfolds_without_bound_is_damaged_and_the_one_before_it_is_taken(
    name: str, tmp_path: Path
) -> None:
    last = tmp_path / "checkpoints" / "last"
    for update in (1, 2):
        save_training(last, {"w": torch.ones(2)}, {"progress": {}}, update)
    (last / MANIFEST).unlink()  # as an older version left it
    (last / "trainer.pt").write_bytes(as_state(laughing()[name]))
    with pytest.raises(CheckpointError, match=UNFOLDS):
        read_training(last)
    saved = find_training(last)
    assert (saved.state["update"], len(saved.faults)) == (1, 1)
    shutil.rmtree(last.with_name("previous"))
    with pytest.raises(CheckpointError, match=f"{UNFOLDS}.*put back a copy"):
        find_training(last)


def test_what_an_optimizer_shares_is_no_fault(tmp_path: Path) -> None:
    """Groups with one tuple of betas, tensors under two names, empty containers, OrderedDicts."""
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(300)]
    optimizer = torch.optim.AdamW([{"params": [each]} for each in parameters], betas=(0.9, 0.98))
    for each in parameters:
        each.grad = torch.ones(3)
    optimizer.step()
    state = {"update": 3, "optimizer": {**optimizer.state_dict(), "again": optimizer.state_dict()}}
    state["progress"] = {"a" * 100: [1] * 5000, "empty": [(), {}, [], set(), None, True, -1, 1.5, 1 << 70]}
    groups = optimizer.state_dict()["param_groups"]
    assert groups[0]["betas"] is groups[1]["betas"]
    torch.save(state, tmp_path / "trainer.pt")
    assert read_state(tmp_path / "trainer.pt")["update"] == 3


def test_a_long_key_counts_for_all_that_it_names() -> None:
    require_bounded(pickled({"k" * 100: [1] * 10_000}))
    with pytest.raises(ValueError, match=UNFOLDS):
        require_bounded(pickled({"k" * 100_000: [1] * 10_000}))


def test_a_long_text_counts_wherever_it_is() -> None:
    require_bounded(pickled(["t" * 100_000]))
    text = "t" * 100_000
    with pytest.raises(ValueError, match=UNFOLDS):
        require_bounded(pickled([text] * 10_000))


def test_containers_lie_within_each_other_so_deep_and_no_deeper() -> None:
    require_bounded(pickled(nested(DEEPEST + 1)))
    with pytest.raises(ValueError, match="nested too deeply"):
        require_bounded(pickled(nested(DEEPEST + 2)))


def test_what_is_held_twice_may_not_grow_afterwards() -> None:
    """Lists that are filled from the outermost inwards would be counted while they are empty."""
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="changes what it refers to"):
        require_bounded(pickled(circle))


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"\x80\x02(", b"\x80\x02t.", b"\x80\x02h\x00.", b"x"])
def test_a_damaged_pickle_is_an_error_that_is_told(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "trainer.pt"
    file.write_bytes(as_state(content))
    with pytest.raises(CheckpointError, match=f"{file}: "):
        read_state(file)


def test_an_operation_that_plain_values_need_not_is_refused() -> None:
    stream = io.BytesIO()
    pickle.Pickler(stream, 4).dump([1])
    with pytest.raises(ValueError, match="none of plain values"):
        require_bounded(stream.getvalue())

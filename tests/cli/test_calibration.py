"""Runs whose initial values hang on a batch: set once, on the first training batch of a new run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from transformer import Transformer
from transformer.cli.train import main as train
from transformer.training.checkpoint import read_weights

PROFILED = ["--placement", "admin", "--set", "model.placement_options.omega=profiled"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sites each call of `calibrate` has set."""
    made: list[int] = []
    calibrate = Transformer.calibrate

    def counted(self: Transformer, *arguments: Any, **named: Any) -> int:
        made.append(calibrate(self, *arguments, **named))
        return made[-1]

    monkeypatch.setattr(Transformer, "calibrate", counted)
    return made


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_weights(run / "checkpoints" / "last" / "model.safetensors")[0]


def test_a_new_run_is_calibrated_once_and_a_resumed_one_goes_on_with_it(
    config: str, tmp_path: Path, calls: list[int]
) -> None:
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    assert train([config, "--run-dir", str(straight), *PROFILED]) == 0
    assert calls == [5]
    assert train([config, "--run-dir", str(cut), *PROFILED, "--set", "train.updates=5"]) == 0
    said = (cut / "log.txt").read_text()
    assert "5 residual connections set by the first training batch" in said
    assert train(["--resume", str(cut), "--set", "train.updates=10"]) == 0
    assert calls == [5, 5, 5]  # a run that dies is examined from its initial values: these are its own again
    assert (cut / "log.txt").read_text().count("first training batch") == 1
    one, other = weights(straight), weights(cut)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_was_killed_before_it_saved_anything_is_calibrated_again(
    config: str, tmp_path: Path, calls: list[int]
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert train([config, "--run-dir", str(whole), *PROFILED]) == 0
    shutil.copytree(whole, part)
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(part / name)
    for name in ("model.safetensors", "result.json"):
        (part / name).unlink()
    lines = (part / "log.txt").read_text().splitlines(keepends=True)
    (part / "log.txt").write_text("".join(line for line in lines if "  state " not in line))
    assert train(["--resume", str(part)]) == 0
    assert calls == [5, 5]
    one, other = weights(whole), weights(part)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_without_such_values_says_nothing(run: Path) -> None:
    assert "first training batch" not in (run / "log.txt").read_text()

"""benchmarks/levers.py: with a lever off, the training is the same, only slower."""

from __future__ import annotations

import runpy
from itertools import islice
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
LEVERS = runpy.run_path(str(ROOT / "benchmarks" / "levers.py"))


@pytest.fixture
def trainer(tmp_path: Path) -> object:
    return LEVERS["trainer_of"]("tiny", tmp_path, ROOT / "configs" / "demo.yaml", 1)


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_the_training_has_the_precision_that_was_asked_for(precision: str, tmp_path: Path) -> None:
    trainer = LEVERS["trainer_of"]("tiny", tmp_path, ROOT / "configs" / "demo.yaml", 1, precision)
    assert trainer.config.precision == precision


def test_every_lever_is_measured(trainer: object) -> None:
    rows = [LEVERS["row"](*found) for found in LEVERS["measure"](trainer, updates=1, rounds=1)]
    assert len(rows) == len(LEVERS["LEVERS"])  # one more, and one that does nothing in bf16
    assert all(row.count("|") == 6 and "nan" not in row for row in rows)


@pytest.mark.parametrize("name", LEVERS["LEVERS"])
def test_off_it_computes_the_same(name: str, trainer: object) -> None:
    model, passes = trainer.model, trainer.passes  # type: ignore[attr-defined]
    model.eval()  # dropout draws other numbers by design
    batches = list(islice(trainer.stream.epoch(1), 1))  # type: ignore[attr-defined]
    _, loss, nll = passes.run(batches, 1)
    gradient = model.output_weight.grad.clone()
    model.zero_grad()
    with LEVERS["LEVERS"][name][1](trainer):
        _, other_loss, other_nll = passes.run(batches, 1)
    torch.testing.assert_close(
        torch.stack([loss, nll]), torch.stack([other_loss, other_nll]), rtol=2e-3, atol=0
    )
    difference = (model.output_weight.grad - gradient).norm() / gradient.norm()
    assert difference < 0.02


def test_pairs_in_random_order_are_the_same_pairs(trainer: object) -> None:
    batches = list(islice(trainer.stream.epoch(1), 3))  # type: ignore[attr-defined]
    other = LEVERS["in_random_order"](batches, 256)
    assert sum(batch.target_tokens for batch in other) == sum(batch.target_tokens for batch in batches)
    assert max(batch.target_out.numel() for batch in other) <= 256

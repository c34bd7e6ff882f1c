"""Trainer.step is one exact update; Trainer.fit ends, measures, keeps and refuses as it says."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from transformer.core.errors import CheckpointError, ConfigError
from transformer.core.special import PAD
from transformer.training.checkpoint import average_checkpoints, read_weights


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_one_batch_of_eight_equals_two_of_four_and_eight_of_one(
    dtype: torch.dtype, tolerance: float, workshop: Any
) -> None:
    batch = workshop.batch(0, rows=8)
    results = []
    for parts in (1, 2, 8):
        size = 8 // parts
        model = workshop.model(dropout=0.0).to(dtype)
        trainer = workshop.trainer(str(parts), model=model, optimizer="sgd", lr=0.1, warmup=0, clip=0)
        for _ in range(3):
            trainer.step([batch.rows(slice(i * size, (i + 1) * size)) for i in range(parts)])
        results.append((dict(model.state_dict()), trainer.window.read()["loss"]))
    for other in results[1:]:
        torch.testing.assert_close(other[0], results[0][0], rtol=tolerance, atol=tolerance)
        assert other[1] == pytest.approx(results[0][1], rel=1e-5)


def test_a_step_is_the_update_written_out_by_hand(workshop: Any) -> None:
    """By autograd: w - lr * gradient of (summed smoothed loss / target tokens of both micro-batches)."""
    model = workshop.model(dropout=0.0).double()
    oracle = copy.deepcopy(model)
    micro_batches = [workshop.batch(0), workshop.batch(1, rows=2)]
    trainer = workshop.trainer(model=model, optimizer="sgd", lr=0.1, warmup=4, clip=0, label_smoothing=0.2)
    trainer.step(micro_batches)
    tokens = sum(int((b.target_out != PAD).sum()) for b in micro_batches)
    loss = sum(
        F.cross_entropy(
            oracle(b.source, b.target_in).flatten(0, 1),
            b.target_out.flatten(),
            ignore_index=PAD,
            reduction="sum",
            label_smoothing=0.2,
        )
        for b in micro_batches
    )
    gradients = torch.autograd.grad(loss / tokens, list(oracle.parameters()))
    for new, old, gradient in zip(model.parameters(), oracle.parameters(), gradients, strict=True):
        torch.testing.assert_close(new.detach(), (old - 0.1 / 4 * gradient).detach())
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert trainer.window.read()["norm"] == pytest.approx(norm, rel=1e-6)


def test_the_norm_before_clipping_is_logged_and_the_clipped_gradient_applied(workshop: Any) -> None:
    runs = {}
    for clip in (0.0, 1e-3):
        model = workshop.model(dropout=0.0)
        before = [p.detach().clone() for p in model.parameters()]
        trainer = workshop.trainer(str(clip), model=model, optimizer="sgd", lr=1.0, warmup=0, clip=clip)
        trainer.step([workshop.batch(0)])
        moved = math.sqrt(
            sum(
                float((new.detach() - old).square().sum())
                for new, old in zip(model.parameters(), before, strict=True)
            )
        )
        runs[clip] = trainer.window.read(), moved
    (free, free_moved), (clipped, clipped_moved) = runs[0.0], runs[1e-3]
    assert free["norm"] == clipped["norm"] > 0.1
    assert free_moved == pytest.approx(free["norm"], rel=1e-4)
    assert clipped_moved == pytest.approx(1e-3, rel=1e-3)
    assert (free["clipped"], clipped["clipped"]) == (0, 1)


@pytest.mark.parametrize("placement", ["post", "pre"])
def test_a_model_learns_one_batch_by_heart(placement: str, workshop: Any) -> None:
    model = workshop.model(placement=placement, dropout=0.0)
    trainer = workshop.trainer(model=model, lr=1e-2, warmup=10, schedule="constant", label_smoothing=0.0)
    batch = workshop.batch(0)
    for _ in range(120):
        trainer.step([batch])
    predicted = model(batch.source, batch.target_in).argmax(-1)
    assert torch.equal(predicted[batch.target_out != PAD], batch.target_out[batch.target_out != PAD])


def test_the_rate_is_set_before_the_first_update_and_logged(workshop: Any) -> None:
    trainer = workshop.trainer(updates=4, log_every=1, warmup=4, lr=4e-3)
    trainer.fit()
    rates = [line["learning_rate"] for line in lines(trainer.run_dir) if "learning_rate" in line]
    assert rates == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3])


@pytest.mark.parametrize(
    ("limits", "updates", "word"),
    [
        ({"updates": 5}, 5, "train.updates"),
        ({"epochs": 2, "updates": None, "accumulate": 3}, 6, "train.epochs"),
        ({"epochs": 2, "updates": 6}, 6, "train.updates"),
        ({"minutes": 1e-9, "updates": None}, 1, "train.minutes"),
    ],
)
def test_the_limit_that_comes_first_ends_the_run(
    limits: dict[str, Any], updates: int, word: str, workshop: Any
) -> None:
    outcome = workshop.trainer(**limits).fit()
    assert (outcome.status, outcome.updates) == ("completed", updates)
    assert outcome.reason.startswith(word)
    assert outcome.metrics["loss"] > 0
    assert outcome.target_tokens_per_second > 0


def test_an_epochs_last_update_takes_what_is_left_and_no_batch_twice(workshop: Any) -> None:
    seen = []
    trainer = workshop.trainer(epochs=2, updates=None, accumulate=3)
    step = trainer.step
    trainer.step = lambda batches: (seen.append(len(batches)), step(batches))
    trainer.fit()
    assert seen == [3, 3, 1, 3, 3, 1]
    assert trainer.limits.total_updates() == 6


class Scores:
    """A validation that gives the losses it was told, one after another."""

    def __init__(self, *losses: float) -> None:
        self.losses = list(losses)

    def __call__(self, model: Any) -> Mapping[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"loss": self.losses.pop(0)}


def test_patience_counts_validations_without_a_new_best_whatever_the_schedule(workshop: Any) -> None:
    scores = Scores(3, 2, 2.5, 1, 1.5, 1, 0.5)
    outcome = workshop.trainer(validate=scores, validate_every=1, patience=2, updates=50, average=0).fit()
    assert (outcome.updates, outcome.best_update) == (6, 4)
    assert "train.patience" in outcome.reason
    assert outcome.metrics == {"loss": 1}


def test_the_best_weights_are_the_runs_model_and_are_in_memory_at_the_end(workshop: Any) -> None:
    snapshots = []

    def falling_then_rising(model: Any) -> Mapping[str, float]:
        snapshots.append(copy.deepcopy(model.state_dict()))
        return {"loss": abs(len(snapshots) - 2)}

    trainer = workshop.trainer(validate=falling_then_rising, average=0)
    outcome = trainer.fit()
    tensors, header = read_weights(trainer.run_dir / "model.safetensors")
    assert (outcome.best_update, header["update"], header["valid_loss"]) == (8, "8", "0")
    torch.testing.assert_close(tensors, dict(snapshots[1]), rtol=0, atol=0)
    torch.testing.assert_close(dict(trainer.model.state_dict()), tensors, rtol=0, atol=0)
    assert trainer.model.training


@pytest.mark.parametrize("average_is_better", [True, False])
def test_the_average_is_kept_only_if_it_is_better(average_is_better: bool, workshop: Any) -> None:
    scores = Scores(5, 4, 3, 2 if average_is_better else 3)
    trainer = workshop.trainer(validate=scores, average=2)
    outcome = trainer.fit()
    directory = trainer.run_dir / "checkpoints"
    kept = sorted(directory.glob("update-*.safetensors"))
    assert [path.name for path in kept] == ["update-0000008.safetensors", "update-0000012.safetensors"]
    model = read_weights(trainer.run_dir / "model.safetensors")[0]
    expected = average_checkpoints(kept) if average_is_better else read_weights(kept[-1])[0]
    torch.testing.assert_close(model, expected, rtol=0, atol=0)
    assert outcome.averaged == (2 if average_is_better else 0)
    assert lines(trainer.run_dir)[-1] == {
        "update": 12,
        "valid_loss": 2 if average_is_better else 3,
        "averaged": 2,
    }


def test_bleu_decides_upwards(workshop: Any) -> None:
    values = iter([10.0, 30.0, 20.0])
    outcome = workshop.trainer(
        validate=lambda model: {"loss": 1.0, "bleu": next(values)}, metric="bleu", average=0
    ).fit()
    assert outcome.best_update == 8


def test_a_metric_that_validation_does_not_give_is_refused(workshop: Any) -> None:
    with pytest.raises(ConfigError, match=r"train\.metric is bleu"):
        workshop.trainer(validate=Scores(1), metric="bleu").fit()


def test_keep_leaves_more_weights_on_disk_than_are_averaged(workshop: Any) -> None:
    trainer = workshop.trainer(keep=3, average=0, validate_every=2)
    trainer.fit()
    assert len(list((trainer.run_dir / "checkpoints").glob("update-*.safetensors"))) == 3


def test_metadata_stands_in_every_weights_file(workshop: Any) -> None:
    trainer = workshop.trainer()
    trainer.shelf.metadata["commit"] = "abc"
    trainer.fit()
    for name in ("model", "checkpoints/best", "checkpoints/update-0000012"):
        with safe_open(trainer.run_dir / f"{name}.safetensors", framework="pt") as file:
            assert file.metadata()["commit"] == "abc"


# --- divergence


@pytest.mark.parametrize("log_every", [1, 4, 50])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_update(log_every: int, workshop: Any) -> None:
    trainer = workshop.trainer(log_every=log_every, validate_every=3, updates=20)
    step = trainer.step

    def poisoned(batches: Any) -> None:
        if trainer.progress.update == 4:
            with torch.no_grad():
                next(trainer.model.parameters())[:] = math.nan
        step(batches)

    trainer.step = poisoned
    outcome = trainer.fit()
    assert outcome.status == "diverged"
    assert "update 5" in outcome.reason
    for path in trainer.run_dir.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in read_weights(path)[0].values())
    assert outcome.best_update == 3
    for line in (trainer.run_dir / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_an_infinite_gradient_alone_is_divergence_too(workshop: Any) -> None:
    trainer = workshop.trainer(clip=1.0)
    parameter = next(trainer.model.parameters())
    parameter.register_hook(lambda g: g * math.inf if trainer.progress.update == 2 else g)
    outcome = trainer.fit()
    assert outcome.status == "diverged"
    assert "update 3" in outcome.reason


def test_a_perplexity_beyond_the_largest_number_is_no_divergence(workshop: Any) -> None:
    """exp(710) is infinite, and a loss of 710 is not."""
    measured = {"loss": 710.0, "nll": 710.0, "perplexity": math.inf}
    trainer = workshop.trainer(validate=lambda model: measured, unigram_loss=math.log(10))
    assert trainer.fit().status == "completed"


def test_a_validation_that_is_not_finite_is_divergence(workshop: Any) -> None:
    outcome = workshop.trainer(validate=Scores(1, math.nan)).fit()
    assert (outcome.status, outcome.updates, outcome.best_update) == ("diverged", 8, 4)


@pytest.mark.parametrize(
    ("options", "updates"),
    [
        ({"stall_updates": 6}, 6),
        ({"stall_updates": 6, "warmup": 5}, 10),
        ({"stall_updates": 0}, None),
        ({"stall_updates": 50}, None),
    ],
)
def test_a_loss_that_stays_at_the_unigram_level_is_divergence(
    options: dict[str, Any], updates: int | None, workshop: Any
) -> None:
    """A rate of nearly nothing keeps the loss at ln V, which is above any unigram entropy."""
    outcome = workshop.trainer(lr=1e-9, unigram_loss=math.log(10), **options).fit()
    if updates is None:
        assert outcome.status == "completed"
    else:
        assert (outcome.status, outcome.updates) == ("diverged", updates)
        assert "unigram level" in outcome.reason


def test_a_model_that_learns_is_not_called_diverged_and_one_that_falls_back_is(workshop: Any) -> None:
    trainer = workshop.trainer(stall_updates=4, unigram_loss=math.log(10), updates=40, lr=1e-9)
    levels = iter([2.0] * 6 + [2.5] * 50)
    read = trainer.window.read
    trainer.window.read = lambda: {**read(), "nll": next(levels) * trainer.window.tokens}
    outcome = trainer.fit()
    assert outcome.status == "diverged"
    assert trainer.progress.learned > 0
    assert outcome.updates == trainer.progress.learned + 4


# --- failures


def test_a_failing_validation_loses_nothing(workshop: Any) -> None:
    def broken(model: Any) -> Mapping[str, float]:
        raise RuntimeError("out of memory")

    trainer = workshop.trainer(validate=broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit()
    assert trainer.model.training
    resumed = workshop.trainer()
    resumed.resume()
    assert resumed.progress.update == 4
    resumed.fit()
    straight = workshop.trainer("straight")
    straight.fit()
    torch.testing.assert_close(resumed.model.state_dict(), straight.model.state_dict(), rtol=0, atol=0)
    validated = [line["update"] for line in lines(resumed.run_dir) if "valid_loss" in line]
    assert validated == [line["update"] for line in lines(straight.run_dir) if "valid_loss" in line]


def test_resuming_with_another_optimizer_or_batch_size_is_refused(workshop: Any) -> None:
    workshop.trainer().fit()
    for options in ({"optimizer": "sgd"}, {"batch_tokens": 99}, {"accumulate": 2}, {"betas": (0.8, 0.9)}):
        with pytest.raises(CheckpointError, match=f"train.{next(iter(options))}"):
            workshop.trainer(**options).resume()
    with pytest.raises(CheckpointError, match=r"model\.d_ff"):
        workshop.trainer(model=workshop.model(d_ff=32)).resume()


def test_between_equal_scores_the_lower_loss_is_the_better(workshop: Any) -> None:
    """A run whose BLEU is still 0 is not stalled while its loss falls, and its last weights are its best."""
    losses = iter([3.0, 2.5, 2.0, 2.2, 2.1])

    def measure(model: Any) -> dict[str, float]:
        return {"loss": next(losses), "bleu": 0.0}

    trainer = workshop.trainer(
        validate=measure, metric="bleu", patience=2, updates=40, validate_every=4, average=0
    )
    outcome = trainer.fit()
    assert (outcome.best_update, outcome.updates) == (12, 20)
    assert outcome.metrics["loss"] == 2.0


def losses_of(trainer: Any, updates: int) -> list[float]:
    """The loss of each update on one and the same batch, at a rate too small to change it."""
    batch = next(iter(trainer.stream.epoch(1)))
    read = []
    for _ in range(updates):
        trainer.step([batch])
        read.append(trainer.window.read()["loss"])
        trainer.window.clear()
    return read


def test_each_update_drops_other_elements_and_every_run_of_a_seed_the_same(workshop: Any) -> None:
    options = {"lr": 1e-20, "warmup": 0, "schedule": "constant"}
    first, again = (losses_of(workshop.trainer(name, **options), 5) for name in ("one", "two"))
    assert len(set(first)) == 5
    assert first == again


def test_precision_reaches_the_products(workshop: Any) -> None:
    losses = {
        precision: losses_of(workshop.trainer(precision, precision=precision), 1)[0]
        for precision in ("float32", "bf16")
    }
    assert losses["bf16"] != losses["float32"]
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)

"""The size of the first updates, against updates computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from transformer.analysis.finding import as_json, as_text, save_figure
from transformer.analysis.setting import Arm, Batch, arms, build, mean_loss, random_batches
from transformer.analysis.updates import ALL, Updates, copies, function, function_change, kinds, update_ratio
from transformer.model.config import ModelConfig

SIZES = (30, 30)


@pytest.fixture
def arm() -> Arm:
    sizes = {"d_model": 16, "heads": 2, "d_ff": 32, "encoder_layers": 1, "decoder_layers": 2}
    return Arm("tiny", ModelConfig.model_validate({**sizes, "dropout": 0.5, "placement": "post"}))


@pytest.fixture
def batches() -> list[Batch]:
    return random_batches(3, 4, 8, 30, seed=1)


def run(arm: Arm, batches: list[Batch], **options: object) -> dict[tuple[int, str], list[object]]:
    """Rows of the table by warm-up and kind of matrix."""
    finding = Updates(**options).run([arm], batches, SIZES, [1], lambda text: None)  # type: ignore[arg-type]
    return {(row[1], row[2]): row[3:] for row in finding.rows}


def test_the_ratio_is_that_of_frobenius_norms_and_the_mean_over_matrices() -> None:
    before = [torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.ones(2, 2)]
    after = [torch.tensor([[3.0, 3.0], [4.0, 4.0]]), torch.ones(2, 2)]
    assert update_ratio(before, after) == pytest.approx((5 / 5 + 0) / 2)


def test_a_matrix_of_zeros_has_no_ratio_and_is_left_out_of_the_mean() -> None:
    zeros, ones = torch.zeros(2, 2), torch.ones(2, 2)
    assert update_ratio([zeros, ones], [ones, 1.5 * ones]) == pytest.approx(0.5)
    assert update_ratio([zeros], [ones]) is None
    assert update_ratio([ones], [math.inf * ones]) is None


def test_the_first_update_of_plain_descent_is_the_rate_times_the_gradient(
    arm: Arm, batches: list[Batch]
) -> None:
    model = build(arm, SIZES, 1)
    mean_loss(model, batches[0]).backward()
    w1 = [layer.feedforward.hidden.weight for layer in (*model.encoder.layers, *model.decoder.layers)]
    expected = sum((0.1 * w.grad.norm() / w.norm()).item() for w in w1) / 3
    rows = run(arm, batches, optimizer="sgd", lr=0.1, warmup=20, updates=2)
    assert rows[0, "feed-forward hidden"][0] == pytest.approx(expected, rel=1e-4)
    assert rows[20, "feed-forward hidden"][0] == pytest.approx(expected / 20, rel=1e-2)  # rounding of W


def test_the_first_update_of_adam_moves_each_weight_by_the_rate(arm: Arm, batches: list[Batch]) -> None:
    """|dW| = lr for every weight whose gradient is not 0: ||dW|| / ||W|| = lr sqrt(n) / ||W||."""
    model = build(arm, SIZES, 1)
    mean_loss(model, batches[0]).backward()
    values = [sub.value.weight for _, sub in model.sites() if hasattr(sub, "value")]
    expected = sum(1e-3 * math.sqrt(w.grad.count_nonzero()) / w.norm().item() for w in values) / len(values)
    rows = run(arm, batches, lr=1e-3, updates=1)
    assert rows[0, "attention value"][0] == pytest.approx(expected, rel=1e-2)


def test_every_matrix_of_a_layer_is_of_one_kind(arm: Arm) -> None:
    model = build(arm, SIZES, 1)
    found = kinds(model)
    linears = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    listed = [id(w) for kind, ws in found.items() if kind not in (ALL, "embeddings and output") for w in ws]
    assert len(listed) == len(set(listed)) == 5 * 4 + 3 * 2  # five attentions, three feed-forwards
    assert set(listed) == linears == {id(w) for w in found[ALL]}
    assert len(found["embeddings and output"]) == 2  # target embedding and output are one matrix


def test_the_function_is_the_decoders_output_at_real_tokens(arm: Arm, batches: list[Batch]) -> None:
    model = build(arm, SIZES, 1)
    source, target_in, target_out = batches[0]
    hidden = model.hidden(source, target_in)
    start = function(model, batches[0])
    assert start.shape == (int((target_out != 0).sum()), 16)
    torch.testing.assert_close(start, hidden[target_out != 0])
    assert function_change(start, start) == 0
    assert function_change(start, 3 * start) == pytest.approx(2)


def test_the_function_is_watched_on_a_batch_that_is_not_trained_on(arm: Arm, batches: list[Batch]) -> None:
    """Two batches and three of which the last differs: the updates are those of the first alone."""
    finding = Updates(updates=1, optimizer="sgd", lr=0.5).run([arm], batches[:2], SIZES, [1], lambda t: None)
    model = build(arm, SIZES, 1)
    start = function(model, batches[1])
    before = copies(kinds(model))
    mean_loss(model, batches[0]).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.5 * parameter.grad
    assert finding.summary[0][2] == pytest.approx(
        function_change(start, function(model, batches[1])), rel=1e-3
    )
    assert finding.rows[0][3] == pytest.approx(
        update_ratio(before["attention query"], copies(kinds(model))["attention query"]), rel=1e-3
    )


def test_warm_up_makes_the_first_step_of_the_function_smaller(arm: Arm, batches: list[Batch]) -> None:
    finding = Updates(updates=3, warmup=100).run([arm], batches, SIZES, [1, 2], lambda text: None)
    bare, warm = finding.summary
    assert (bare[1], warm[1]) == (0, 100)
    assert 0 < warm[2] < 0.1 * bare[2]


def test_a_kind_of_matrix_that_starts_at_0_is_named_and_has_no_nan(
    batches: list[Batch], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    sizes = {"d_model": 16, "heads": 2, "d_ff": 32, "encoder_layers": 1, "decoder_layers": 1}
    chosen = arms(ModelConfig.model_validate(sizes), ["fixup"])
    finding = Updates(updates=3).run(chosen, batches, SIZES, [1, 2], lambda text: None)
    first = {(row[1], row[2]): row[3] for row in finding.rows}
    assert first[0, "feed-forward output"] is None
    assert first[0, "feed-forward hidden"] is not None
    every = {(row[1], row[2]): row[3:] for row in finding.rows}
    assert every[0, ALL][0] == 0  # the others get no gradient through the zeros
    assert every[0, "feed-forward output"][1] > 0.5 > 10 * every[0, ALL][2]
    (sentence,) = (words for words in finding.words if "W starts at 0" in words)
    assert sentence.startswith("fixup: ")
    assert "feed-forward output" in sentence
    assert "feed-forward hidden" not in sentence
    assert "nan" not in as_text(finding) + json.dumps(as_json(finding))
    save_figure(finding, tmp_path / "x.png")


def test_a_training_that_breaks_is_told_in_words(arm: Arm, batches: list[Batch], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    finding = Updates(updates=3, lr=1e30).run([arm], batches, SIZES, [1], lambda text: None)
    assert "no finite number" in finding.words[1]
    assert "one seed" in finding.words[0]
    assert "nan" not in as_text(finding) + json.dumps(as_json(finding))
    save_figure(finding, tmp_path / "x.png")

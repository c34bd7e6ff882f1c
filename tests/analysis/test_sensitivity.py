"""How far the output moves when the weights do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from transformer.analysis.finding import as_json, as_text, save_figure
from transformer.analysis.sensitivity import Sensitivity, moved, outputs, perturb
from transformer.analysis.setting import Arm, Batch, arms, build, random_batches
from transformer.core.errors import ConfigError
from transformer.core.loading import load
from transformer.core.signature import options_of
from transformer.model.config import ModelConfig
from transformer.training.checkpoint import write_weights
from transformer.training.passes import copied

SIZES = (30, 30)
BASE = ModelConfig.model_validate({"d_model": 32, "heads": 2, "d_ff": 64})


@pytest.fixture
def batches() -> list[Batch]:
    return random_batches(1, 6, 10, 30, seed=1)


def test_matrices_of_sublayers_move_by_the_size_and_nothing_else_does() -> None:
    (arm,) = arms(BASE, ["pre"], [], [2])
    start, model = build(arm, SIZES, 1), build(arm, SIZES, 1)
    perturb(model, 0.1, seed=5)
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    ratios = []
    for old, new in zip(start.parameters(), model.parameters(), strict=True):
        if id(new) in matrices:
            ratios.append(((new - old).norm() / old.norm()).item())
        else:
            assert torch.equal(old, new)
    assert ratios == pytest.approx([0.1] * len(ratios), rel=0.1)  # of 1024 draws and more


def test_placements_are_moved_in_the_same_directions() -> None:
    shifts = []
    for arm in arms(BASE, ["pre", "post"], [], [1]):
        start, model = build(arm, SIZES, 1), build(arm, SIZES, 1)
        perturb(model, 0.1, seed=5)
        name = "decoder.layers.0.cross_attention.value.weight"
        shifts.append(model.get_parameter(name) - start.get_parameter(name))
    assert torch.equal(*shifts)


def test_another_seed_is_another_direction() -> None:
    (arm,) = arms(BASE, ["pre"], [], [1])
    first, second = build(arm, SIZES, 1), build(arm, SIZES, 1)
    perturb(first, 0.1, seed=1)
    perturb(second, 0.1, seed=2)
    name = "encoder.layers.0.feedforward.output.weight"
    start = build(arm, SIZES, 1).get_parameter(name).flatten()
    shifts = [model.get_parameter(name).flatten() - start for model in (first, second)]
    assert abs(torch.cosine_similarity(*shifts, dim=0)) < 0.1


def test_moved_is_a_ratio_of_squares() -> None:
    before = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert moved(before, before + torch.tensor([[0.0, 1.0], [2.0, 0.0]])) == pytest.approx(5 / 25)


def test_one_linear_map_is_as_sensitive_as_its_dimensions_say() -> None:
    """E ||delta x||^2 = size^2 mean(W^2) out ||x||^2, and E ||W x||^2 the same without size^2."""
    torch.manual_seed(0)
    weight, x = torch.randn(400, 300), torch.randn(300, 50)
    noise = 0.01 * weight.square().mean().sqrt() * torch.randn(400, 300)
    assert moved(weight @ x, (weight + noise) @ x) / 0.01**2 == pytest.approx(1, rel=0.05)


def test_the_outputs_leave_out_padding(batches: list[Batch]) -> None:
    (arm,) = arms(BASE, ["pre"], [], [1])
    source, _, target_out = batches[0]
    memory, hidden = outputs(build(arm, SIZES, 1), batches)
    assert len(memory) == int((source != 0).sum()) < source.numel()
    assert len(hidden) == int((target_out != 0).sum())


def test_the_number_hardly_depends_on_the_size_of_the_noise(batches: list[Batch]) -> None:
    (arm,) = arms(BASE, ["pre"], [], [2])
    first, second = (
        Sensitivity(size=size, draws=2).run([arm], batches, SIZES, [1], lambda text: None).rows
        for size in (0.002, 0.01)
    )
    assert [row[3] for row in first] == pytest.approx([row[3] for row in second], rel=0.05)


def test_post_is_more_sensitive_than_pre_and_grows_faster(batches: list[Batch]) -> None:
    """By ratio: from one layer to eight Post-LN's encoder gains more than 1.5 times Pre-LN's factor."""
    depths = [1, 2, 4, 8]
    found = Sensitivity(draws=3).run(
        arms(BASE, ["post", "pre"], [], depths), batches, SIZES, [1, 2, 3], lambda text: None
    )
    encoder = {(row[0].split()[0], row[1]): row[3] for row in found.rows if row[2] == "encoder"}
    post, pre = (encoder[name, 8] / encoder[name, 1] for name in ("post", "pre"))
    assert post > 1.5 * pre
    assert {(row[0], row[1]) for row in found.summary} == {
        (name, stack) for name in ("post", "pre") for stack in ("encoder", "decoder")
    }
    power = {row[0]: row[2] for row in found.summary if row[1] == "encoder"}
    assert power["post"] > power["pre"] + 0.1


def test_a_label_without_a_depth_is_its_own_family(batches: list[Batch]) -> None:
    config = BASE.model_copy(update={"encoder_layers": 1, "decoder_layers": 1})
    finding = Sensitivity(draws=1).run([Arm("pre", config)], batches, SIZES, [1], lambda text: None)
    assert finding.summary == []
    assert any("four depths" in word or "4 depths" in word for word in finding.words)


def test_all_batches_count_by_their_tokens() -> None:
    chosen = arms(BASE, ["pre"], [], [1])
    pair = random_batches(2, 4, 8, 30, seed=1)
    joined = [tuple(torch.cat(sides) for sides in zip(*pair, strict=True))]

    def value(batches: list[Batch]) -> float:
        finding = Sensitivity(draws=1).run(chosen, batches, SIZES, [1], lambda text: None)
        return float(finding.rows[1][3])

    assert value(pair) == pytest.approx(value(joined), rel=1e-4)
    assert value(pair) != pytest.approx(value(pair[:1]), rel=1e-4)


def test_trained_weights_get_no_advice_that_would_drop_them(batches: list[Batch], tmp_path: Path) -> None:
    config = BASE.model_copy(update={"encoder_layers": 1, "decoder_layers": 1})
    model = build(Arm("pre", config), SIZES, 1)
    write_weights(tmp_path / "model.safetensors", copied(model), {})
    trained = Arm("pre, run", config, tmp_path / "model.safetensors")
    finding = Sensitivity(draws=1).run([trained], batches, SIZES, [1], lambda text: None)
    assert "--depths" not in " ".join(finding.words)


def test_without_movement_there_is_no_law_and_no_nan(batches: list[Batch], tmp_path: Path) -> None:
    """ReZero's gates are shut at the start: no matrix moves the output."""
    pytest.importorskip("matplotlib")
    chosen = arms(BASE, ["rezero"], [], [1, 2, 3, 4])
    finding = Sensitivity(draws=1).run(chosen, batches, SIZES, [1, 2], lambda text: None)
    assert {row[-1] for row in finding.summary} == {"no law"}
    assert "no law: at some depth the change is 0" in as_text(finding)
    assert "nan" not in json.dumps(as_json(finding))
    save_figure(finding, tmp_path / "x.png")


def test_the_power_has_an_interval_over_seeds(batches: list[Batch]) -> None:
    finding = Sensitivity(draws=1).run(
        arms(BASE, ["post"], [], [1, 2]), batches, SIZES, [1, 2, 3], lambda text: None
    )
    row = dict(zip(finding.summary_columns, finding.summary[0], strict=True))
    assert row["low"] < row["power of N"] < row["high"]
    assert row["law"] == "too few depths"
    assert "~ N^" in as_text(finding)


@pytest.mark.parametrize("size", [1e-7, 1.0])
def test_a_size_that_would_measure_rounding_or_no_small_change_is_refused(size: float) -> None:
    with pytest.raises(ConfigError, match="size"):
        load(options_of(Sensitivity), None, [f"size={size}"])

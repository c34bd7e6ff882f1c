"""The statistic of the gradients against a computation by hand, its seeds, its figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from transformer.analysis import theory
from transformer.analysis.finding import as_json, as_text, new_figure, save_figure
from transformer.analysis.gradients import InitProbe, gradient_norms, last_norms
from transformer.analysis.interval import log_slope, mean
from transformer.analysis.setting import Arm, Batch, arms, build, random_batches
from transformer.core.special import PAD
from transformer.model.config import ModelConfig
from transformer.model.transformer import Transformer
from transformer.modules.placements import PLACEMENTS

BASE = ModelConfig(d_model=16, heads=2, d_ff=24, encoder_layers=2, decoder_layers=2)
SIZES = (30, 30)
BATCHES = random_batches(3, 4, 7, 30, seed=1)


def arm(placement: str) -> Arm:
    return arms(BASE, [placement])[0]


def by_hand(model: Transformer, weight: torch.Tensor, batches: list[Batch]) -> list[torch.Tensor]:
    """The gradient of each batch's loss, in one pass of autograd each."""
    gradients = []
    for source, target_in, target_out in batches:
        logits = model(source, target_in).flatten(0, 1)
        nll = F.nll_loss(logits.log_softmax(-1), target_out.flatten(), ignore_index=PAD, reduction="sum")
        gradients += torch.autograd.grad(nll / (target_out != PAD).sum(), weight)
    return gradients


@pytest.mark.parametrize("placement", ["post", "pre"])
def test_the_statistic_is_the_norm_of_the_mean_gradient_not_the_mean_of_norms(placement: str) -> None:
    model = build(arm(placement), SIZES, seed=1)
    found = gradient_norms(model, BATCHES)
    weights = {
        ("encoder", 1, "W1"): model.encoder.layers[0].feedforward.hidden.weight,
        ("encoder", 2, "self W_O"): model.encoder.layers[1].self_attention.output.weight,
        ("decoder", 1, "cross W_V"): model.decoder.layers[0].cross_attention.value.weight,
        ("decoder", 2, "self W_Q"): model.decoder.layers[1].self_attention.query.weight,
        ("decoder", 2, "W2"): model.decoder.layers[1].feedforward.output.weight,
    }
    for place, weight in weights.items():
        gradients = by_hand(model, weight, BATCHES)
        assert found[place] == pytest.approx(torch.stack(gradients).mean(0).norm().item(), rel=1e-4)
        assert found[place] < 0.95 * mean([gradient.norm().item() for gradient in gradients])
    assert last_norms(model, BATCHES)["decoder"] == pytest.approx(found["decoder", 2, "W2"], rel=1e-5)
    assert last_norms(model, BATCHES)["encoder"] == pytest.approx(found["encoder", 2, "W2"], rel=1e-5)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_table_has_each_matrix_of_each_layer_averaged_over_seeds() -> None:
    finding = InitProbe(depths=()).run([arm("post"), arm("pre")], BATCHES, SIZES, [1, 2], lambda text: None)
    assert finding.columns[:3] == ["arm", "stack", "layer"]
    assert sorted(finding.columns[3:]) == sorted(
        ["W1", "W2", *(f"{part} W_{letter}" for part in ("self", "cross") for letter in "QKVO")]
    )
    assert [row[:3] for row in finding.rows] == [
        [label, stack, layer]
        for label in ("post", "pre")
        for stack in ("encoder", "decoder")
        for layer in (1, 2)
    ]
    seeds = [gradient_norms(build(arm("pre"), SIZES, seed), BATCHES) for seed in (1, 2)]
    assert finding.rows[-1][finding.columns.index("W1")] == pytest.approx(
        mean([norms["decoder", 2, "W1"] for norms in seeds])
    )
    assert finding.rows[0][finding.columns.index("cross W_Q")] is None
    assert not finding.summary


def test_the_curve_against_depth_is_of_single_batches_and_its_slope_of_logarithms() -> None:
    finding = InitProbe(depths=(1, 2, 4)).run([arm("pre")], BATCHES, SIZES, [3, 4], lambda text: None)
    row = dict(zip(finding.summary_columns, finding.summary[1], strict=True))
    assert (row["arm"], row["stack"]) == ("pre", "decoder")
    values = [
        [
            last_norms(build(deep, SIZES, seed), BATCHES[:1])["decoder"]
            for deep in arms(BASE, depths=(1, 2, 4))
        ]
        for seed in (3, 4)
    ]
    assert [row["1+1"], row["2+2"], row["4+4"]] == pytest.approx(
        [mean(pair) for pair in zip(*values, strict=True)]
    )
    slopes = [log_slope((1, 2, 4), line) for line in values]
    assert row["slope"] == pytest.approx(mean(slopes))
    half = 12.706205 * abs(slopes[0] - slopes[1]) / 2  # t of one degree times s / sqrt(2)
    assert (row["low"], row["high"]) == pytest.approx((mean(slopes) - half, mean(slopes) + half), abs=1e-5)


def test_equal_seeds_give_equal_findings_and_arms_of_other_depths_one_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    deep = arms(BASE, ["post"], depths=[1, 2])
    probe = InitProbe(depths=(1, 2))
    one, other = (probe.run(deep, BATCHES[:1], SIZES, [1], lambda text: None) for _ in range(2))
    assert as_json(one) == as_json(other)
    assert json.loads(json.dumps(as_json(one), allow_nan=False)) == as_json(one)
    assert [row[:2] for row in one.summary] == [["post", "encoder"], ["post", "decoder"]]
    assert any(words.startswith("post, last W2 of the decoder: norm ~ depth^") for words in one.words)
    assert "with one seed there is no interval" in as_text(one)
    save_figure(one, tmp_path / "init.png")
    assert (tmp_path / "init.png").stat().st_size > 10_000


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_has_gradients_at_the_top(placement: str) -> None:
    finding = InitProbe(depths=(1, 2)).run([arm(placement)], BATCHES[:1], SIZES, [1], lambda text: None)
    assert len(finding.rows) == 4
    assert all(value is None or 0 <= value < 1e4 for row in finding.rows for value in row[3:])
    if placement != "rezero":  # its gates are shut at the start: no gradient but theirs
        assert finding.summary[1][2] > 0


def test_where_the_gradient_is_0_there_is_no_slope_and_no_nan(tmp_path: Path) -> None:
    """ReZero's gates are shut at the start."""
    pytest.importorskip("matplotlib")
    chosen = [arm("rezero"), arm("post")]
    finding = InitProbe(depths=(1, 2)).run(chosen, BATCHES[:1], SIZES, [1, 2], lambda text: None)
    slopes = {tuple(row[:2]): row[-3:] for row in finding.summary}
    assert slopes["rezero", "decoder"] == [None, None, None]
    assert None not in slopes["post", "decoder"]
    assert "rezero, last W2 of the decoder: no slope: the gradient is 0." in finding.words
    assert "nan" not in as_text(finding) + json.dumps(as_json(finding))
    figure = new_figure()
    assert finding.draw is not None
    finding.draw(figure)
    labels = [
        text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().texts
    ]
    assert "rezero: no slope, the gradient is 0" in labels
    assert not any("nan" in label for label in labels)


def test_w1_and_w2_have_panels_of_their_own_with_one_line_an_arm() -> None:
    """Eight arms: colours repeat, dashes mean that and nothing else."""
    pytest.importorskip("matplotlib")
    chosen = arms(BASE, ["post", "pre", "deepnorm", "sandwich"], ["layer", "rms"])
    finding = InitProbe(depths=()).run(chosen, BATCHES[:1], SIZES, [1], lambda text: None)
    figure = new_figure()
    assert finding.draw is not None
    finding.draw(figure)
    assert [axes.get_title() for axes in figure.axes] == [
        f"{name} of the {stack}, by layer" for name in ("W1", "W2") for stack in ("encoder", "decoder")
    ]
    for axes in figure.axes:
        seen = {(line.get_color(), line.get_marker()) for line in axes.lines}
        assert len(seen) == len(axes.lines) == 8


def test_one_depth_makes_no_curve_and_that_is_said() -> None:
    finding = InitProbe(depths=(3,)).run([arm("pre")], BATCHES[:1], SIZES, [1], lambda text: None)
    assert not finding.summary
    assert any("probe.depths takes two or more" in words for words in finding.words)
    none = InitProbe(depths=()).run([arm("pre")], BATCHES[:1], SIZES, [1], lambda text: None)
    assert not any("probe.depths" in words for words in none.words)


def test_the_theory_in_real_dimensions_is_the_papers_where_they_agree() -> None:
    """Square matrices: v_ff = 1/2, lemma 2's 3/2 d; r = 2 and 4: 4/9 and 8/25."""
    square = ModelConfig(d_model=64, heads=2, d_ff=64, placement="post")
    assert theory.last_norm_reads(square, "decoder", 9, 0.5) == pytest.approx(1.5)
    for ratio, variance in ((1, 1 / 2), (2, 4 / 9), (4, 8 / 25)):
        config = ModelConfig(d_model=64, heads=2, d_ff=64 * ratio, placement="pre")
        assert theory.feedforward_variance(config) == pytest.approx(variance)
        assert theory.last_norm_reads(config, "encoder", 6, 1.0) == pytest.approx(1.5 + 6 * (1 + variance))
        assert theory.last_norm_reads(config, "decoder", 6, 0.5) == pytest.approx(1.5 + 6 * (1 + variance))


@pytest.mark.parametrize(
    "flags",
    [{"placement": "deepnorm"}, {"activation": "gelu"}, {"norm": "dyt"}, {"fix_norm": True},
     {"placement": {"encoder": "pre", "decoder": {"1-3": "post", "4-": "pre"}}}],
)  # fmt: skip
def test_no_theory_is_told_of_what_it_was_not_derived_for(flags: dict[str, object]) -> None:
    config = ModelConfig(d_model=64, heads=2, d_ff=64, **flags)
    assert theory.last_norm_reads(config, "decoder", 6, 0.5) is None


def test_norms_of_unit_mean_square_are_known_by_what_they_do() -> None:
    for norm, told in (("layer", True), ("rms", True), ("none", False)):
        config = ModelConfig(d_model=64, heads=2, d_ff=64, norm=norm, allow_unsound=True)
        assert (theory.last_norm_reads(config, "decoder", 6, 0.5) is not None) is told


@pytest.mark.parametrize(
    "flags",
    [{"norm_eps": 0.5}, {"norm": "ada", "norm_options": {"C": 3.0}}],  # 1 / sqrt(1 + eps), and about C
)
def test_options_and_eps_of_a_norm_count_for_its_mean_square(flags: dict[str, object]) -> None:
    config = ModelConfig(d_model=64, heads=2, d_ff=64, placement="pre", **flags)
    assert theory.last_norm_reads(config, "decoder", 6, 0.5) is None

"""Arms, batches, the loss of a probe, and findings as text, JSON and files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from transformer.analysis.finding import (
    COLOURS,
    Finding,
    as_json,
    as_text,
    estimate,
    look,
    new_figure,
    of_seeds,
    save_figure,
    two_decimals,
)
from transformer.analysis.interval import interval, line, log_slope, t_quantile
from transformer.analysis.setting import arms, build, mean_loss, random_batches, real_batches
from transformer.core.errors import ConfigError
from transformer.core.special import BOS, EOS, PAD
from transformer.data.dataset import DataConfig
from transformer.model.config import ModelConfig

TINY = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.5}


def tiny(**flags: object) -> ModelConfig:
    return ModelConfig(**{**TINY, **flags})


def test_arms_are_every_placement_with_every_norm_at_every_depth() -> None:
    found = arms(tiny(), ["post", "pre"], ["layer", "rms"], [1, 3])
    assert len(found) == 8
    assert [arm.label for arm in found[:3]] == ["post layer 1+1", "post layer 3+3", "post rms 1+1"]
    assert found[1].config == tiny(placement="post", norm="layer", encoder_layers=3, decoder_layers=3)


def test_arms_of_nothing_are_the_base_itself() -> None:
    (arm,) = arms(tiny(placement="deepnorm"))
    assert (arm.label, arm.config) == ("deepnorm", tiny(placement="deepnorm"))


def test_an_arm_without_norms_has_none_unless_one_was_asked_for() -> None:
    assert [arm.config.norm for arm in arms(tiny(norm="rms"), ["pre", "rezero"])] == ["rms", "none"]
    with pytest.raises(ConfigError, match="rezero"):
        arms(tiny(), ["pre", "rezero"], ["layer"])


def test_an_option_goes_to_the_arms_that_declare_it() -> None:
    base = tiny(placement="rskip", placement_options={"times": 3})
    found = {arm.label: arm.config.placement_options for arm in arms(base, ["rskip", "pre"])}
    assert found == {"rskip": {"times": 3}, "pre": {}}


def test_every_refused_pair_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        arms(tiny(), ["post", "pots"], ["dyt", "layer"])
    text = str(caught.value)
    assert "post dyt: model.norm" in text
    assert text.count("did you mean 'post'?") == 2
    with pytest.raises(ConfigError, match="the same"):
        arms(tiny(), ["post", "post"])


def test_random_batches_are_ragged_shifted_padded_and_a_function_of_the_seed() -> None:
    first, second = random_batches(2, 6, 9, 40, seed=3)
    again = random_batches(2, 6, 9, 40, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first + second, again[0] + again[1], strict=True))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], random_batches(1, 6, 9, 40, seed=4)[0][0])
    for source, target_in, target_out in (first, second):
        assert source.shape == target_in.shape == target_out.shape == (6, 9)
        for row_in, row_out, row in zip(target_in, target_out, source, strict=True):
            kept = int((row_out != PAD).sum())
            assert 4 <= kept <= 9
            assert row_in[0] == BOS
            assert row_out[kept - 1] == EOS == row[int((row != PAD).sum()) - 1]
            assert torch.equal(row_in[1:kept], row_out[: kept - 1])
            assert int(row_out[: kept - 1].min()) > EOS
            assert int(row_out.max()) < 40
    assert len({int((row != PAD).sum()) for row in first[0]}) > 1


def test_real_batches_are_training_batches_and_leave_nothing_but_the_cache(tmp_path: Path) -> None:
    for side in ("en", "de"):
        for split in ("train", "valid"):
            lines = (f"{side} {'ab'[i % 2]} {'cd'[i // 2 % 2]} {i % 5}" for i in range(40))
            (tmp_path / f"{split}.{side}").write_text("".join(f"{one}\n" for one in lines), encoding="utf-8")
    data = DataConfig(
        train=str(tmp_path / "train"), valid=str(tmp_path / "valid"), cache=str(tmp_path / "cache"),
        tokenizer={"vocab_size": 40, "type": "char"},
    )  # fmt: skip
    before = set(tmp_path.iterdir())
    batches, sizes = real_batches(data, 30, 100, seed=1)
    assert len(batches) == 30  # of several epochs
    assert sizes[0] == sizes[1] <= 40
    assert all(batch[0].numel() <= 100 and int(batch[0].max()) < sizes[0] for batch in batches)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "cache"}


def test_the_loss_is_the_mean_over_target_tokens_whatever_the_padding() -> None:
    (arm,) = arms(tiny())
    model = build(arm, (30, 30), seed=1)
    source, target_in, target_out = random_batches(1, 4, 7, 30, seed=1)[0]
    log_p = model(source, target_in).log_softmax(-1)
    by_hand = [
        -log_p[row, at, token]
        for row, tokens in enumerate(target_out.tolist())
        for at, token in enumerate(tokens)
        if token != PAD
    ]
    loss = mean_loss(model, (source, target_in, target_out))
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    wider = tuple(F.pad(part, (0, 3), value=PAD) for part in (source, target_in, target_out))
    torch.testing.assert_close(mean_loss(model, wider), loss)


def test_a_built_model_drops_nothing_and_is_a_function_of_the_seed() -> None:
    (arm,) = arms(tiny())
    batch = random_batches(1, 4, 7, 30, seed=1)[0]
    model, same, other = (build(arm, (30, 30), seed) for seed in (1, 1, 2))
    assert mean_loss(model, batch) == mean_loss(model, batch) == mean_loss(same, batch)
    assert mean_loss(model, batch) != mean_loss(other, batch)


def test_before_training_a_norm_of_the_batch_takes_the_batchs_own_statistics() -> None:
    """In evaluation mode it would divide by running statistics that nothing has run: no norm at all."""
    (arm,) = arms(tiny(norm={"encoder": "batch", "decoder": "layer"}))
    model = build(arm, (30, 30), seed=1)
    norm = model.encoder.final_norm
    source = random_batches(1, 8, 9, 30, seed=1)[0][0]
    read = model.encode(source)[source != PAD]
    assert norm.training
    assert not model.training
    torch.testing.assert_close(read.var(0, correction=0), torch.ones(16), atol=0.01, rtol=0.01)


def test_a_placement_that_asks_for_a_batch_is_calibrated() -> None:
    base = tiny(placement="admin", placement_options={"omega": "profiled"})
    (arm,) = arms(base)
    for batch in (None, random_batches(1, 4, 7, 30, seed=1)[0]):
        omegas = [p.omega[0].item() for p, _ in build(arm, (30, 30), 1, batch).decoder.sites()]
        assert omegas[0] == 1 < omegas[1] < omegas[2]


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706205), (2, 4.302653), (9, 2.262157), (30, 2.042272)]
)
def test_the_quantiles_of_t_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=2e-6)
    t = torch.linspace(-quantile, quantile, 200_001, dtype=torch.float64)
    density = (1 + t * t / freedom) ** (-(freedom + 1) / 2)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    assert torch.trapezoid(density, t).item() * scale == pytest.approx(0.95, abs=1e-6)


def test_an_interval_of_two_and_the_slope_of_a_power() -> None:
    assert interval([1.0]) is None
    assert interval([1.0, 3.0]) == pytest.approx((2 - 12.706205, 2 + 12.706205), abs=1e-5)
    assert line([1, 2, 3], [5, 7, 9]) == pytest.approx((3, 2))
    assert log_slope([6, 8, 14], [3 * depth**-0.5 for depth in (6, 8, 14)]) == pytest.approx(-0.5)
    assert log_slope([1, 2], [0.0, 1.0]) is None
    assert log_slope([1, 2], [1.0, math.inf]) is None


def test_numbers_in_words_have_no_negative_zero_and_one_seed_no_median() -> None:
    assert [two_decimals(value) for value in (-0.001, 0.0, -0.005001, 1.0)] == [
        "0.00",
        "0.00",
        "-0.01",
        "1.00",
    ]
    assert estimate([-0.001]) == "0.00"
    assert estimate([1.0, 3.0]) == "2.00 [-10.71, 14.71]"
    assert (of_seeds(1), of_seeds(3)) == ("one seed", "medians of 3 seeds")


def test_arms_of_one_colour_differ_by_marker_too() -> None:
    looks = [look(number) for number in range(3 * len(COLOURS))]
    assert len({(each["color"], each["marker"]) for each in looks}) == len(looks)


def test_a_finding_goes_through_json_and_lines_up_as_text() -> None:
    finding = Finding(
        "x", ["arm", "value"], [["post", 1.23456], ["pre", math.nan]], ["arm", "n"], [["post", None]],
        ["It is so."], {"seeds": (1, 2), "rate": math.inf},
    )  # fmt: skip
    facts = as_json(finding)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["facts"] == {"seeds": [1, 2], "rate": "inf"}
    assert as_text(finding).splitlines() == [
        "arm   value", "post  1.235", "pre     nan", "", "arm   n", "post  -", "", "It is so.",
    ]  # fmt: skip


def test_equal_findings_make_equal_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    finding = Finding("x", [], [], draw=lambda figure: figure.subplots().plot([1, 2], [3, 4]))
    for name in ("a.png", "b.png", "a.svg", "a"):
        save_figure(finding, tmp_path / name)
    with pytest.raises(ConfigError, match=r"a\.bmp: a figure is a \.png, a \.svg or a \.pdf"):
        save_figure(finding, tmp_path / "a.bmp")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()


def test_without_matplotlib_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install prepost-transformer\[report\]"):
        new_figure()
    with pytest.raises(ConfigError, match="draws no figure"):
        save_figure(Finding("x", [], []), "x.png")

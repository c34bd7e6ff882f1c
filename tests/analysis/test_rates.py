"""The ramp to failure: when training counts as failed, and the rate that is told then."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from transformer.analysis.failing import (
    BLEW_UP,
    FELL_BACK,
    NOT_FINITE,
    Failure,
    Watch,
    exponential_ramp,
    linear_ramp,
)
from transformer.analysis.finding import as_json, as_text, new_figure, save_figure
from transformer.analysis.rates import MaxRate
from transformer.analysis.setting import Arm, Batch, random_batches
from transformer.analysis.steps import unigram_entropy
from transformer.core.errors import ConfigError
from transformer.core.special import PAD
from transformer.model.config import ModelConfig

LEVEL = 5.0
LEARNING = [max(6.0 - 0.1 * t, 2.0) for t in range(60)]  # from 6 to 2, where it stays


def outcome(losses: list[float], window: int = 10) -> tuple[Failure | None, int]:
    """The failure, and how many losses it took to see it."""
    watch = Watch(LEVEL, window=window)
    for seen, loss in enumerate(losses, 1):
        if failure := watch.see(loss):
            return failure, seen
    return None, len(losses)


def test_a_loss_that_falls_and_stays_low_is_no_failure() -> None:
    assert outcome(LEARNING + [2.1, 1.9] * 50) == (None, 160)


def test_a_loss_that_is_not_finite_fails_at_once() -> None:
    assert outcome([*LEARNING, math.nan]) == (Failure(61, NOT_FINITE), 61)
    assert outcome([6.0, math.inf]) == (Failure(2, NOT_FINITE), 2)


def test_a_gradient_that_is_not_finite_fails_at_once() -> None:
    assert Watch(LEVEL).see(6.0, math.inf) == Failure(1, NOT_FINITE)


def test_an_explosion_before_anything_is_learned_is_dated_at_its_first_loss() -> None:
    """The bar is 1.5 times the first loss, 9."""
    assert outcome([6.0] * 30 + [9.1] * 10) == (Failure(31, BLEW_UP), 40)
    assert outcome([6.0] * 30 + [8.9] * 10)[0] is None
    assert outcome([6.0] * 30 + [20.0] * 3 + [math.nan])[0] == Failure(31, NOT_FINITE)


def test_the_unigram_level_is_the_bar_when_the_first_loss_is_below_it() -> None:
    assert outcome([1.0] + [7.4] * 30)[0] is None


def test_a_spike_that_is_recovered_from_is_no_failure_and_one_that_lasts_is() -> None:
    assert outcome([*LEARNING, *[30.0] * 9, 2.0, *[30.0] * 9, 2.0])[0] is None
    assert outcome([*LEARNING, *[30.0] * 10]) == (Failure(61, FELL_BACK), 70)


def test_losing_half_of_what_was_learned_is_the_bar() -> None:
    """From a best of 2 back towards the level of 5: the bar is 3.5."""
    assert outcome(LEARNING + [3.49] * 30)[0] is None
    assert outcome(LEARNING + [3.51] * 10)[0] == Failure(61, FELL_BACK)


def test_a_share_may_be_chosen() -> None:
    watch = Watch(LEVEL, window=5, share=0.2)
    failures = [watch.see(loss) for loss in LEARNING + [2.61] * 5]
    assert failures[-1] == Failure(61, FELL_BACK)


def test_staying_at_the_unigram_level_is_no_failure_and_nothing_learned() -> None:
    watch = Watch(LEVEL)
    assert not any(watch.see(loss) for loss in [6.0] + [5.0] * 200)
    assert not watch.learned


def test_one_easy_batch_is_no_progress() -> None:
    """With a best of 0.1 the bar would be 2.55 and the rest of the run above it."""
    assert outcome(LEARNING + [0.1] + [2.6] * 50)[0] is None


def test_the_ramps_end_at_the_top() -> None:
    assert linear_ramp(0.05, 5) == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
    rates = exponential_ramp(1e-4, 1e-1, 3)
    assert rates == pytest.approx([1e-3, 1e-2, 1e-1])


def test_the_unigram_entropy_is_that_of_the_tokens_that_are_no_padding(batches: list[Batch]) -> None:
    two = torch.tensor([[7, 7, 8, 8], [7, 8, PAD, PAD]])
    assert unigram_entropy([(two, two, two)]) == pytest.approx(math.log(2))
    four = torch.tensor([[4, 5, 6, 7]])
    assert unigram_entropy([(four, four, four)]) == pytest.approx(math.log(4))
    assert 0 < unigram_entropy(batches) <= math.log(26)


@pytest.fixture
def batches() -> list[Batch]:
    return random_batches(2, 4, 8, 30, seed=1)


@pytest.fixture
def arm() -> Arm:
    sizes = {"d_model": 16, "heads": 2, "d_ff": 32, "encoder_layers": 1, "decoder_layers": 1}
    return Arm("tiny", ModelConfig.model_validate({**sizes, "dropout": 0.5}))


def test_too_high_a_rate_is_found(arm: Arm, batches: list[Batch]) -> None:
    """Plain descent at rates up to 1e6 must fail; what is told is the rate of the update before."""
    probe = MaxRate(optimizer="sgd", top=1e6, bottom=1e-1, steps=1200, window=5)
    finding = probe.run([arm], batches, (30, 30), [1, 2], lambda text: None)
    assert [row[1] for row in finding.rows] == [1, 2]
    for _, _, rate, update, ended, _ in finding.rows:
        assert ended in (NOT_FINITE, FELL_BACK)
        assert rate == pytest.approx(1e-1 * (1e7) ** (update / 1200))
    assert finding.summary[0][4:6] == ["2 of 2", "2 of 2"]
    (low, high), middle = sorted(row[2] for row in finding.rows), finding.summary[0][1]
    assert middle == pytest.approx((low + high) / 2)
    assert finding.summary[0][2:4] == [low, high]


def test_a_ramp_that_never_fails_gives_a_lower_bound(arm: Arm, batches: list[Batch]) -> None:
    probe = MaxRate(top=0.01, steps=100)
    finding = probe.run([arm], batches[:1], (30, 30), [1], lambda text: None)
    assert finding.rows[0][2:5] == [">=0.01", 100, "reached the top"]
    assert finding.summary[0][1] == ">=0.01"


def test_a_batch_learned_by_heart_ends_the_ramp_with_a_lower_bound(arm: Arm, batches: list[Batch]) -> None:
    """One batch is memorised at small rates; higher ones would find no gradient to fail with."""
    probe = MaxRate(top=1.0, bottom=3e-3, steps=2000)
    finding = probe.run([arm], batches[:1], (30, 30), [1], lambda text: None)
    _, _, rate, update, ended, lowest = finding.rows[0]
    assert ended == "learned by heart"
    assert update < 2000
    assert rate.startswith(">=")
    assert lowest < 0.1
    assert any("more than 1 batches" in word for word in finding.words)


def test_a_run_that_learns_nothing_has_no_largest_rate(arm: Arm, batches: list[Batch]) -> None:
    probe = MaxRate(top=1e-7, bottom=1e-9, steps=20)
    finding = probe.run([arm], batches, (30, 30), [1], lambda text: None)
    assert finding.rows[0][2] is None
    assert finding.rows[0][4] == "never learned"
    assert any("tiny 1 of 1. These runs trained at no rate" in word for word in finding.words)


def test_what_was_reached_is_told_by_the_number_that_decides(arm: Arm, batches: list[Batch]) -> None:
    """One easy batch may be below 0.95 of the level in a run that learned nothing: medians of five decide."""
    finding = MaxRate(top=1e-2, bottom=1e-5, steps=40).run(
        [arm], batches, (30, 30), [1, 2], lambda text: None
    )
    level = finding.facts["unigram_level"]
    for row, losses in zip(finding.rows, finding.facts["curves"].values(), strict=True):
        assert finding.columns[-1] == "lowest median"
        medians = [sorted(losses[i : i + 5])[2] for i in range(len(losses) - 4)]
        assert row[-1] == pytest.approx(min(medians))
        assert (row[2] is None) == (row[-1] > 0.95 * level)
    assert any("median of 5 in a row" in words for words in finding.words)


@pytest.mark.parametrize(("top", "bottom"), [(100.0, 1.0), (1e32, 1e28)])
def test_a_run_that_blows_up_before_it_learns_has_no_largest_rate(
    top: float, bottom: float, arm: Arm, batches: list[Batch]
) -> None:
    """The rate of the update before is none that trains: the loss was never below the unigram level."""
    probe = MaxRate(top=top, bottom=bottom, steps=60)
    finding = probe.run([arm], batches, (30, 30), [1, 2], lambda text: None)
    for row in finding.rows:
        assert row[4] in (BLEW_UP, NOT_FINITE)
        assert row[2] is None or row[2] == f"<{bottom * (top / bottom) ** (1 / 60):.4g}"
    assert finding.rows[0][2] is not None  # the first update of all breaks it
    assert finding.summary == [["tiny", None, None, None, "0 of 2", "2 of 2", finding.summary[0][6]]]
    assert any("tiny 2 of 2. These runs trained at no rate" in word for word in finding.words)
    pytest.importorskip("matplotlib")
    figure = new_figure()
    assert finding.draw is not None
    finding.draw(figure)
    assert [text.get_text() for text in figure.axes[1].texts] == ["none: no run learned anything"]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"bottom": 2.0, "top": 1.0}, "bottom: the ramp would fall"),
        ({"multiple": 1.0}, "multiple: 1 times"),
        ({"steps": 10}, "window: 20 updates in a row do not fit"),
    ],
)
def test_options_with_which_no_failure_could_be_told_are_refused(
    options: dict[str, float], path: str
) -> None:
    with pytest.raises(ConfigError, match=path):
        MaxRate(**options)  # type: ignore[arg-type]
    MaxRate(ramp="linear", top=1e-6)  # which has no bottom


def test_the_figure_says_what_its_curves_are(arm: Arm, batches: list[Batch]) -> None:
    pytest.importorskip("matplotlib")
    finding = MaxRate(steps=20).run([arm], batches, (30, 30), [1, 2], lambda text: None)
    figure = new_figure()
    assert finding.draw is not None
    finding.draw(figure)
    curves = figure.axes[0]
    assert "median of 5" in curves.get_ylabel()
    assert "cut at twice the unigram level" in curves.get_title(loc="left")
    assert "thin: the other seeds" in [text.get_text() for text in curves.get_legend().texts]


def test_equal_seeds_give_equal_findings_and_a_figure(arm: Arm, batches: list[Batch], tmp_path: Path) -> None:
    first, second = (
        MaxRate(steps=12, window=6).run([arm], batches, (30, 30), [3], lambda text: None) for _ in range(2)
    )
    assert as_json(first) == as_json(second)
    assert "largest rate" in as_text(first)
    path = tmp_path / "figure.png"
    save_figure(first, path)
    assert path.read_bytes().startswith(b"\x89PNG")

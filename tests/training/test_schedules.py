"""Every schedule at every warm-up: finite, positive, right at update 1, equal to its written-out formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from transformer.core.errors import ConfigError
from transformer.training.config import DEFAULT_UPDATES, TrainConfig
from transformer.training.schedules import SCHEDULES, make_schedule

LR, N, T0 = 0.5, 100, 60
WARMUPS = (0, 1, 2, 40)

# The share of the peak after the warm-up, written out here once more, in (t, warm-up).
FORMULAS: dict[str, Callable[[int, int], float]] = {
    "constant": lambda t, w: 1,
    "inverse_sqrt": lambda t, w: (w / t) ** 0.5 if w else t**-0.5,
    "inverse_sqrt_decoupled": lambda t, w: 1 if t <= T0 else (T0 / t) ** 0.5,
    "linear": lambda t, w: (N + 1 - t) / (N + 1 - max(w, 1)),
    "cosine": lambda t, w: (1 + math.cos(math.pi * (t - max(w, 1)) / (N + 1 - max(w, 1)))) / 2,
    "step": lambda t, w: 0.1 ** ((t > 50) + (t > 75)),
    "plateau": lambda t, w: 1,
}


def config(schedule: str, warmup: int, **options: object) -> TrainConfig:
    base = {"schedule": schedule, "warmup": warmup, "lr": LR, "updates": N, "timescale": T0}
    return TrainConfig.model_validate({**base, **options})


def test_every_schedule_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(SCHEDULES)


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_rate_is_finite_and_positive_and_equals_the_formula(name: str, warmup: int) -> None:
    schedule = make_schedule(config(name, warmup))
    for update in range(1, N + 1):
        rate = schedule.learning_rate(update)
        expected = LR * update / warmup if update < warmup else LR * FORMULAS[name](update, warmup)
        assert math.isfinite(rate)
        assert rate > 0
        assert rate == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_first_update_is_neither_wasted_nor_hot(name: str, warmup: int) -> None:
    first = make_schedule(config(name, warmup)).learning_rate(1)
    assert first == pytest.approx(LR / max(warmup, 1))


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_peak_is_the_learning_rate_asked_for(name: str, warmup: int) -> None:
    schedule = make_schedule(config(name, warmup))
    rates = [schedule.learning_rate(update) for update in range(1, N + 1)]
    assert max(rates) == pytest.approx(LR)
    assert rates[max(warmup, 1) - 1] == pytest.approx(LR)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_ramp_starts_at_the_initial_rate_and_never_falls(name: str) -> None:
    schedule = make_schedule(config(name, 10, warmup_init_lr=0.1))
    rates = [schedule.learning_rate(update) for update in range(1, 11)]
    assert rates == pytest.approx([0.1 + 0.04 * update for update in range(1, 11)])


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"constant"}))
def test_no_decay_goes_below_the_floor(name: str) -> None:
    schedule = make_schedule(config(name, 0, floor=0.45))
    for _ in range(50):
        schedule.observe(0.0)
    assert min(schedule.learning_rate(update) for update in range(1, N + 1)) == pytest.approx(0.45, rel=0.02)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"constant"}))
def test_an_unreasonably_long_run_still_has_positive_rates(name: str) -> None:
    many = tuple(range(1, 400))
    schedule = make_schedule(config(name, 0, updates=10**8, drops=many))
    for _ in range(2000):
        schedule.observe(0.0)
    for update in (1, 10**4, 10**8 - 1, 10**8):
        assert schedule.learning_rate(update) > 0


def test_no_warmup_starves_the_coupled_rate_and_not_the_decoupled() -> None:
    """PAPERS: at update 4000 the coupled form without warm-up is 63 times below the one with 4000."""
    at_4000 = {
        (name, warmup): make_schedule(config(name, warmup, updates=8000, timescale=4000)).learning_rate(4000)
        for name in ("inverse_sqrt", "inverse_sqrt_decoupled")
        for warmup in (0, 4000)
    }
    ratio = at_4000["inverse_sqrt", 4000] / at_4000["inverse_sqrt", 0]
    assert ratio == pytest.approx(math.sqrt(4000))
    assert at_4000["inverse_sqrt_decoupled", 4000] == at_4000["inverse_sqrt_decoupled", 0]


def test_the_two_inverse_square_roots_agree_when_the_timescale_is_the_warmup() -> None:
    coupled, decoupled = (
        make_schedule(config(name, 30, timescale=30)) for name in ("inverse_sqrt", "inverse_sqrt_decoupled")
    )
    for update in range(1, N + 1):
        assert coupled.learning_rate(update) == pytest.approx(decoupled.learning_rate(update), rel=1e-12)


def test_plateau_drops_after_its_patience_and_keeps_its_state() -> None:
    schedule = make_schedule(config("plateau", 2, plateau_patience=2, factor=0.5))
    lowered = [schedule.observe(score) for score in (1.0, 2.0, 1.5, 1.9, 1.0, 3.0, 3.0, 3.0)]
    assert lowered == [False, False, False, True, False, False, False, True]
    again = make_schedule(config("plateau", 2, plateau_patience=2, factor=0.5))
    again.load_state_dict(schedule.state_dict())
    assert again.learning_rate(9) == schedule.learning_rate(9) == LR / 4
    assert again.learning_rate(1) == LR / 2  # the ramp is not touched
    assert [again.observe(0), again.observe(0)] == [schedule.observe(0), schedule.observe(0)] == [False, True]


def test_step_drops_may_be_updates_or_shares_of_the_run() -> None:
    schedule = make_schedule(config("step", 0, drops=(0.2, 80), factor=0.5))
    rates = [schedule.learning_rate(update) for update in (20, 21, 80, 81)]
    assert rates == [LR, LR / 2, LR / 2, LR / 4]


def test_the_horizon_of_epochs_is_handed_in() -> None:
    options = TrainConfig(schedule="linear", epochs=3, warmup=0)
    assert make_schedule(options, 30).learning_rate(30) == pytest.approx(options.lr / 30)
    with pytest.raises(ConfigError, match=r"train\.updates or train\.epochs"):
        make_schedule(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear", "minutes": 5}, "needs the number of updates"),
        ({"schedule": "cosine", "minutes": 5}, "needs the number of updates"),
        ({"schedule": "step", "minutes": 5}, "share of the run"),
        ({"schedule": "linear", "updates": 100, "warmup": 100}, "leaves no update"),
        ({"schedule": "inverse_sqrt_decoupled", "warmup": 5000}, "timescale"),
        ({"lr": 1e-4, "warmup_init_lr": 1e-3}, "warm-up must not fall"),
        ({"lr": 1e-4, "floor": 1e-3}, "floor 0.001 is above lr"),
        ({"lr": 0}, "greater than 0"),
        ({"warmup": -1}, "greater than or equal to 0"),
        ({"warmup": 1.5}, "whole number"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"optimizer": "adm"}, "did you mean 'adam"),
        ({"updates": None}, "no limit is left"),
        ({"metric": "bleu", "validate_bleu": False}, "metric is bleu"),
        ({"validate_bleu": "yes"}, "boolean"),
        ({"factor": 0}, "greater than 0"),
        ({"factor": 1}, "less than 1"),
        ({"label_smooting": 0.1}, "Extra inputs"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_reason(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(options)


def test_a_run_without_a_limit_gets_the_default_one_and_any_limit_replaces_it() -> None:
    assert TrainConfig().updates == DEFAULT_UPDATES
    assert TrainConfig(minutes=3).updates is None
    assert TrainConfig.model_validate(TrainConfig(epochs=3).model_dump()) == TrainConfig(epochs=3)


def test_options_without_effect_are_named() -> None:
    options = TrainConfig(optimizer="sgd", schedule="constant", betas=(0.9, 0.999), floor=1e-5)
    assert options.unused_options() == [
        "train.betas has no effect with optimizer sgd",
        "train.floor has no effect with schedule constant",
    ]
    assert TrainConfig().unused_options() == []


def test_every_option_has_a_description() -> None:
    assert [name for name, field in TrainConfig.model_fields.items() if not field.description] == []


FREE = [name for name in SCHEDULES if not SCHEDULES[name].needs_horizon]


@pytest.mark.parametrize("name", FREE)
def test_a_warm_up_as_long_as_the_run_ends_at_the_peak(name: str) -> None:
    settings = TrainConfig(schedule=name, lr=0.5, warmup=50, updates=50, timescale=50, drops=(60,))
    rates = [make_schedule(settings).learning_rate(t) for t in range(1, 51)]
    assert rates == pytest.approx([0.5 * t / 50 for t in range(1, 51)])


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in FREE])
def test_a_warm_up_that_leaves_no_update_to_decay_is_refused_wherever_the_horizon_comes_from(
    name: str,
) -> None:
    settings = TrainConfig(schedule=name, warmup=50, updates=None, epochs=1)
    with pytest.raises(ConfigError, match="leaves no update of 50"):
        make_schedule(settings, total_updates=50)
    assert make_schedule(settings, total_updates=51).learning_rate(51) > 0


def test_a_warm_up_longer_than_the_run_is_noted() -> None:
    notes = TrainConfig(warmup=600, updates=300, schedule="inverse_sqrt").unused_options()
    assert any("longer than the run" in note for note in notes)

"""Truth tables: which runs give which verdict, and in which words."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.studies.bootstrap import BOOTSTRAPPED
from transformer.studies.cells import Cell
from transformer.studies.config import Question, Study
from transformer.studies.derived import difference
from transformer.studies.drawing import style
from transformer.studies.groups import best_of, grouped
from transformer.studies.judging import compare, judge
from transformer.studies.outcomes import Outcome
from transformer.studies.rows import draw_target
from transformer.studies.rules import RULES
from transformer.studies.tables import results
from transformer.studies.verdicts import Verdict, answer

EXPECTATIONS = ("better", "worse", "differs", "same", "no worse", "no better")
LOW, HIGH = (2.00, 2.01, 2.02), (3.00, 3.02, 3.01)  # losses
NOISY = (2.10, 1.90, 2.03)
FAILED = (None, None, None)

Scores = Sequence[float | None]


def runs(scores: Scores, seeds: Sequence[int] = (), **values: Any) -> list[Outcome]:
    """A run for each score, None for one that diverged; seeds count from 1."""
    found = []
    for seed, loss in zip(seeds or range(1, len(scores) + 1), scores, strict=True):
        cell = Cell(f"{values}-{seed}", {}, Path("nowhere"), seed, values)
        status = "diverged" if loss is None else "completed"
        result = {
            "status": status,
            "valid_loss": loss,
            "valid_bleu": None if loss is None else 50 - 10 * loss,
        }
        curve = [] if loss is None else [(100, loss + 1.0), (200, loss)]
        found.append(
            Outcome(cell, status, loss is None, curve, [(1, 9.0)], {}, 200, 1.0, 10, result, target=2.5)
        )
    return found


def asked(expect: str, margin: float = 0.0, over: str = "each", **more: Any) -> Question:
    said = {"this": {"arm": "a"}, "that": {"arm": "b"}, "margin": margin, "over": over}
    return Question.model_validate({"ask": "?", "expect": expect, **said, **more})


def verdict(expect: str, these: Scores, those: Scores, margin: float = 0.0) -> Verdict:
    """The answer to a question, which may be of equality only with a margin: there 0 is the smallest one."""
    if expect in ("same", "no worse", "no better"):
        margin = margin or 1e-9
    return answer(asked(expect, margin), [*runs(these, arm="a"), *runs(those, arm="b")])


def judged(expect: str, these: Scores, those: Scores, margin: float) -> tuple[str, str]:
    """Verdict and reason below the question, where the margin may be 0 whatever is expected."""
    (this,), (that,) = grouped(runs(these, arm="a")), grouped(runs(those, arm="b"))
    return judge(expect, compare("", this, that, "valid_loss", margin))


YES, NO, OPEN = "reproduced", "not reproduced", "not testable"


@pytest.mark.parametrize(
    ("these", "those", "margin", "expected"),
    [
        # better, worse, differs, same, no worse, no better
        (LOW, HIGH, 0.0, (YES, NO, YES, NO, YES, NO)),
        (HIGH, LOW, 0.0, (NO, YES, YES, NO, NO, YES)),
        (LOW, HIGH, 0.5, (YES, NO, YES, NO, YES, NO)),
        (LOW, HIGH, 5.0, (NO, NO, NO, YES, YES, YES)),
        (NOISY, LOW, 0.0, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        (NOISY, LOW, 0.1, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        (NOISY, LOW, 0.5, (NO, NO, NO, YES, YES, YES)),
        (LOW, LOW, 0.0, (NO, NO, NO, YES, YES, YES)),
        (FAILED, LOW, 0.0, (NO, YES, YES, NO, NO, YES)),
        (LOW, FAILED, 0.0, (YES, NO, YES, NO, YES, NO)),
        (FAILED, FAILED, 0.0, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        ((2.0, None, None), LOW, 9.0, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        ((2.0,), (3.0,), 0.0, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        ((None, None), (2.0, 2.0), 0.0, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        (NOISY[:2], LOW[:2], 0.0, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        ((None,) * 6, (2.0,) * 5 + (None,), 0.0, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),  # 5 pairs tell
        ((None,) * 6, (2.0, 2.0) + (None,) * 4, 0.0, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        ((None,) * 5 + (3.0,), (2.0,) * 6, 0.0, (NO, YES, YES, NO, NO, YES)),
        ((None,) * 5 + (1.0,), (2.0,) * 6, 0.0, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        # with a margin the sign test counts divergence, and what differs by more
        ((None,) + (2.0001,) * 5, (2.0,) * 6, 0.5, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        ((None,) + (2.6,) * 5, (2.0,) * 6, 0.5, (NO, YES, YES, NO, NO, YES)),
        ((None,) + (2.2,) * 8, (2.0,) * 9, 0.5, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        # two seeds show nothing, and seeds that are all alike no more than the sign test
        (LOW[:2], LOW[:2], 0.0, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        ((2.0, 2.0000001), (3.0, 3.0000002), 0.1, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        ((2.0, 2.1, 2.3), (2.1, 2.2, 2.4), 0.0, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        ((2.0, 2.1, 2.3), (2.1, 2.2, 2.4), 0.5, (OPEN, OPEN, OPEN, OPEN, OPEN, OPEN)),
        ((2.0, 2.1, 2.3) * 2, (2.1, 2.2, 2.4) * 2, 0.0, (YES, NO, YES, NO, YES, NO)),
        ((2.0, 2.1, 2.3) * 2, (2.1, 2.2, 2.4) * 2, 0.5, (NO, NO, NO, YES, YES, YES)),
    ],
)
def test_each_expectation_has_its_verdict(
    these: Scores, those: Scores, margin: float, expected: tuple[str, ...]
) -> None:
    table = dict(zip(EXPECTATIONS, expected, strict=True))
    assert {expect: judged(expect, these, those, margin)[0] for expect in EXPECTATIONS} == table
    assert {expect: verdict(expect, these, those, margin).verdict for expect in EXPECTATIONS} == table


@pytest.mark.parametrize(
    ("expect", "these", "those", "words"),
    [
        ("better", NOISY, LOW, "not significant (p = 1.00): the seeds do not decide"),
        ("better", LOW, LOW, "not significant (p = 1)"),
        ("worse", FAILED, LOW, "diverged 3 of 3 against 0 of 3"),
        ("better", FAILED, FAILED, "nothing to compare"),
        ("better", (2.0,), (3.0,), "1 seed in common: fewer than 3 are too few"),
        ("better", NOISY[:2], LOW[:2], "2 seeds in common: fewer than 3 are too few"),
        ("better", FAILED[:2], LOW[:2], "diverged 2 of 2 against 0 of 2; 2 seeds in common"),
        (
            "better",
            (2.0, 2.1, 2.3),
            (2.1, 2.2, 2.4),
            "by the sign test not significant (p = 0.25), and so few",
        ),
        ("better", (1.0, None), (None, None), "2 seeds in common"),
        ("worse", (None, None, None, 2.0), (2.0,) * 4, "0 better and 3 worse, by the sign test not"),
        ("better", HIGH, LOW, "the other way round"),
        ("same", NOISY, LOW, "is neither shown nor ruled out: the seeds do not decide"),
    ],
)
def test_the_verdict_is_said_in_words(expect: str, these: Scores, those: Scores, words: str) -> None:
    assert words in verdict(expect, these, those).words


@pytest.mark.parametrize("expect", ["same", "no worse", "no better"])
def test_without_a_margin_equality_is_not_shown_and_not_asked(expect: str) -> None:
    found, why = judged(expect, NOISY, LOW, 0.0)
    assert found == OPEN
    assert "without a margin that does not show equality" in why
    with pytest.raises(ValueError, match="say which difference counts as none"):
        asked(expect, 0.0)


@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
def test_a_clean_split_counts_from_three_seeds_on(seeds: int) -> None:
    found = verdict("worse", FAILED[:1] * seeds, (2.0, 2.1, 2.2, 2.3)[:seeds])
    assert found.verdict == (YES if seeds >= 3 else OPEN)


def test_more_of_a_score_is_better_and_more_of_a_loss_is_worse() -> None:
    outcomes = [*runs(LOW, arm="a"), *runs(HIGH, arm="b")]
    assert answer(asked("better"), outcomes, "valid_loss").verdict == YES
    assert answer(asked("better"), outcomes, "valid_bleu").verdict == YES
    assert answer(asked("better", metric="valid_bleu"), outcomes).comparisons[0].metric == "valid_bleu"


def test_not_to_reach_the_target_is_worse_than_to_reach_it() -> None:
    found = answer(asked("better"), [*runs(LOW, arm="a"), *runs(HIGH, arm="b")], "updates_to_target")
    assert found.verdict == YES
    assert "missed the target 0 of 3 against 3 of 3" in found.words
    (comparison,) = found.comparisons
    assert comparison.scores[0][1] == pytest.approx(150)  # from 3.0 at 100 to 2.0 at 200: 2.5 between


@given(st.permutations(range(6)), st.integers(0, 2**32))
def test_the_order_of_outcomes_and_the_names_of_seeds_do_not_matter(order: list[int], salt: int) -> None:
    outcomes = [*runs(NOISY, arm="a"), *runs(LOW, arm="b")]
    told = answer(asked("better"), outcomes)
    assert answer(asked("better"), [outcomes[i] for i in order]) == told
    names = random.Random(salt).sample(range(1000), 3)
    renamed = answer(asked("better"), [*runs(NOISY, names, arm="a"), *runs(LOW, names, arm="b")])
    assert (renamed.verdict, renamed.words) == (told.verdict, told.words)


@given(st.lists(st.floats(0.5, 9.5), min_size=3, max_size=5))
def test_identical_arms_are_never_told_apart(losses: list[float]) -> None:
    for expect in ("better", "worse", "differs"):
        found = verdict(expect, losses, losses)
        assert found.verdict == NO
        assert "not significant" in found.words


def grid(arms: Mapping[str, Mapping[float, Scores]]) -> list[Outcome]:
    by_rate = [(arm, rate, scores) for arm, held in arms.items() for rate, scores in held.items()]
    return [run for arm, rate, scores in by_rate for run in runs(scores, arm=arm, **{"train.lr": rate})]


def test_over_each_some_of_each_is_mixed_and_settings_are_named() -> None:
    outcomes = grid({"a": {1e-3: LOW, 1e-2: HIGH}, "b": {1e-3: HIGH, 1e-2: LOW}})
    found = answer(asked("better"), outcomes)
    assert found.verdict == "mixed"
    assert "reproduced at rate 1e-3" in found.words
    assert "not reproduced at rate 1e-2" in found.words


def test_settings_that_cannot_be_tested_do_not_count() -> None:
    outcomes = grid({"a": {1e-3: LOW, 1e-2: FAILED}, "b": {1e-3: HIGH, 1e-2: FAILED}})
    found = answer(asked("better"), outcomes)
    assert found.verdict == YES
    assert "not testable at rate 1e-2" in found.words


def test_over_each_p_values_are_holms() -> None:
    rates = [10.0**-k for k in range(1, 9)]
    close = (2.05, 2.06, 2.09)  # against LOW: p = 0.03 alone
    outcomes = grid({"a": dict.fromkeys(rates, LOW), "b": dict.fromkeys(rates, close)})
    found = answer(asked("better"), outcomes)
    assert verdict("better", LOW, close).verdict == YES
    assert found.verdict == OPEN
    assert found.comparisons[0].adjusted == pytest.approx(8 * (found.comparisons[0].p or 0))


def test_clean_splits_of_several_settings_take_more_seeds() -> None:
    """2 / 4^n: of two settings three seeds give 2 * 0.031, and four 2 * 0.0078."""
    for seeds, expected in ((3, OPEN), (4, YES)):
        held = dict.fromkeys((1e-3, 1e-2), (None,) * seeds), dict.fromkeys((1e-3, 1e-2), (2.0,) * seeds)
        found = answer(asked("worse"), grid({"a": held[0], "b": held[1]}))
        assert found.verdict == expected
        assert f"diverged {seeds} of {seeds} against 0 of {seeds}" in found.words
        assert [c.adjusted for c in found.comparisons] == [pytest.approx(4 / 4.0**seeds)] * 2
    assert (
        "so many settings at once take more seeds"
        in answer(
            asked("worse"),
            grid({"a": dict.fromkeys((1e-3, 1e-2), FAILED), "b": dict.fromkeys((1e-3, 1e-2), LOW)}),
        ).words
    )


def test_one_testable_setting_of_several_is_said_to_be_one() -> None:
    arms = {"a": {1e-3: LOW, 1e-2: FAILED, 1e-1: FAILED}, "b": {1e-3: HIGH, 1e-2: FAILED, 1e-1: FAILED}}
    found = answer(asked("better"), grid(arms))
    assert found.verdict == YES
    assert found.words.startswith("at 1 of 3 settings; reproduced at rate 1e-3")
    mixed = answer(asked("better"), grid({"a": {1e-3: LOW, 1e-2: HIGH}, "b": {1e-3: HIGH, 1e-2: LOW}}))
    assert mixed.words.startswith("reproduced at 1 of 2 settings; ")


def completed(scores: Sequence[float | None], **values: Any) -> list[Outcome]:
    """Runs that came to their end, with this loss in result.json."""
    found = runs([2.0] * len(scores), **values)
    for run, loss in zip(found, scores, strict=True):
        object.__setattr__(run, "result", {"status": "completed", "valid_loss": loss})
    return found


@pytest.mark.parametrize("loss", [math.nan, math.inf, None])
def test_a_completed_run_without_a_finite_loss_counts_as_diverged(loss: float | None) -> None:
    found = answer(asked("worse"), [*completed([loss, 2.0, 2.1], arm="a"), *runs(LOW, arm="b")])
    assert found.verdict == OPEN
    assert "diverged 1 of 3 against 0 of 3" in found.words
    assert found.notes == ["no finite validation loss, counted as diverged: a, seed 1"]


def test_seeds_that_did_not_measure_the_metric_are_named() -> None:
    outcomes = [*runs((2.0, 2.01, 2.02, 2.03), arm="a"), *runs((3.0, 3.02, 3.01, 3.03), arm="b")]
    object.__setattr__(outcomes[1], "result", {"status": "completed", "valid_loss": 2.0, "valid_bleu": None})
    found = answer(asked("better", metric="valid_bleu"), outcomes)
    assert found.comparisons[0].seeds == [1, 3, 4]
    assert found.notes == ["no validation BLEU, left out: a, seed 2"]


def test_tuning_is_among_settings_with_all_seeds() -> None:
    lucky = grid({"a": {1e-3: (1.0,)}})
    outcomes = [*lucky, *grid({"a": {1e-2: LOW}, "b": {1e-3: HIGH, 1e-2: LOW}})]
    found = answer(asked("better", over="best"), outcomes)
    assert found.comparisons[0].this.values["train.lr"] == 1e-2
    assert any("not tuned over, with fewer seeds than others of a: rate 1e-3" in n for n in found.notes)
    unmeasured = completed([1.0, 1.0, 1.0], arm="a", **{"train.lr": 1e-3})
    object.__setattr__(unmeasured[0], "result", {"status": "completed"})
    best = best_of(grouped([*unmeasured, *grid({"a": {1e-2: LOW}})]))
    assert best is not None
    assert best.values["train.lr"] == 1e-2


def test_unequal_numbers_of_tries_are_told() -> None:
    outcomes = grid({"a": {1e-3: LOW}, "b": {1e-3: HIGH, 1e-2: LOW}})
    told = "settings tried: 1 for a, 2 for b; the best of more looks better by chance alone"
    assert told in answer(asked("better", over="best"), outcomes).notes
    equal = grid({"a": {1e-3: LOW, 1e-2: HIGH}, "b": {1e-3: HIGH, 1e-2: LOW}})
    assert not any("settings tried" in note for note in answer(asked("better", over="best"), equal).notes)


@pytest.mark.parametrize(
    ("these", "words"),
    [
        ((1.99981, 2.00980, 2.01980), "0.00020 better (95 % interval 0.00018 to 0.00021)"),
        ((1.9, 1.91, 1.93), "0.097 better (95 % interval 0.082 to 0.111)"),
    ],
)
def test_a_small_difference_is_said_with_the_digits_it_needs(these: Scores, words: str) -> None:
    assert words in verdict("better", these, LOW).words


def test_no_bootstrap_is_told_where_there_are_too_many_settings() -> None:
    rates = [10.0**-k for k in range(1, BOOTSTRAPPED + 2)]
    outcomes = grid({"a": dict.fromkeys(rates, LOW), "b": dict.fromkeys(rates, HIGH)})
    assert answer(asked("better"), outcomes).notes == []
    for run in outcomes:
        object.__setattr__(run, "tests", {"news": {"bleu": 1.0}})
    assert answer(asked("better"), outcomes).notes == [
        "no bootstrap over sentences: 5 settings, and at most 4 are"
    ]


def test_the_rules_say_what_is_measured_and_what_is_not_corrected_for() -> None:
    rules = " ".join(RULES)
    for words in (
        "its best validation loss",
        "It is not the last one",
        "more tries",
        "number of questions",
    ):
        assert words in rules


def test_over_best_each_arm_has_its_own_best_rate() -> None:
    outcomes = grid({"a": {1e-4: LOW, 1e-3: FAILED, 1e-2: HIGH}, "b": {1e-4: HIGH, 1e-3: LOW, 1e-2: HIGH}})
    found = answer(asked("same", 0.1, "best"), outcomes)
    assert found.verdict == YES
    assert "rate 1e-4 for a; rate 1e-3 for b" in found.notes[0]
    assert any("best rate of a is the lowest tried" in note for note in found.notes)
    assert not any("best rate of b is" in note for note in found.notes)


def test_the_best_setting_is_chosen_on_validation_loss_whatever_is_compared() -> None:
    outcomes = grid({"a": {1e-3: LOW, 1e-2: HIGH}, "b": {1e-3: LOW, 1e-2: HIGH}})
    for run in outcomes:  # the score on the test set says the opposite
        loss = run.result["valid_loss"]
        object.__setattr__(run, "tests", {"news": {"bleu": 10 * loss}})
    found = answer(asked("same", 1.0, "best", metric="test.news.bleu"), outcomes)
    assert found.comparisons[0].this.values["train.lr"] == 1e-3


def test_one_diverged_seed_disqualifies_a_rate_that_has_a_rival() -> None:
    lucky = (1.0, 1.0, None)
    outcomes = grid({"a": {1e-3: lucky, 1e-2: HIGH}, "b": {1e-3: LOW, 1e-2: HIGH}})
    found = answer(asked("worse", 0.0, "best"), outcomes)
    assert found.comparisons[0].this.values["train.lr"] == 1e-2


def test_numbers_written_as_text_are_the_same_setting() -> None:
    outcomes = [*runs(LOW, arm="a", **{"train.lr": "1e-3"}), *runs(HIGH, arm="b", **{"train.lr": 0.001})]
    assert answer(asked("better"), outcomes).verdict == YES


def test_missing_cells_are_named_where_the_question_needs_them() -> None:
    outcomes = runs(LOW, arm="a")
    missing = [Cell(f"{arm}, seed 1", {}, Path(), 1, {"arm": arm}) for arm in ("b", "c")]
    found = answer(asked("better"), outcomes, missing=missing)
    assert found.verdict == OPEN
    assert found.words == "no finished run: b"
    assert found.notes == ["not finished: b, seed 1"]


def test_numbers_are_plain_values() -> None:
    (numbers,) = verdict("better", (2.0, 2.1, 2.3), HIGH).numbers
    assert numbers["gain"] == pytest.approx(3.01 - 6.4 / 3)
    assert numbers["interval"][0] < numbers["gain"] < numbers["interval"][1]
    assert numbers["this"]["scores"] == {"1": 2.0, "2": 2.1, "3": 2.3}
    assert numbers["verdict"] == YES


def sweep(losses: Mapping[float, Scores], arm: str) -> list[Outcome]:
    """Runs of an arm at each rate; 9.0 is the loss of all at initialisation."""
    return [run for rate, scores in losses.items() for run in runs(scores, arm=arm, **{"train.lr": rate})]


def ranged(expect: str, *sweeps: Sequence[Outcome], target: float = 4.0, **more: Any) -> Verdict:
    outcomes = [run for sweep in sweeps for run in sweep]
    return answer(asked(expect, metric="lr_range", **more), outcomes, target=target)


WIDE = {1e-3: (3.0, 3.1, 3.2), 1e-2: (2.0, 2.0, 2.0), 1e-1: (5.0, 6.0, 5.5)}


def test_the_range_of_workable_rates_is_compared_seed_by_seed() -> None:
    """By hand: from 2.0 to a loss of y > 4 a decade on, (4 - 2) / (y - 2) of the decade is workable."""
    narrow = {1e-3: (8.0, 8.0, 6.0), 1e-2: (2.0, 2.0, 2.0), 1e-1: (None, None, 12.0)}
    found = ranged("better", sweep(WIDE, "a"), sweep(narrow, "b"))
    (comparison,) = found.comparisons
    assert comparison.scores[0] == pytest.approx({1: 1 + 2 / 3, 2: 1.5, 3: 1 + 2 / 3.5})
    failed = 2 / 7  # a diverged run counts as 9.0, and so does a loss above it
    assert comparison.scores[1] == pytest.approx({1: 1 / 3 + failed, 2: 1 / 3 + failed, 3: 0.5 + failed})
    assert comparison.failed == (0, 0)
    assert found.verdict == YES
    assert "train.lr" not in found.numbers[0]["this"]
    assert found.notes == ["the range of a reaches the lowest rate tried: it may be wider"]
    assert ranged("worse", sweep(WIDE, "a"), sweep(narrow, "b")).verdict == NO


def test_an_arm_that_works_nowhere_has_no_range_whatever_it_began_with() -> None:
    nowhere = {rate: (None, 8.9, 8.0) for rate in WIDE}
    found = ranged("better", sweep(WIDE, "a"), sweep(nowhere, "b"))
    assert found.comparisons[0].failed == (0, 3)
    assert "worked at no rate 0 of 3 against 3 of 3" in found.words
    assert found.verdict == YES
    everywhere = {rate: (2.0, 2.0, 2.0) for rate in WIDE}
    assert ranged("better", sweep(everywhere, "a"), sweep(nowhere, "b")).verdict == YES
    later = sweep(nowhere, "b")
    for run in later:
        object.__setattr__(run, "train_curve", [(1, 20.0)])
    assert ranged("better", sweep(WIDE, "a"), later).words == found.words


def test_ranges_over_other_rates_are_not_compared() -> None:
    fewer = {rate: WIDE[rate] for rate in (1e-3, 1e-2)}
    found = ranged("differs", sweep(WIDE, "a"), sweep(fewer, "b"))
    assert found.verdict == OPEN
    assert "no range of workable rates (decades), left out: b, seed 1; b, seed 2; b, seed 3" in found.notes
    unfinished = {**WIDE, 1e-1: (5.0, 6.0)}
    assert ranged("differs", sweep(WIDE, "a"), sweep(unfinished, "b")).comparisons[0].seeds == [1, 2]


def test_two_arms_that_work_at_every_rate_are_not_the_same_for_that() -> None:
    both = {rate: (2.0, 2.1, 2.2) for rate in WIDE}
    found = ranged("same", sweep(both, "a"), sweep(both, "b"), margin=0.1)
    assert found.verdict == OPEN
    assert "both work at every rate tried: 1, 2, 3 of the seeds" in found.notes
    one = {**both, 1e-1: (5.0, 5.0, 2.2)}
    assert ranged("better", sweep(both, "a"), sweep(one, "b")).comparisons[0].seeds == [1, 2]


def test_a_target_above_where_the_runs_began_says_so() -> None:
    found = ranged("better", sweep(WIDE, "a"), sweep(WIDE, "b"), target=9.5)
    assert found.verdict == OPEN
    assert any("a run began at a loss of 9, below the target" in note for note in found.notes)


def test_the_range_is_asked_of_the_arm_that_trains_best() -> None:
    """Over best, what else varies is tuned by the best loss at any rate, as ever; not by the range."""
    flat = {1e-3: (3.9, 3.9, 3.8), 1e-2: (3.7, 3.8, 3.9)}
    good = {1e-3: (6.0, 6.1, 6.2), 1e-2: (2.0, 2.0, 2.0)}
    arms = [*((1, flat, "a"), (2, good, "a")), (1, good, "b")]
    outcomes = [with_value(run, width=width) for width, losses, arm in arms for run in sweep(losses, arm)]
    assert ranged("differs", outcomes, over="best").comparisons[0].this.values["width"] == 2


def test_a_difference_is_compared_with_another_difference() -> None:
    """At width 1 arm a is worse than b by 1.0, at width 2 by 0.1: by 0.9 more, within seeds."""
    tables = {1: ((3.0, 3.1, 3.2), (2.0, 2.11, 2.19)), 2: ((2.1, 2.2, 2.3), (2.0, 2.1, 2.2))}
    outcomes = [
        with_value(run, width=width)
        for width, (ours, theirs) in tables.items()
        for run in (*runs(ours, arm="a"), *runs(theirs, arm="b"))
    ]
    sides = {"this": {"arm": "a", "width": 1}, "that": {"arm": "b", "width": 1}}
    against = {"this": {"arm": "a", "width": 2}, "that": {"arm": "b", "width": 2}}
    question = asked("worse", over="best", **sides, against=against)
    found = answer(question, outcomes)
    assert found.verdict == YES
    assert found.comparisons[0].scores[0] == pytest.approx({1: 1.0, 2: 0.99, 3: 1.01})
    assert found.numbers[0]["gain"] == pytest.approx(-0.9)
    assert found.words.startswith("width 1 against width 2, as differences: 1.000 against 0.100")
    turned = answer(asked("worse", over="best", **against, against=sides), outcomes)
    assert turned.verdict == NO
    without = [run for run in outcomes if run.cell.values != {"arm": "b", "width": 2}]
    assert answer(question, without).words == "no finished run: b, width 2"


def test_a_run_that_failed_within_a_difference_counts_or_is_named() -> None:
    """Of the first pair: this failed at seed 1, that at seed 2, both at seed 3. Of the second: this at 4."""
    ours = {1: (None, 3.0, None, 3.0, 3.1, 3.2, 3.3), 2: (2.1, 2.2, 2.1, None, 2.2, 2.1, 2.2)}
    theirs = {1: (2.0, None, None, 2.0, 2.1, 2.2, 2.3), 2: (2.0, 2.1, 2.0, 2.0, 2.1, 2.0, 2.1)}
    outcomes = [
        with_value(run, width=width)
        for width in (1, 2)
        for run in (*runs(ours[width], arm="a"), *runs(theirs[width], arm="b"))
    ]
    sides = {"this": {"arm": "a", "width": 1}, "that": {"arm": "b", "width": 1}}
    against = {"this": {"arm": "a", "width": 2}, "that": {"arm": "b", "width": 2}}
    found = answer(asked("worse", over="best", **sides, against=against), outcomes)
    (comparison,) = found.comparisons
    assert comparison.seeds == [1, 4, 5, 6, 7]
    assert comparison.failed == (1, 1)
    assert comparison.signs == (1, 4)
    assert found.notes[-1] == "no validation loss, left out: width 1, seed 2; width 1, seed 3"


def with_value(run: Outcome, **values: Any) -> Outcome:
    return replace(run, cell=replace(run.cell, values={**run.cell.values, **values}))


def reaching(curves: Sequence[Sequence[tuple[int, float]]], arm: str) -> list[Outcome]:
    return [
        replace(run, curve=list(curve))
        for run, curve in zip(runs([1.0] * len(curves), arm=arm), curves, strict=True)
    ]


AT_ONCE, SOON, LATE = [(50, 2.4), (100, 1.0)], [(50, 3.5), (100, 2.5)], [(50, 9.0), (100, 3.5), (200, 2.5)]


def test_what_both_reach_by_their_first_validation_tells_nothing() -> None:
    """One may have been there at update 1, the other at 49: they are not the same for that."""
    arms = [*reaching([AT_ONCE] * 3, "a"), *reaching([AT_ONCE] * 3, "b")]
    found = answer(asked("same", 25), arms, "updates_to_target")
    assert found.verdict == OPEN
    assert "both are at the target by their first validation, left out: 1, 2, 3 of the seeds" in found.notes


def test_what_one_reaches_by_its_first_validation_is_a_bound_and_is_said_to_be() -> None:
    arms = [*reaching([AT_ONCE, AT_ONCE, SOON, AT_ONCE], "a"), *reaching([LATE, LATE, LATE, AT_ONCE], "b")]
    found = answer(asked("better"), arms, "updates_to_target")
    (comparison,) = found.comparisons
    assert comparison.seeds == [1, 2, 3]
    assert found.words.startswith("≤ 67 against 200, 133 better")
    both, one = found.notes
    assert both == "both are at the target by their first validation, left out: 4 of the seeds"
    assert one.endswith("by its first validation with seed 1, 2: the difference is at least so large")


def test_a_bound_against_a_failure_needs_no_note() -> None:
    never = [(50, 9.0), (100, 3.5)]
    arms = [*reaching([AT_ONCE] * 3, "a"), *reaching([never] * 3, "b")]
    found = answer(asked("better"), arms, "updates_to_target")
    assert (found.verdict, found.notes) == (YES, [])


def test_a_difference_of_bounds_is_not_known() -> None:
    (this,), (that,) = grouped(reaching([AT_ONCE, SOON], "a")), grouped(reaching([LATE, LATE], "b"))
    found = difference(this, that, "updates_to_target")
    assert (found.scores("updates_to_target"), found.unmeasured("updates_to_target")) == ({2: -100.0}, [1])


def test_tables_and_figures_show_a_bound_as_one() -> None:
    groups = grouped([*reaching([AT_ONCE, SOON], "a"), *reaching([LATE, LATE], "b")])
    table = results(Study(name="s", base="b", target=2.5), groups)
    assert [row[-1] for row in table.rows] == ["≤ 75", "200 ± 0"]
    with style():
        drawn = draw_target(Study(name="s", base="b", target=2.5), groups)
    assert drawn is not None
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["≤ 75", "200"]

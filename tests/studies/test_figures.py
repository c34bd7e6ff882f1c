"""What a reader of a figure would see: nothing cut off or written over, no point outside its axes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from transformer.studies.cells import Cell
from transformer.studies.config import ARM, Question, Study
from transformer.studies.drawing import fold, lines_of, panels_of, style
from transformer.studies.figures import draw_curves, draw_rates, pictures
from transformer.studies.grids import draw_grid
from transformer.studies.groups import grouped
from transformer.studies.outcomes import Outcome
from transformer.studies.rows import MOST_ROWS, draw_bleu, draw_divergence, draw_gains, draw_target
from transformer.studies.verdicts import answer

pytest.importorskip("matplotlib")

LONG = "a label that says a great deal about what this arm does and why it is here, number {}, for review"
RATES = [1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2]


def made(values: Mapping[str, Any], seed: int, loss: float | None) -> Outcome:
    """A run that ended at this loss, or that diverged after its second validation."""
    updates = range(100, 301 if loss is None else 1001, 100)
    curve = [(u, (loss or 5.5) + 4 * math.exp(-u / 200)) for u in updates]
    curve = [*curve[:-1], (curve[-1][0], math.nan if loss is None else loss)]
    status = "diverged" if loss is None else "completed"
    bleu = {"bleu": 60 - 10 * (loss or 0.0), "chrf": 50.0}
    tests = {} if loss is None else {f"a test set of news, number {i}": bleu for i in range(3)}
    result = {"status": status, "valid_loss": loss, "device": "cpu", "seconds": 7.0}
    cell = Cell("cell", {}, Path("nowhere"), seed, values)
    return Outcome(
        cell=cell,
        status=status,
        diverged=loss is None,
        curve=curve,
        train_curve=[(1, 9.0), *curve],
        tests=tests,
        updates=1000,
        seconds=7.0,
        parameters=1234,
        result=result,
        config={**values, "seed": seed},
        target=3.4,
    )


def all_of(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Every setting of some axes, by the last words of their keys."""
    names = {"arm": ARM, "warmup": "train.warmup", "lr": "train.lr"}
    settings: list[dict[str, Any]] = [{}]
    for name, values in axes.items():
        settings = [{**held, names[name]: value} for held in settings for value in values]
    return settings


def runs(settings: Sequence[Mapping[str, Any]], seeds: Sequence[int] = (1, 2, 3)) -> list[Outcome]:
    """Losses that differ by setting and seed; at 1e-2, all seeds but the first diverge."""
    return [
        made(s, seed, None if s.get("train.lr") == 1e-2 and seed > 1 else 3 + 0.1 * (i % 7) + 0.01 * seed)
        for i, s in enumerate(settings)
        for seed in seeds
    ]


def asked(this: Mapping[str, Any], that: Mapping[str, Any], over: str = "each", **more: Any) -> Question:
    facts = {"ask": "Which?", "this": this, "that": that, "expect": "better", "over": over, **more}
    return Question.model_validate(facts)


def texts_of(figure: Any) -> list[Any]:
    """Every text that is seen, laid out."""
    figure.canvas.draw()
    found = []
    for axes in figure.axes:
        if axes.get_visible():
            found += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def check(figure: Any) -> None:
    """No text leaves the figure or touches another, every panel has room, every text is dark enough."""
    texts = texts_of(figure)
    boxes = [text.get_window_extent() for text in texts]
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in zip(texts, boxes, strict=True):
        inside = box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1
        assert inside, (text.get_text(), box)
        assert contrast(text.get_color()) >= 4.5, text.get_text()
    for (one, first), (two, second) in combinations(zip(texts, boxes, strict=True), 2):
        shared_x = min(first.x1, second.x1) - max(first.x0, second.x0)
        shared_y = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert shared_x <= 1 or shared_y <= 2, (one.get_text(), two.get_text())
    for axes in figure.axes:
        if axes.get_visible():
            assert axes.bbox.height > 30, axes.bbox
            assert axes.get_label() == "<colorbar>" or axes.bbox.width > 200, axes.bbox


def contrast(colour: Any, ground: Any = "white") -> float:
    """WCAG 2.1: 4.5 is the least for text."""
    from matplotlib.colors import to_rgb

    def luminance(given: Any) -> float:
        linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in to_rgb(given)]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


STUDIES = {
    "two arms": all_of(arm=["post", "pre"], warmup=[0, 100], lr=[1e-3, 3e-3, 1e-2]),
    "long names": all_of(arm=[LONG.format(i) for i in range(4)], lr=[1e-3, 3e-3, 1e-2]),
    "long names, warm-up": all_of(arm=[LONG.format(i) for i in range(4)], warmup=[0, 9], lr=[1e-3, 1e-2]),
    "foreign names": all_of(arm=["日本語", "$x_1$ and $", "Größe µ ✓", "W" * 90, "🙂"], lr=[1e-3, 1e-2]),
    "nine rates": all_of(arm=["post", "pre"], warmup=[0, 50, 100, 150, 200], lr=RATES),
    "ten arms": all_of(arm=[f"arm {i}" for i in range(10)], lr=[1e-3, 1e-2]),
    "twelve arms": all_of(arm=[f"arm {i}" for i in range(12)], lr=[1e-3, 3e-3, 1e-2]),
}


@cache
def drawn(name: str) -> dict[str, Any]:
    """Every figure of a study but the questions', by name."""
    groups = grouped(runs(STUDIES[name]), STUDIES[name])
    study = Study.model_validate({"name": "x", "base": "x.yaml", "axes": {"seed_": [1]}, "target": 3.4})
    with style():
        found = {
            "grid": draw_grid(groups),
            "rates": draw_rates(groups),
            "divergence": draw_divergence(groups),
            "curves": draw_curves(groups),
            "target": draw_target(study, groups),
            "bleu": draw_bleu(groups),
        }
    return {name: held[0] for name, held in found.items() if held}


# The others are less crowded forms of these.
CROWDED = ("foreign names", "nine rates", "twelve arms")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in CROWDED else pytest.mark.slow) for n in STUDIES]
)
def test_no_text_is_cut_off_or_written_over_another(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Warnings are errors here: matplotlib warns of a missing letter and of a layout that collapses."""
    with caplog.at_level(logging.WARNING):
        for figure in drawn(name).values():
            check(figure)
    assert not caplog.records


def test_texts_of_a_heat_map_stay_in_their_cells() -> None:
    figure = drawn("nine rates")["grid"]
    figure.canvas.draw()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent().transformed(axes.transData.inverted())
            x, y = (round(place) for place in text.get_position())
            assert box.x0 > x - 0.5, text.get_text()
            assert box.x1 < x + 0.5, text.get_text()
            assert box.y0 > y - 0.5, text.get_text()
            assert box.y1 < y + 0.5, text.get_text()
        faces = [patch.get_facecolor() for patch in axes.patches if patch.get_fill()]
        assert all(contrast("black", face) > 4.5 for face in faces)


def test_every_point_of_a_gain_is_within_its_axes_even_with_one_seed() -> None:
    settings = all_of(arm=["post", "pre"], lr=[1e-3, 3e-3])
    for seeds in ([1], [1, 2], [1, 2, 3]):
        verdict = answer(asked({ARM: "post"}, {ARM: "pre"}), runs(settings, seeds))
        with style():
            found = draw_gains([verdict])
        assert found is not None
        (axes,) = found[0].axes
        low, high = axes.get_xlim()
        places = [float(x) for line in axes.lines if line.get_marker() == "o" for x in line.get_xdata()]
        assert len(places) == 2
        assert all(low < place < high for place in places)
        assert min(abs(place) for place in places) > 0.03 * high


def test_a_panel_without_an_amount_has_neither_band_nor_scale() -> None:
    outcomes = [made({ARM: arm}, seed, loss) for arm, loss in (("a", 3.0), ("b", None)) for seed in (1, 2, 3)]
    question = asked({ARM: "a"}, {ARM: "b"}, margin=0.1)
    with style():
        found = draw_gains([answer(question, outcomes)])
        assert found is not None
        check(found[0])
    (axes,) = found[0].axes
    assert (list(axes.patches), list(axes.get_xticks()), axes.get_xlabel()) == ([], [], "")
    assert not axes.spines["bottom"].get_visible()
    assert axes.texts[0].get_text() == "diverged 0 of 3 against 3 of 3"


def test_a_sample_of_a_line_stands_beside_words() -> None:
    """In a panel of one line the title says all, unless seeds diverged: no sample without a word."""
    settings = all_of(arm=[f"arm {i}" for i in range(12)])
    with style():
        found = draw_curves(grouped(runs(settings)))
    assert found is not None
    for axes in found[0].axes:
        if axes.get_visible():
            assert not any(line.get_clip_on() is False for line in axes.lines)


def test_an_interval_that_leaves_the_panel_ends_in_arrows() -> None:
    losses = {"a": (3.0, 3.0), "b": (3.1, 2.85)}
    outcomes = [
        made({ARM: arm}, seed, loss) for arm, held in losses.items() for seed, loss in enumerate(held)
    ]
    with style():
        found = draw_gains([answer(asked({ARM: "a"}, {ARM: "b"}), outcomes)])
    assert found is not None
    (axes,) = found[0].axes
    arrows = {line.get_marker(): float(line.get_xdata()[0]) for line in axes.lines}
    assert (arrows["<"], arrows[">"]) == axes.get_xlim()


def test_a_question_of_many_settings_shows_the_first_and_says_so() -> None:
    settings = all_of(arm=["post", "pre"], lr=[1e-4 * (1 + i) for i in range(MOST_ROWS + 6)])
    many = answer(asked({ARM: "post"}, {ARM: "pre"}), runs(settings))
    none = answer(asked({ARM: "post"}, {ARM: "absent"}), runs(settings))
    with style():
        found = draw_gains([many, none])
        assert found is not None
        check(found[0])
    assert f"Question 1: the first {MOST_ROWS} of {MOST_ROWS + 6} settings." in found[1]
    assert "Question 2: no runs to compare." in found[1]
    assert len(found[0].axes[0].get_yticks()) == MOST_ROWS


def test_long_questions_keep_clear_of_their_answers() -> None:
    settings = all_of(arm=[LONG.format(i) for i in range(2)], lr=[1e-3, 3e-3])
    sides = {ARM: LONG.format(0)}, {ARM: LONG.format(1)}
    verdicts = [
        answer(asked(*sides, over=over, ask="Which? " * 40), runs(settings)) for over in ("each", "best")
    ]
    with style():
        found = draw_gains(verdicts)
        assert found is not None
        check(found[0])


def test_up_to_ten_arms_share_a_panel_and_are_told_apart() -> None:
    lines = lines_of(grouped(runs(STUDIES["ten arms"])))
    ((title, held),) = panels_of(lines)
    assert title == ""
    assert len({(line.colour, line.look["marker"]) for line in held}) == 10
    with style():
        found = draw_curves(grouped(runs(STUDIES["ten arms"]), STUDIES["ten arms"]))
    assert found is not None
    named = {text.get_text() for text in found[0].axes[0].texts}
    assert "arm 3, 1e-3" in named
    assert not any(text.count("1e-3") > 1 for text in named)


def test_more_arms_are_each_drawn_over_the_others_in_grey() -> None:
    for name in ("curves", "rates"):
        figure = drawn("twelve arms")[name]
        panels = [axes for axes in figure.axes if axes.get_visible()]
        assert len(panels) == 12
        for axes in panels:
            assert sum(line.get_color() == "#DDDDDD" for line in axes.lines) >= 11


def test_the_loss_is_called_the_best_one() -> None:
    """`valid_loss` is that of the weights that were kept, not the last."""
    groups = grouped(runs(STUDIES["two arms"]))
    assert drawn("two arms")["rates"].axes[0].get_ylabel() == "best validation loss"
    study = Study.model_validate({"name": "x", "base": "x.yaml", "axes": {"seed_": [1]}})
    assert not any("final" in picture.caption for picture in pictures(study, groups, []))


def test_loss_ticks_stay_below_the_counts_of_diverged_seeds() -> None:
    axes = drawn("two arms")["rates"].axes[0]
    places = [text.get_position()[1] for text in axes.texts if text.get_text() == "2/3"]
    assert places
    assert max(axes.get_yticks()) < min(places)


def test_folding_keeps_both_ends_of_what_is_too_long() -> None:
    with style():
        assert fold("post, warm-up 100") == "post, warm-up 100"
        folded = fold(LONG.format(7), 30, 2)
        assert folded.startswith("a label")
        assert folded.endswith("review")
        assert len(folded.split("\n")) == 2
        assert all(len(line) <= 30 for line in folded.split("\n"))
        assert fold("one\ntwo\x07") == "one two?"
        assert fold("") == ""

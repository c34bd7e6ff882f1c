"""Study files: what they say, and what is told when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from transformer.cli.resolve import new_config
from transformer.cli.study import main as study
from transformer.core.errors import ConfigError
from transformer.studies.cells import plan
from transformer.studies.config import Study, load_study, matches
from transformer.studies.metrics import higher_is_better, scored_set

FILE = """\
name: grid
base: base.yaml
axes:
  model.placement: [post, pre]
  train.lr: [1e-3, 3e-3]
arms:
  - {label: adam, set: {train.optimizer: adam}}
  - {label: sgd, set: {train.optimizer: sgd, train.clip: 0}}
skip:
  - {arm: sgd, train.lr: 3e-3}
budget: {train.updates: 10}
seeds: [3, 5]
"""


def written(folder: Path, text: str) -> str:
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    return str(folder / "study.yaml")


def problems(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as failure:
        load_study(written(folder, text))
    return str(failure.value)


def test_settings_are_every_arm_with_every_combination_less_what_is_skipped(tmp_path: Path) -> None:
    settings = list(load_study(written(tmp_path, FILE)).settings())
    found = {(s["arm"], s["model.placement"], s["train.lr"]) for s in settings}
    arms_and_rates = [("adam", 0.001), ("adam", 0.003), ("sgd", 0.001)]
    assert found == {(arm, placement, lr) for arm, lr in arms_and_rates for placement in ("post", "pre")}
    assert len(settings) == 6
    assert all(("train.clip" in s) == (s["arm"] == "sgd") for s in settings)


def test_rates_written_as_yaml_1_1_cannot_read_them_are_numbers(tmp_path: Path) -> None:
    assert load_study(written(tmp_path, FILE)).axes["train.lr"] == [0.001, 0.003]


def test_the_base_is_seen_from_the_study_file(tmp_path: Path) -> None:
    assert load_study(written(tmp_path, FILE)).base == str(tmp_path / "base.yaml")
    text = FILE.replace("base: base.yaml", "base: ../other/base.yaml")
    assert load_study(written(tmp_path, text)).base == str(tmp_path.parent / "other" / "base.yaml")


def test_options_of_the_command_line_are_laid_over_the_budget(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, FILE), ["train.updates=99", "model.d_model=64"], base="mine.yaml")
    assert study.budget == {"train.updates": 99, "model.d_model": 64}
    assert study.base == "mine.yaml"


def test_all_mistakes_are_told_at_once_with_their_lines_and_remedies(tmp_path: Path) -> None:
    text = FILE.replace("seeds: [3, 5]", "seeds: [3, 3]").replace("arm: sgd, train.lr: 3e-3", "arm: sdg")
    text = text.replace("{train.updates: 10}", "{train.lr: 1, seed: 4}") + "metrik: x\nmetric: valid_los\n"
    text += "questions:\n  - {ask: q, this: {arm: adam}, that: {model.placment: pre}, expect: bettter}\n"
    told = problems(tmp_path, text)
    for words in (
        "metrik: unknown option; did you mean metric?",
        "study.yaml, line 14",
        "did you mean 'valid_loss'?",
        "did you mean 'better'?",
        "3 stands here twice",
        "'sdg' is none of its values; did you mean 'sgd'? one of adam, sgd",
        "train.lr is set in axes as well",
        "list the seeds under `seeds`",
    ):
        assert words in told, words
    text = FILE + "questions:\n  - {ask: q, this: {arm: adam}, that: {model.placment: pre}, expect: better}\n"
    assert "did you mean 'model.placement'?" in problems(tmp_path, text)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("this: {arm: adam}, that: {model.placement: pre}", "have runs in common"),
        ("this: {arm: sgd, train.lr: 3e-3}, that: {arm: adam}", "no run is like this"),
        ("this: {arm: sgd}, that: {arm: adam}, metric: updates_to_target", "needs the study's target"),
        ("this: {arm: sgd}, that: {arm: adam, train.lr: 3e-3}, over: each", None),
        ("this: {arm: adam, train.lr: 1e-3}, that: {arm: sgd}, over: each", None),
        (
            "this: {train.optimizer: adam}, that: {train.optimizer: sgd}, over: each",
            "never have the same arm,",
        ),
    ],
)
def test_a_question_that_no_runs_can_answer_is_refused(
    tmp_path: Path, question: str, words: str | None
) -> None:
    text = f"{FILE}questions:\n  - {{ask: q, {question}, expect: better}}\n"
    if words is None:
        assert load_study(written(tmp_path, text)).questions
    else:
        assert words in problems(tmp_path, text)


def test_over_each_some_setting_has_to_have_both_sides(tmp_path: Path) -> None:
    """What is skipped leaves adam with one rate and sgd with the other."""
    text = FILE.replace("skip:\n", "skip:\n  - {arm: adam, train.lr: 1e-3}\n")
    asked = "questions:\n  - {ask: q, this: {arm: adam}, that: {arm: sgd}, expect: better"
    assert load_study(written(tmp_path, f"{text}{asked}, over: best}}\n")).questions
    told = problems(tmp_path, f"{text}{asked}, over: each}}\n")
    assert "this and that never have the same model.placement, train.lr" in told
    assert "study.yaml, line" in told


def test_the_range_of_rates_needs_a_target_and_the_same_rates(tmp_path: Path) -> None:
    sides = "this: {model.placement: pre}, that: {model.placement: post}"
    asked = f"target: 3.0\nquestions:\n  - {{ask: q, {sides}, expect: better, metric: lr_range}}\n"
    even = FILE.replace("  - {arm: sgd, train.lr: 3e-3}\n", "  - {arm: sgd}\n")
    assert load_study(written(tmp_path, even + asked)).questions[0].metric == "lr_range"
    told = "lr_range is over the rates of the axis train.lr, the same ones for both sides"
    assert told in problems(tmp_path, FILE + asked)  # sgd has one rate, adam two
    assert told in problems(tmp_path, even + asked.replace("pre}", "pre, train.lr: 1e-3}"))
    assert "lr_range needs the study's target" in problems(tmp_path, even + asked.replace("target: 3.0", ""))
    assert "is no run's" in problems(tmp_path, f"{FILE}metric: lr_range\n")
    assert "did you mean 'lr_range'?" in problems(tmp_path, f"{FILE}metric: lr_rnge\n")


def test_the_sides_of_a_second_difference_are_checked_as_the_first(tmp_path: Path) -> None:
    sides = "this: {arm: adam, train.lr: 1e-3}, that: {arm: sgd, train.lr: 1e-3}, expect: worse"
    other = "against: {this: {arm: adm}, that: {arm: sgd, train.lr: 3e-3}}"
    told = problems(tmp_path, f"{FILE}questions:\n  - {{ask: q, {sides}, {other}}}\n")
    assert "questions.0.against.this.arm" in told
    assert "did you mean 'adam'?" in told
    told = problems(tmp_path, f"{FILE}questions:\n  - {{ask: q, {sides}, {other.replace('adm', 'adam')}}}\n")
    assert "questions.0.against.that: no run is like this" in told
    for again in ("this: {arm: adam}, that: {arm: sgd}", "this: {arm: sgd}, that: {arm: adam}"):
        own = f"this: {{arm: sgd}}, that: {{arm: adam}}, expect: better, against: {{{again}}}"
        told = problems(tmp_path, f"{FILE}questions:\n  - {{ask: q, {own}}}\n")
        assert "questions.0.against: this is the question's own difference" in told
    each = "over: each, against: {this: {arm: adam}, that: {arm: sgd}}"
    assert "not with over: each" in problems(tmp_path, f"{FILE}questions:\n  - {{ask: q, {sides}, {each}}}\n")


def test_values_have_their_suggestions_too(tmp_path: Path) -> None:
    asked = "questions:\n  - {ask: q, this: {model.placement: pots}, that: {arm: sgd}, expect: better}\n"
    assert "did you mean 'post'? one of post, pre" in problems(tmp_path, FILE + asked)
    assert "did you mean 'test.demo.bleu'?" in problems(tmp_path, FILE + "metric: test.demo.blue\n")


def test_wrong_seeds_are_told_once(tmp_path: Path) -> None:
    told = problems(tmp_path, FILE.replace("[3, 5]", "[1.5, true]"))
    assert "expected a whole number, got 1.5" in told
    assert "needs at least" not in told
    assert "seeds: needs at least 1 value" in problems(tmp_path, FILE.replace("[3, 5]", "[]"))


def test_sameness_without_a_margin_is_refused(tmp_path: Path) -> None:
    question = "{ask: q, this: {arm: sgd}, that: {arm: adam}, expect: no worse}"
    assert "say which difference counts as none" in problems(tmp_path, f"{FILE}questions:\n  - {question}\n")


def test_a_depth_and_one_of_the_depths_it_stands_for_are_in_each_others_way(tmp_path: Path) -> None:
    text = FILE.replace("train.updates: 10", "depth: 2").replace(
        "train.lr: [1e-3, 3e-3]", "model.encoder_layers: [1, 2]"
    )
    text = text.replace(", train.lr: 3e-3", "")
    assert "model.encoder_layers is set in axes as well" in problems(tmp_path, text)


def test_an_option_and_the_section_it_is_part_of_are_in_each_others_way(tmp_path: Path) -> None:
    text = FILE.replace("model.placement: [post, pre]", "train: [{lr: 1e-3}, {lr: 3e-3}]")
    told = problems(tmp_path, text)
    assert "axes.train.lr: train.lr is set in axes as well, by train" in told
    assert "arms.0.set.train.optimizer: train.optimizer is set in axes as well, by train" in told
    assert "budget.train.updates: train.updates is set in axes as well, by train" in told
    within = FILE.replace("{train.optimizer: adam}", "{model.norm: layer, model.norm.decoder: rms}")
    told = problems(tmp_path, within)
    assert "arms.0.set.model.norm.decoder: model.norm.decoder is set in arms as well, by model.norm" in told
    across = FILE.replace("{train.optimizer: adam}", "{model.norm: layer}")
    across = across.replace("train.optimizer: sgd", "model.norm.decoder: rms")
    assert len(list(load_study(written(tmp_path, across)).settings())) == 6, "two arms may"
    apart = FILE.replace("[post, pre]\n", "[post, pre]\n  model.placement_options: [{}]\n")
    assert load_study(written(tmp_path, apart)).axes["model.placement_options"] == [{}]


def test_hints_are_for_a_study_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--set goes to the budget, and a study is no base."""
    told = problems(tmp_path, "axes: {train.lr: [1e-3]}\n")
    assert "name: required, but not given; set it in the file" in told
    assert "--set" not in told
    (tmp_path / "study.yaml").unlink()
    (tmp_path / "grid.yaml").write_text(FILE.replace("base.yaml", "grid.yml"), encoding="utf-8")
    for name, hint in (("", "it is seen from the study file"), ("grit.yaml", "did you mean")):
        if name:
            (tmp_path / name).touch()
        assert study([str(tmp_path / "grid.yaml"), "--dry-run"]) == 2
        said = capsys.readouterr().err
        assert f"base: cannot read {tmp_path / 'grid.yml'}: no such file; {hint}" in said
        assert "grid.yaml?" not in said


@pytest.mark.parametrize("name", ["../up", "a b", "", ".hidden", "x/y"])
def test_a_name_that_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    assert "cannot name a directory" in problems(tmp_path, FILE.replace("name: grid", f'name: "{name}"'))


def test_a_wrong_study_file_ends_with_code_2_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study([written(tmp_path, "name: x\n")]) == 2
    assert "base: required, but not given" in capsys.readouterr().err
    assert study([str(tmp_path / "none.yaml")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_which_way_a_metric_is_better() -> None:
    assert [higher_is_better(m) for m in ("valid_loss", "valid_bleu", "gap")] == [False, True, False]
    assert higher_is_better("test.x.bleu")
    assert not higher_is_better("test.x.ter")
    assert scored_set("test.a.b.bleu") == ("a.b", "bleu")
    assert scored_set("valid_bleu") is None


def test_a_setting_matches_by_all_that_is_chosen() -> None:
    setting = {"arm": "a", "train.lr": 0.001}
    assert matches(setting, {})
    assert matches(setting, {"train.lr": 1e-3})
    assert not matches(setting, {"train.lr": 1e-3, "arm": "b"})
    assert not matches(setting, {"train.warmup": 0})


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_studies_that_come_with_the_toolkit_name_their_sources_and_repeat_to_the_bit(path: Path) -> None:
    study = load_study(path)
    assert isinstance(study, Study)
    assert study.name == path.stem
    assert study.title
    assert len(study.seeds) >= 3
    assert study.questions
    assert all(question.claim for question in study.questions)
    assert study.budget["train.threads"] == 1, "threads change the last bits of a sum"
    assert plan(study, new_config), "every cell's configuration resolves"

"""Configuration files and overrides: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from transformer.core.configuration import (
    Count,
    CountOrZero,
    Float,
    Int,
    Positive,
    Probability,
    Section,
    Text,
    choice,
)
from transformer.core.errors import ConfigError, Problem
from transformer.core.loading import Override, load, to_yaml
from transformer.core.registry import Registry

COLOURS: Registry[int] = Registry("colour")
for _name in ("red", "green", "blue"):
    COLOURS.register(_name, title=_name)(0)


class Model(Section):
    width: Count = 8
    heads: Count = 2
    colour: choice(COLOURS) = "red"  # type: ignore[valid-type]
    tying: Literal["none", "all"] = "none"
    dropout: Probability = 0.1

    def conflicts(self) -> Iterable[Problem]:
        if self.width % self.heads:
            yield Problem("heads", f"{self.heads} does not divide width = {self.width}")


class Train(Section):
    lr: Positive = 1e-3
    betas: tuple[Float, Float] = (0.9, 0.98)
    warmup: CountOrZero = 0
    fused: bool = False

    def conflicts(self) -> Iterable[Problem]:
        if self.fused and self.betas[0] > 1:
            yield Problem("betas", f"{self.betas[0]:g} does not go with fused", hint="lower it")
        if self.fused and self.warmup:
            yield Problem("warmup", f"{self.warmup} does not go with fused")


class Data(Section):
    source: Text = "en"
    train: Text | list[Text] = "demo"
    files: Annotated[tuple[Text, ...], Field(min_length=1)] = ("x",)
    test: dict[str, Text] = Field(default_factory=lambda: {"demo": "demo"})


class Root(Section):
    seed: Int = 1
    name: Text | None = None
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()

    def conflicts(self) -> Iterable[Problem]:
        if self.model.tying == "all" and self.data.source == "fr":
            yield Problem("model.tying", "does not go with data.source = fr", hint="use none")


def write(folder: Path, text: str | bytes, name: str = "x.yaml") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def problems_of(file: str | None, overrides: Iterable[str | Override] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Root, file, list(overrides))
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


BAD_FILES = [
    ("modle: {}", "modle: unknown option; did you mean model?", 1),
    ("model:\n  widht: 3", "model.widht: unknown option; did you mean model.width?", 2),
    ("model:\n  lr: 3", "model.lr: unknown option; did you mean train.lr?", 2),
    ("width: 3", "width: unknown option; did you mean model.width?", 1),
    ("train.lr: 3", "train.lr: unknown option; write it as `lr:` below `train:`", 1),
    (
        "model:\n  colour: gren",
        "model.colour: unknown colour 'gren'; did you mean 'green'? (one of red, green, blue)",
        2,
    ),
    ("model:\n  tying: al", "model.tying: must be one of none, all (did you mean 'all'?), got 'al'", 2),
    ("model:\n\n  width: -4", "model.width: must be greater than or equal to 1, got -4", 3),
    ("model: {width: 2.5}", "model.width: expected a whole number, got 2.5", 1),
    ("model: {width: true}", "model.width: expected a whole number, got True", 1),
    ("model: {width: }", "model.width: must be a valid integer, got null", 1),
    ("model: {dropout: 1.0}", "model.dropout: must be less than 1, got 1.0", 1),
    ("model: {heads: 3}", "model.heads: 3 does not divide width = 8", 1),
    ("train: {lr: fast}", "train.lr: expected a number, got 'fast'", 1),
    ("train: {lr: yes}", "train.lr: expected a number, got True", 1),
    ("train: {lr: .nan}", "train.lr: must be a finite number, got nan", 1),
    ("train: {lr: 1e999}", "train.lr: must be a finite number, got 1e999", 1),
    ("train: {warmup: 4k}", "train.warmup: expected a number, got '4k'", 1),
    ("train: {betas: [0.9, x]}", "train.betas.1: expected a number, got 'x'", 1),
    ("train: {betas: [0.9]}", "train.betas: too few values, got [0.9]", 1),
    ("train: {betas: [0.9, 0.9, 0.9]}", "train.betas: takes at most 2 values, got [0.9, 0.9, 0.9]", 1),
    ("train: {betas: 0.9}", "train.betas: must be a list, got 0.9", 1),
    ("data: {files: []}", "data.files: needs at least 1 value, got []", 1),
    ("train: {warmup: 1:30}", "train.warmup: cannot read '1:30'", 1),
    ("train: {lr: 1:30.5}", "train.lr: cannot read '1:30.5'", 1),
    ("seed: " + "9" * 40, "seed: a number this large is out of range", 1),
    ("seed: " + "9" * 9000, "seed: cannot read '9999", 1),
    (
        "data:\n  source: no",
        "data.source: expected text, got False; YAML reads no, off or false as a boolean: write it in quotes",
        2,
    ),
    ("data:\n  train: 3", "data.train: expected text or must be a valid list, got 3", 2),
    ("data:\n  test:\n    a: 3", "data.test.a: expected text, got 3", 3),
    ("model: 3", "model: expected the options of a section, got 3; write `model:` and options below it", 1),
    ("seed: 1\nseed: 2", "seed: duplicate key, first on line 1; keep one of the two", 2),
    (
        "model:\n  width: 8\n  heads: 2\n  width: 16",
        "model.width: duplicate key, first on line 2; keep one of the two",
        4,
    ),
    ("model: {}\nmodel: {}", "model: duplicate key, first on line 1; keep one of the two", 2),
    ("? [a, b]\n: 1", "a key must be text", 1),
    ('data:\n  test:\n    "\\ud800": a', "data.test: a key must be text", 3),
    (
        "seed: !!python/object/apply:os.system ['true']",
        "seed: the tag !!python/object/apply:os.system is not allowed",
        1,
    ),
    ("seed: !!binary aGk=", "seed: the tag !!binary is not allowed", 1),
    (
        "name: &a x\ndata: {source: *a}",
        "not valid YAML: aliases (*name) are not allowed: write the value out",
        2,
    ),
    ("seed: [1", "not valid YAML: while parsing a flow sequence", 1),
    ("a:\n\tb: 1", "not valid YAML: while scanning for the next token", 2),
    ("seed: 1\n---\nseed: 2", "not valid YAML: expected a single document in the stream", 2),
    ("seed: 1\nname: a\x07b", "not valid YAML: control character '\\x07'", 2),
    (b"seed: 1\nname: \xff\xfe", "not UTF-8 text; save the file as UTF-8", 2),
    ('name: "\\U00110000"', "not valid YAML: ", None),
    ("- seed\n- 3", "expected `key: value` lines at the top level", None),
    ("just words", "expected `key: value` lines at the top level", None),
    ("[" * 5000, "not valid YAML: nested too deeply", None),
    ("extends: {a: 1}", "extends: expected a file name or a list of them, got {'a': 1}", 1),
]


@pytest.mark.parametrize(("text", "message", "line"), BAD_FILES, ids=lambda value: repr(value)[:40])
def test_a_bad_file_is_answered_with_what_is_wrong_and_its_line(
    tmp_path: Path, text: str | bytes, message: str, line: int | None
) -> None:
    file = write(tmp_path, text)
    (problem,) = problems_of(file)
    assert problem.startswith(message)
    assert problem.endswith(f"({file}, line {line})" if line else f"({file})")


@pytest.mark.parametrize("text", ["data.test.\udca4=a", "model.norm.\udca4=rms"])
def test_a_key_of_the_command_line_that_is_no_utf_8_is_refused(text: str) -> None:
    """Python makes halves of surrogate pairs of its bytes; nothing can be written with them."""
    assert problems_of(None, [text]) == [f"a key must be text (--set {text})"]


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    file = write(
        tmp_path, "sede: 1\nseed: 1\nseed: 2\nmodel:\n  width: x\n  colour: gren\ntrain:\n  lr: -1\n"
    )
    found = problems_of(file, ["train.warmup=2.5", "nonsense", "data.source=fr", "model.tying=all"])
    text = "\n".join(found)
    for part in (
        "sede",
        "duplicate",
        "model.width",
        "'gren'",
        "train.lr",
        "2.5",
        "--set nonsense",
        "model.tying",
    ):
        assert part in text, part
    assert len(found) == 8


def test_conflicts_that_rest_on_a_value_set_aside_are_not_reported(tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path, "model: {width: wide, heads: 3}"))
    assert problem.startswith("model.width")


def test_every_conflict_has_its_own_line_and_source(tmp_path: Path) -> None:
    file = write(tmp_path, "model:\n  heads: 3\ntrain:\n  betas: [3, 2]\n  fused: true\ndata: {source: fr}")
    assert problems_of(file, ["train.warmup=7", "model.tying=all"]) == [
        f"model.heads: 3 does not divide width = 8 ({file}, line 2)",
        f"train.betas: 3 does not go with fused; lower it ({file}, line 4)",
        "train.warmup: 7 does not go with fused (--set train.warmup=7)",
        "model.tying: does not go with data.source = fr; use none (--set model.tying=all)",
    ]


def test_a_conflict_with_a_default_is_reported_once(tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path, "model:\n  width: 9"))
    assert problem.startswith("model.heads: 2 does not divide width = 9")


def test_a_conflict_that_a_default_brings_is_not_reported(tmp_path: Path) -> None:
    """With `heads: 4` set aside there is the default 2, which does not divide 9 either."""
    (problem,) = problems_of(write(tmp_path, "model: {width: 9, heads: 4}"))
    assert problem.startswith("model.heads: 4 does not divide width = 9")


def test_a_section_built_in_python_names_the_option_of_a_conflict() -> None:
    with pytest.raises(ValidationError, match="heads: 3 does not divide width = 8"):
        Model(heads=3)


def test_a_conflict_between_sections_names_its_source_and_remedy(tmp_path: Path) -> None:
    file = write(tmp_path, "data: {source: fr}")
    (problem,) = problems_of(file, ["model.tying=all"])
    assert problem == "model.tying: does not go with data.source = fr; use none (--set model.tying=all)"


def test_a_missing_file_is_a_problem_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, "", "multi30k.yaml")
    (problem,) = problems_of(str(tmp_path / "multi30.yaml"))
    assert "No such file" in problem
    assert "did you mean" in problem
    assert "multi30k.yaml" in problem


@pytest.mark.parametrize("name", ["", ".", "a\0b"])
def test_a_name_that_is_no_file_is_a_problem(name: str) -> None:
    assert len(problems_of(name)) == 1


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("train.lr=1e-4", "train.lr", 1e-4),
        ("train.lr=1", "train.lr", 1.0),
        ("train.warmup=4e3", "train.warmup", 4000),
        ("train.warmup=010", "train.warmup", 10),
        ("train.warmup=08", "train.warmup", 8),
        ("train.warmup=0x1_0", "train.warmup", 16),
        ("train.warmup=1_000", "train.warmup", 1000),
        ("seed=-010", "seed", -10),
        ("train.lr=00.5", "train.lr", 0.5),
        ("train.betas=[0.9, 0.999]", "train.betas", (0.9, 0.999)),
        ("model={width: 16, heads: 4}", "model.width", 16),
        ("data.train=[a, b]", "data.train", ["a", "b"]),
        ("data.train=a=b=c", "data.train", "a=b=c"),
        ("name='no'", "name", "no"),
        ("name=", "name", None),
        ("name=2016-07-01", "name", "2016-07-01"),
        ("data.test.mine=x", "data.test", {"demo": "demo", "mine": "x"}),
        ("data.test={2016: x, no: y}", "data.test", {"2016": "x", "no": "y"}),
        ("train.fused=yes", "train.fused", True),
    ],
)
def test_an_override_is_read_by_the_rules_of_the_files(override: str, where: str, value: object) -> None:
    found: Any = load(Root, None, [override])
    for name in where.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "override", ["", "=", "=3", "a", "model.=3", ".x=3", "model..width=3", "seed=[", "seed=*a"]
)
def test_a_malformed_override_is_a_problem(override: str) -> None:
    (problem,) = problems_of(None, [override])
    assert f"--set {override}" in problem


def test_overrides_below_a_plain_value_are_refused() -> None:
    (problem,) = problems_of(None, ["model.width.x=3"])
    assert problem.startswith("model.width: ")
    (problem,) = problems_of(None, ["model.depth.x=3"])
    assert problem.startswith("model.depth: unknown option")


def test_precedence_is_default_parents_file_then_overrides_from_left_to_right(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path, "seed: 2\ntrain: {lr: 1.0, warmup: 1}\nmodel: {width: 16}\n", "base/one.yaml")
    write(tmp_path, "train: {warmup: 2}\ndata: {test: {a: x}}\n", "base/two.yaml")
    write(tmp_path, "extends: one.yaml\ntrain: {betas: [0.5, 0.6]}\n", "base/child.yaml")
    file = write(tmp_path, "extends: [base/child.yaml, base/two.yaml]\ndata: {test: {b: y}}\nmodel:\n")
    config = load(Root, file, ["seed=3", Override(("seed",), "4", "--seed 4"), "train.lr=5"])
    assert (config.seed, config.train.lr, config.train.warmup, config.model.width) == (4, 5.0, 2, 16)
    assert config.train.betas == (0.5, 0.6)
    assert config.data.test == {"b": "y"}, "a mapping that is no section is replaced whole"


def test_a_problem_in_a_parent_names_the_parent(tmp_path: Path) -> None:
    parent = write(tmp_path, "model:\n  width: 0\n", "parent.yaml")
    (problem,) = problems_of(write(tmp_path, "extends: parent.yaml"))
    assert problem.endswith(f"({parent}, line 2)")


def test_a_missing_parent_names_the_line_that_asks_for_it(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 1\nextends: gone.yaml")
    (problem,) = problems_of(file)
    assert "gone.yaml: No such file" in problem
    assert f"({file}, line 2)" in problem


def test_files_that_extend_each_other_in_a_circle_are_reported(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml", "a.yaml")
    write(tmp_path, "extends: c.yaml", "b.yaml")
    write(tmp_path, "extends: ./a.yaml", "c.yaml")
    (problem,) = problems_of(str(tmp_path / "a.yaml"))
    assert "a.yaml -> b.yaml -> c.yaml -> a.yaml" in problem
    (problem,) = problems_of(write(tmp_path, "extends: self.yaml", "self.yaml"))
    assert "self.yaml -> self.yaml" in problem


def test_one_parent_may_be_reached_twice(tmp_path: Path) -> None:
    write(tmp_path, "seed: 7", "base.yaml")
    write(tmp_path, "extends: base.yaml", "left.yaml")
    write(tmp_path, "extends: base.yaml", "right.yaml")
    assert load(Root, write(tmp_path, "extends: [left.yaml, right.yaml]")).seed == 7


@pytest.mark.parametrize("text", ["", "# nothing\n", "model:\n", "\ufeffseed: 1"])
def test_an_empty_file_gives_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(Root, write(tmp_path, text)) == Root()


def test_a_resolved_configuration_loads_back_equal(tmp_path: Path) -> None:
    config = load(
        Root,
        None,
        ["train.lr=1e-05", "train.betas=[1e-7, 1e22]", "name='no'", "data.test={a: '1e-4', '1': ': #'}"],
    )
    again = load(Root, write(tmp_path, to_yaml(config)))
    assert again == config
    assert isinstance(yaml.safe_load(to_yaml(config))["train"]["lr"], float)


numbers = st.floats(min_value=1e-300, max_value=1e300, allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@settings(deadline=None)
@given(
    lr=numbers,
    beta=numbers,
    seed=st.integers(-(2**63) + 1, 2**63 - 1),
    name=texts,
    tests=st.dictionaries(texts, texts),
)
def test_every_configuration_survives_its_yaml(
    lr: float, beta: float, seed: int, name: str, tests: dict[str, str]
) -> None:
    config = Root(seed=seed, name=name, data=Data(test=tests), train=Train(lr=lr, betas=(beta, -beta)))
    assert load_text(to_yaml(config)) == config


def load_text(text: str | bytes, overrides: Iterable[str] = ()) -> Root:
    with tempfile.TemporaryDirectory() as folder:
        return load(Root, write(Path(folder), text), list(overrides))


WORDS = """
seed name model train data width heads colour lr betas test extends no 1e-4 null ~ {} [] [1] {a:1} 3 -1 .nan 
.inf x.yaml . / 0x_ 0b_ ._ 1:30 <<: = !!int !!python/name:os &a *a ? | > ' " % @ ` red --- ... 2016-01-01
"""
words = st.sampled_from([*WORDS.split(), "\t", ""])
lines = st.builds(lambda indent, key, rest: f"{' ' * indent}{key}: {rest}", st.integers(0, 4), words, words)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.lists(lines, max_size=8).map("\n".join), st.text(max_size=40), st.binary(max_size=30)))
def test_no_text_causes_anything_but_a_configuration_error(text: str | bytes) -> None:
    with suppress(ConfigError):
        load_text(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.builds("{}.{}={}".format, words, words, words), st.text(max_size=20)), max_size=3)
)
def test_no_override_causes_anything_but_a_configuration_error(overrides: list[str]) -> None:
    with suppress(ConfigError):
        load(Root, None, overrides)

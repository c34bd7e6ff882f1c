"""The root configuration: what ships loads and survives its own YAML; no typed value is a traceback."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.cli.config import Config
from transformer.cli.describe import REGISTRIES, schema
from transformer.cli.train import main as train
from transformer.core.errors import ConfigError
from transformer.core.loading import load, to_yaml
from transformer.core.options import options

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CONFIGS_BY_NAME = {path.stem: path for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_what_ships_is_valid_and_survives_its_own_yaml(path: Path, tmp_path: Path) -> None:
    config = load(Config, path)
    (tmp_path / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load(Config, tmp_path / "again.yaml") == config


def test_the_other_direction_is_the_same_run_with_its_sides_exchanged() -> None:
    there, back = (load(Config, path) for path in CONFIGS if path.stem in ("multi30k", "multi30k_de_en"))
    assert (there.data.source, there.data.target) == (back.data.target, back.data.source) == ("en", "de")
    assert back.model == there.model


def enums(node: Any) -> Iterator[dict[str, Any]]:
    """Every part of a JSON Schema that has an enum."""
    if isinstance(node, dict) and "enum" in node:
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from enums(inner)


def test_no_choice_of_the_schema_is_empty_and_every_default_is_one_of_its_names() -> None:
    found = list(enums(schema()))
    assert {tuple(part["enum"]) for part in found} >= {tuple(registry) for registry in REGISTRIES.values()}
    assert all(part["enum"] and part.get("default", part["enum"][0]) in part["enum"] for part in found)
    for option in options(Config):
        if "|" in option.kind and option.default is not None:
            assert option.default in option.kind.removesuffix(" or null").split("|"), option.key


def test_every_conflict_is_reported_on_its_own_with_where_its_value_came_from() -> None:
    overrides = ["train.floor=9", "train.warmup=50", "train.updates=20", "train.validate_bleu=false"]
    overrides += [
        "model.heads=3",
        "data.target=en",
        "data.tokenizer.sampling=2",
        "data.tokenizer.joint=false",
    ]
    with pytest.raises(ConfigError) as caught:
        load(Config, CONFIGS_BY_NAME["multi30k"], overrides)
    found = {problem.path: problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems)
    assert set(found) == {
        "train.floor",
        "train.warmup",
        "train.metric",
        "model.heads",
        "model.tie_embeddings",
        "data.target",
        "data.tokenizer.sampling",
    }
    assert all(";" not in problem.message for problem in found.values())
    for key in ("train.floor", "train.warmup", "model.heads", "data.target", "data.tokenizer.sampling"):
        assert found[key].source.startswith(f"--set {key}=")


def test_a_position_table_with_an_end_must_hold_every_sentence() -> None:
    def refused(**limits: int) -> str:
        sizes = [f"{section}.max_length={limit}" for section, limit in limits.items()]
        with pytest.raises(ConfigError) as caught:
            load(Config, None, ["model.positions=learned", *sizes])
        (problem,) = caught.value.problems
        return str(problem)

    assert refused(data=101, model=100).startswith("data.max_length: 101 is more than model.max_length = 100")
    assert refused(data=1, model=1).startswith("model.max_length: 1 row")
    for positions, data in (("learned", 100), ("sinusoidal", 101)):
        given = [f"model.positions={positions}", f"data.max_length={data}", "model.max_length=100"]
        assert load(Config, None, given).data.max_length == data


UNFIT = [
    (r'"a\0b"', r"'a\x00b' cannot name", r"call it 'a_b'"),
    (r'"a\e[2J"', r"'a\x1b[2J' cannot name", r"call it 'a_[2J'"),
    (r'"a\nb"', r"it has the character '\n' in it", "call it 'a_b'"),
    (r'"a\u202eb"', r"it has the character '\u202e' in it", "call it 'a_b'"),
    ("x/y", "it has '/' in it", "call it 'x_y'"),
    ("../../x", "it has '/' in it", "call it '.._.._x'"),
    ("'x:y'", "it has ':' in it", "call it 'x_y'"),
    (r"'x\y'", r"it has '\\' in it", "call it 'x_y'"),
    ("''", "it is blank", "up to 100 characters"),
    ("' '", "it is blank", "up to 100 characters"),
    ("'.'", "it means a directory", "up to 100 characters"),
    ("'..'", "it means a directory", "up to 100 characters"),
    ("a" * 101, "it is too long: 101 characters", "up to 100 characters and 200 bytes"),
    ("\u20ac" * 67, "it is too long: 67 characters", "up to 100 characters and 200 bytes"),
    ("Aux.2016", "it is a device of Windows", "up to 100 characters"),
]


@pytest.mark.parametrize(("name", "reason", "hint"), UNFIT, ids=lambda value: repr(value)[:20])
def test_a_test_set_is_refused_whose_name_no_file_can_have_before_anything_is_read(
    name: str, reason: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"data:\n  train: gone\n  test:\n    ? {name}\n    : b\n  valid: b\n", encoding="utf-8")
    assert train([str(file), "--run-dir", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.count("  - ") == message.count("  - data.test") == 1
    assert reason in message
    assert hint in message
    assert f"({file}, line 3)" in message or f"({file}, line 4)" in message
    assert not {"\0", "\x1b", "\u202e"} & set(message)
    assert not (tmp_path / "run").exists()


def test_two_test_sets_may_not_be_one_file_where_case_does_not_count() -> None:
    for one, other in (("News", "news"), ("stra\u00dfe", "STRASSE"), ("caf\u00e9", "Cafe\u0301")):
        with pytest.raises(ConfigError) as caught:
            load(Config, None, [f"data.test={{{one}: demo, {other}: demo, else: demo}}"])
        (problem,) = caught.value.problems
        assert problem.path == f"data.test.{other}"
        assert f"{other!r} and {one!r} would be one file" in problem.message
        assert problem.hint


def test_a_test_set_may_be_called_what_a_file_can_be() -> None:
    names = ["2016", "no", "news test 2014 (full)", "\u30c6\u30b9\u30c8", ".hidden", "a" * 100, "aux_2016"]
    names += ["wmt14-full_v1.2+x@y=z,#1", "\u00e4" * 100]
    assert list(load(Config, None, [f"data.test={dict.fromkeys(names, 'demo')}"]).data.test) == names


def test_the_command_line_counts_from_left_to_right(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(CONFIGS[0])
    for flags, rate in ((["--lr", "2", "--set", "train.lr=3"], 3), (["--set", "train.lr=3", "--lr", "2"], 2)):
        assert train([file, "--check", *flags]) == 0
        assert f"lr: {rate}.0\n" in capsys.readouterr().out


def test_a_run_directory_is_named_after_its_plans(capsys: pytest.CaptureFixture[str]) -> None:
    def directory(*flags: str) -> str:
        assert train([str(CONFIGS_BY_NAME["multi30k"]), "--check", *flags]) == 0
        found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
        return str(found["run_dir"])

    assert (
        directory("--placement", "{encoder: pre, decoder: post}") == "runs/multi30k-encoder-pre-decoder-post"
    )
    assert directory("--set", "model.placement.decoder=post") == "runs/multi30k-decoder-post-default-pre"
    assert (
        directory("--norm", "{final: rms, default: layer}") == "runs/multi30k-pre-normfinal-rms-default-layer"
    )
    assert directory("--norm", "rms", "--lr", "1e-3") == "runs/multi30k-pre-normrms-lr1e-3"
    layers = ", ".join(f"{i}: {name}" for i, name in enumerate(["layer_simple"] * 40, start=1))
    deep = ["--set", "model.encoder_layers=40", "--set", "model.decoder_layers=40"]
    assert len(os.path.basename(directory("--norm", f"{{{layers}}}", *deep))) < 200


WRITTEN = """
no null ~ {} [] [1] [[1]] {a:1} '' 0 1 2 -1 1e-4 1e400 .nan .inf 0.5 true 7 1000000000000
demo 99999999999999999999
"""
PLANS = ["{encoder: pre, decoder: post}", "{1-3: rms, default: layer}", "{encoder:pre}", "{2: {}}"]
VALUES = st.one_of(
    st.sampled_from([*WRITTEN.split(), "{a: {b: 1}}", *PLANS]),
    st.sampled_from([name for registry in REGISTRIES.values() for name in registry]),
    st.text(max_size=8),
)
KEYS = st.sampled_from(
    [option.key for option in options(Config)]
    + ["data", "model", "train.x", "data.test.x", ""]
    + ["model.placement.decoder", "model.norm.encoder.1-2", "model.norm.final", "model.norm.x.y"]
    + ["model.norm_options.k", "model.placement_options.times", "model.norm_options.x"]
)


OVERRIDES = st.lists(st.builds("{}={}".format, KEYS, VALUES), max_size=4)


def refuses_or_survives_its_own_yaml(overrides: list[str]) -> None:
    with suppress(ConfigError), tempfile.TemporaryDirectory() as folder:
        config = load(Config, None, overrides)
        (Path(folder) / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert load(Config, Path(folder) / "again.yaml") == config


@settings(max_examples=80, deadline=None)
@given(OVERRIDES)
def test_no_value_of_any_option_causes_anything_but_a_configuration_error(overrides: list[str]) -> None:
    refuses_or_survives_its_own_yaml(overrides)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(OVERRIDES)
def test_nor_do_two_thousand(overrides: list[str]) -> None:
    refuses_or_survives_its_own_yaml(overrides)

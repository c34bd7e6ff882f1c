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

"""The root configuration: what ships loads and survives its own YAML; no typed value is a traceback."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.cli.config import Config
from transformer.cli.describe import REGISTRIES
from transformer.cli.train import main as train
from transformer.core.errors import ConfigError
from transformer.core.loading import load, to_yaml
from transformer.core.options import options

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_what_ships_is_valid_and_survives_its_own_yaml(path: Path, tmp_path: Path) -> None:
    config = load(Config, path)
    (tmp_path / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load(Config, tmp_path / "again.yaml") == config


def test_the_other_direction_is_the_same_run_with_its_sides_exchanged() -> None:
    there, back = (load(Config, path) for path in CONFIGS if path.stem in ("multi30k", "multi30k_de_en"))
    assert (there.data.source, there.data.target) == (back.data.target, back.data.source) == ("en", "de")
    assert back.model == there.model


def test_the_command_line_counts_from_left_to_right(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(CONFIGS[0])
    for flags, rate in ((["--lr", "2", "--set", "train.lr=3"], 3), (["--set", "train.lr=3", "--lr", "2"], 2)):
        assert train([file, "--check", *flags]) == 0
        assert f"lr: {rate}.0\n" in capsys.readouterr().out


WRITTEN = """
no null ~ {} [] [1] [[1]] {a:1} '' 0 1 2 -1 1e-4 1e400 .nan .inf 0.5 true 7 1000000000000
demo 99999999999999999999
"""
VALUES = st.one_of(
    st.sampled_from([*WRITTEN.split(), "{a: {b: 1}}"]),
    st.sampled_from([name for registry in REGISTRIES.values() for name in registry]),
    st.text(max_size=8),
)
KEYS = st.sampled_from(
    [option.key for option in options(Config)] + ["data", "model", "train.x", "data.test.x", ""]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.builds("{}={}".format, KEYS, VALUES), max_size=4))
def test_no_value_of_any_option_causes_anything_but_a_configuration_error(overrides: list[str]) -> None:
    with suppress(ConfigError), tempfile.TemporaryDirectory() as folder:
        config = load(Config, None, overrides)
        (Path(folder) / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert load(Config, Path(folder) / "again.yaml") == config

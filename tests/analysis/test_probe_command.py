"""python -m transformer probe: what it prints and writes, runs and checkpoints, and its complaints."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from transformer.analysis.probes import PROBES, real_batches
from transformer.analysis.setting import Arm
from transformer.analysis.stream import StreamProbe
from transformer.cli.probe import main as probe
from transformer.cli.resolve import run_config
from transformer.cli.result import commit
from transformer.cli.train import main as train
from transformer.core.options import options
from transformer.core.signature import options_of
from transformer.model.config import ModelConfig

TINY = """\
data:
  train: {folder}/train
  valid: {folder}/train
  tokenizer: {{vocab_size: 40, type: char}}
  cache: {folder}/cache
model: {{d_model: 16, heads: 2, d_ff: 24, encoder_layers: 1, decoder_layers: 1}}
train: {{updates: 4, warmup: 0, lr: 1e-2, batch_tokens: 200, validate_every: 2, precision: float32}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text, its configuration, and a run of four updates."""
    folder = tmp_path_factory.mktemp("probe")
    for side in ("en", "de"):
        lines = (f"{side} {'ab'[i % 2]} {'cd'[i // 2 % 2]} {i % 5}" for i in range(60))
        (folder / f"train.{side}").write_text("".join(f"{one}\n" for one in lines), encoding="utf-8")
    (folder / "tiny.yaml").write_text(TINY.format(folder=folder), encoding="utf-8")
    assert train([str(folder / "tiny.yaml"), "--run-dir", str(folder / "run")]) == 0
    return folder


def test_without_a_name_it_lists_what_can_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe([]) == 0
    out = capsys.readouterr().out
    for entry in PROBES.entries():
        assert f"{entry.name}: {entry.title}" in out
        assert entry.equation
        assert entry.equation in out
    assert "--set probe.depths=[6, 8, 10, 12, 14]" in out


def test_it_prints_the_table_and_writes_json_and_figure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    files = ["--json", str(tmp_path / "x.json"), "--png", str(tmp_path / "x.png")]
    arguments = [
        "init", str(folder / "tiny.yaml"), "--placements", "post,pre", "--depths", "2", "--seeds", "1,5",
        "--set", "probe.depths=[1,2]", "--tokens", "100",
    ]  # fmt: skip
    assert probe([*arguments, *files]) == 0
    out = capsys.readouterr().out
    assert out.startswith("arm   stack    layer")
    assert "last W2 of the decoder: norm ~ depth^" in out
    found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert found["facts"]["seeds"] == [1, 5]
    for arm, name in zip(found["facts"]["arms"], ("post", "pre"), strict=True):
        assert (arm["label"], arm["weights"]) == (name, None)
        assert (arm["model"]["placement"], arm["model"]["encoder_layers"]) == (name, 2)
    assert found["facts"]["setting"]["batches"] == 4
    assert "batches of dL/dW" in found["facts"]["statistic"]
    assert len(found["rows"]) == 8
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert probe(arguments) == 0
    assert capsys.readouterr().out == out


def test_random_tokens_need_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--set", "data.tokenizer.vocab_size=50", "--set", "model.d_model=16", "--set", "model.heads=2"]
    assert probe(["stream", "--random", "--depths", "1", "--tokens", "50", "--seeds", "1", *sizes]) == 0
    captured = capsys.readouterr()
    assert "4 batches of random tokens" in captured.err
    assert captured.out.startswith("arm ")


def test_without_a_number_the_probe_says_how_many_batches_it_takes(tmp_path: Path) -> None:
    words = ["max-lr", "--random", "--tokens", "8", "--length", "4", "--seeds", "1", "--set", "probe.steps=2"]
    words += ["--set", "probe.window=2"]
    small = ["--set", "data.tokenizer.vocab_size=30", "--json", str(tmp_path / "x.json")]
    for flags, batches in (([], 200), (["--batches", "3"], 3)):
        assert probe([*words, *small, *flags]) == 0
        found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
        assert found["facts"]["setting"]["batches"] == batches


def test_without_a_configuration_the_model_is_small_and_what_is_set_comes_on_top(tmp_path: Path) -> None:
    words = ["stream", "--random", "--tokens", "30", "--seeds", "1", "--set", "data.tokenizer.vocab_size=30"]
    words += ["--json", str(tmp_path / "x.json"), "--set", "model.d_ff=64", "--depths", "2"]
    assert probe(words) == 0
    (arm,) = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["facts"]["arms"]
    model = arm["model"]
    assert (model["d_model"], model["heads"], model["d_ff"], model["encoder_layers"]) == (128, 4, 64, 2)


def test_the_json_says_what_each_arm_was_with_its_options(tmp_path: Path) -> None:
    words = ["stream", "--random", "--tokens", "30", "--seeds", "1", "--set", "data.tokenizer.vocab_size=30"]
    words += [
        "--placements",
        "pre,rskip",
        "--norms",
        "rms",
        "--depths",
        "1,2",
        "--set",
        "model.placement=rskip",
    ]
    assert (
        probe([*words, "--set", "model.placement_options={times: 3}", "--json", str(tmp_path / "x.json")])
        == 0
    )
    arms = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["facts"]["arms"]
    assert [arm["label"] for arm in arms] == ["pre 1+1", "pre 2+2", "rskip 1+1", "rskip 2+2"]
    assert [arm["model"]["decoder_layers"] for arm in arms] == [1, 2, 1, 2]
    assert {arm["model"]["norm"] for arm in arms} == {"rms"}
    assert arms[0]["model"]["placement_options"] == {}
    assert arms[-1]["options"]["placement.rskip"]["times"] == 3
    assert ModelConfig.model_validate(arms[-1]["model"]).placement_options == {"times": 3}


def test_the_json_says_what_it_takes_to_repeat_it(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    words = ["max-lr", "--random", "--tokens", "8", "--length", "6", "--seeds", "2", "--batches", "3"]
    words += ["--set", "probe.steps=4", "--set", "probe.window=2", "--set", "probe.bottom=1e-4"]
    words += ["--set", "seed=7", "--set", "data.tokenizer.vocab_size=30", "--json", str(file)]
    assert probe(words) == 0
    facts = json.loads(file.read_text(encoding="utf-8"))["facts"]
    assert facts["command"].endswith(shlex.join(["probe", *words]))
    assert facts["commit"] == commit()
    assert facts["seeds"] == [1, 2]
    setting = {"seed": 7, "length": 6, "batch_tokens": 8, "batches": 3, "of": "random tokens"}
    assert facts["setting"] | setting == facts["setting"]
    assert set(facts["options"]) == {option.key for option in options(options_of(PROBES["max-lr"]))}
    assert (facts["options"]["bottom"], facts["options"]["top"]) == (1e-4, 1.0)
    assert len(facts["rates"]) == 4
    assert facts["rates"][-1] == pytest.approx(1.0)
    assert all(len(losses) <= 4 for losses in facts["curves"].values())


@pytest.mark.parametrize("name", [name for name in PROBES if name != "max-lr"])  # whose table is by seed
def test_the_json_has_the_numbers_of_each_seed(name: str, tmp_path: Path) -> None:
    words = [name, "--random", "--tokens", "30", "--batches", "2", "--placements", "pre", "--depths", "1"]
    words += ["--set", "data.tokenizer.vocab_size=30", "--set", "model.d_model=8", "--set", "model.d_ff=8"]
    words += {"update": ["--set", "probe.updates=2"], "init": ["--set", "probe.depths=[]"]}.get(name, [])
    words += ["--set", "probe.updates=1"] if name == "sharpness" else []
    found = []
    for seeds in ("2,5", "5,"):
        assert probe([*words, "--seeds", seeds, "--json", str(tmp_path / "x.json")]) == 0
        found.append(json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["facts"]["by_seed"])
    both, last = found
    assert both
    for two, one in zip(both, last, strict=True):
        for key, value in one.items():
            if isinstance(value, list):
                assert len(two[key]) == 2
                assert two[key][1:] == value
                assert two[key][0] != value[0] or value[0] in (None, 0.0) or not isinstance(value[0], float)
            else:
                assert two[key] == value


def test_a_plan_with_commas_is_one_arm(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = "{encoder: post, decoder: pre},pre"
    assert probe(["stream", str(folder / "tiny.yaml"), "--placements", plans, "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "encoder-post-decoder-pre" in out


@pytest.mark.parametrize("checkpoint", [None, "last"])
def test_of_a_run_the_trained_weights_are_measured(
    folder: Path, checkpoint: str | None, tmp_path: Path
) -> None:
    run, file = folder / "run", tmp_path / "x.json"
    flags = [] if checkpoint is None else ["--checkpoint", checkpoint]
    assert probe(["stream", str(run), "--json", str(file), "--tokens", "100", *flags]) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    config = run_config(run)
    weights = run / "model.safetensors" if checkpoint is None else run / "checkpoints/last/model.safetensors"
    assert found["facts"]["arms"][0]["weights"] == str(weights)
    batches, sizes = real_batches(config.data, 4, 100, config.seed, tokenizer=run / "tokenizer")
    by_hand = StreamProbe().run([Arm("x", config.model, weights)], batches, sizes, [1], print)
    assert [row[1:] for row in found["rows"]] == [row[1:] for row in by_hand.rows]
    fresh = StreamProbe().run([Arm("x", config.model)], batches, sizes, [config.seed], print)
    assert fresh.rows[-1][4] != by_hand.rows[-1][4]
    assert not any("lemma" in words for words in found["words"])


COMPLAINTS = {
    "unknown probe 'intit'; did you mean 'init'?": ["intit"],
    "did you mean 'post'?": ["init", "--placements", "pots"],
    "did you mean depths?": ["init", "--set", "probe.dephts=[1]"],
    "probe.dephts: ": ["init", "--set", "probe.dephts=[1, 2]"],
    "probe.depths.0: must be greater than or equal to 1": ["init", "--set", "probe.depths=[0]"],
    "probe.bottom: the ramp would fall": ["max-lr", "--set", "probe.bottom=2"],
    "x.bmp: a figure is a .png": ["init", "--png", "x.bmp"],
    "--json .: is a folder": ["init", "--json", "."],
    "--device nonsense": ["init", "--device", "nonsense"],
    "--seeds 0: give how many": ["init", "--seeds", "0"],
    "'x' is not a whole number": ["init", "--depths", "x"],
    "cannot read nowhere.yaml": ["init", "nowhere.yaml"],
    "--checkpoint needs a run directory": ["init", "--checkpoint", "last"],
    "there is no folder": ["init", "--json", "nowhere/x.json"],
    "--batches 0: too few": ["init", "--batches", "0"],
}


@pytest.mark.parametrize("text", COMPLAINTS)
def test_what_is_wrong_is_told_without_a_traceback(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe(COMPLAINTS[text]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""
    assert "target tokens" not in captured.err  # nothing was prepared before


def test_a_run_of_another_shape_or_without_weights_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe(["stream", str(folder / "run"), "--set", "model.d_ff=32"]) == 2
    assert "was trained as another model" in capsys.readouterr().err
    assert probe(["stream", str(tmp_path)]) == 1
    assert "not a run directory" in capsys.readouterr().err
    assert probe(["stream", str(folder / "run"), "--checkpoint", "update-9999999"]) == 1
    captured = capsys.readouterr()
    assert "--checkpoint may be best, update-0000002, update-0000004, last" in captured.err
    assert "target tokens" not in captured.err
    assert probe(["stream", str(folder / "run"), "--seeds", "1,2"]) == 2
    assert "--seeds: " in capsys.readouterr().err


def test_the_page_about_probes_names_each_of_them() -> None:
    text = (Path(__file__).parents[2] / "docs" / "probes.md").read_text(encoding="utf-8")
    assert [name for name in PROBES if f"| `{name}` |" not in text and f"| [`{name}`]" not in text] == []

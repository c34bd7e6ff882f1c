"""python -m transformer: list, explain and the commands' common manners."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
from torch import nn

from transformer.__main__ import COMMANDS
from transformer.__main__ import main as toolkit
from transformer.cli.config import Config
from transformer.cli.describe import REGISTRIES, choices_text
from transformer.core.options import options
from transformer.model.pairing import normless
from transformer.model.transformer import Transformer
from transformer.modules.norms import NORMS
from transformer.modules.placements import PLACEMENTS
from transformer.training.schedules import make_schedule

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


def test_a_current_directory_that_is_gone_is_told_before_a_library_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert toolkit(["list", "norms"]) == 1
    assert "error: the current directory: No such file or directory; change to" in capsys.readouterr().err


@pytest.mark.parametrize("kind", REGISTRIES)
def test_list_shows_every_choice_with_its_title(kind: str, capsys: Capture) -> None:
    assert toolkit(["list", kind]) == 0
    text = capsys.readouterr().out
    for entry in REGISTRIES[kind].entries():
        assert re.search(rf"^{entry.name} +{re.escape(entry.title)}", text, re.MULTILINE)
    assert toolkit(["list", kind, "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(REGISTRIES[kind])


def test_list_tells_all_facts_of_a_placement(capsys: Capture) -> None:
    assert toolkit(["list", "placements", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    for name, row in rows.items():
        assert set(row["norms_that_go"]) | set(row["norms_refused"]) == set(NORMS)
        assert row["title"], name
        assert row["equation"], name
        assert row["figure"], name
        assert all(row["norms_refused"].values()), name
    post, pre, rskip = (rows[name] for name in ("post", "pre", "rskip"))
    assert post["norms_per_layer"] == {"encoder": [2] * 6, "decoder": [3] * 6}
    assert (post["norms"], post["final_norm"], post["parameters_beyond_post"]) == (30, False, 0)
    assert (pre["norms"], pre["final_norm"], pre["parameters_beyond_post"]) == (32, True, 2 * 2 * 512)
    assert rows["rezero"]["norms_that_go"] == ["none"]
    assert rows["rezero"]["parameters_beyond_post"] == 12 - 30 * 2 * 512
    assert "none" in post["norms_refused"]
    assert "none" in pre["norms_that_go"]
    assert [option["name"] for option in rskip["options"]] == ["times", "shared"]
    assert all(option["help"] and option["type"] for row in rows.values() for option in row["options"])


def test_list_tells_all_facts_of_a_norm(capsys: Capture) -> None:
    assert toolkit(["list", "norms", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    norms = 6 * 2 + 6 * 3 + 2
    found = {name: rows[name]["parameters_beyond_none"] for name in ("layer", "rms", "layer_simple", "none")}
    assert found == {"layer": norms * 1024, "rms": norms * 512, "layer_simple": 0, "none": 0}
    assert "post" in rows["none"]["placements_that_refuse"]
    assert "pre" not in rows["none"]["placements_that_refuse"]
    assert set(rows["batch"]["unfit"]) == {"decoder"}
    assert all(row["figure"] and row["cross_attention"] for row in rows.values())
    drawn = {name: rows[name]["figure"] for name in ("layer", "prms", "group", "instance", "batch", "dyt")}
    assert len(set(drawn.values())) == len(drawn), "they share different numbers"
    assert drawn["layer"] == rows["rms"]["figure"]
    assert rows["ada"]["options"][0] == {"name": "C", "type": "number > 0", "default": 1.0, "help": ANY}
    text = choices_text("norms")
    assert "option C = 1.0: scale" in text


def test_list_without_a_kind_shows_all_registries(capsys: Capture) -> None:
    assert toolkit(["list"]) == 0
    text = capsys.readouterr().out
    assert all(f"{kind}:" in text for kind in REGISTRIES)


def test_list_options_has_every_option_with_its_default(capsys: Capture) -> None:
    assert toolkit(["list", "options", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [option.key for option in options(Config)]
    assert rows["model.d_model"]["default"] == 512
    assert "pre" in rows["model.placement"]["type"].split("|")
    assert rows["model.norm"]["type"].endswith("or mapping by stack, layers, part of a layer")


def test_the_schema_knows_the_sections_and_their_keys(capsys: Capture) -> None:
    assert toolkit(["list", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"extends", "seed", "run_dir", "data", "model", "train", "decode"} == set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_an_unknown_kind_or_command_gets_a_suggestion(capsys: Capture) -> None:
    assert toolkit(["list", "placement"]) == 2
    assert "did you mean 'placements'?" in capsys.readouterr().err
    assert toolkit(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    assert toolkit([]) == 0
    listed = capsys.readouterr().out
    assert all(command in listed for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        toolkit([command, "--help"])
    assert caught.value.code == 0
    assert f"transformer {command}" in capsys.readouterr().out


@pytest.mark.parametrize("norm", ["layer", "rms", "layer_simple"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_explain_counts_what_the_model_has(config: str, placement: str, norm: str, capsys: Capture) -> None:
    if normless(placement):
        norm = "none"
    assert toolkit(["explain", config, "--json", "--placement", placement, "--norm", norm]) == 0
    facts = json.loads(capsys.readouterr().out)
    model = Transformer(
        60,
        60,
        placement=placement,
        norm=norm,
        d_model=16,
        heads=2,
        d_ff=32,
        encoder_layers=1,
        decoder_layers=1,
    )
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        built = sum(type(module) is NORMS[norm] for module in stack.modules()) if norm != "none" else 0
        assert facts[name]["norms"] == built
        assert facts[name]["final_norm"] is not isinstance(stack.final_norm, nn.Identity)
    assert facts["norms"] == facts["encoder"]["norms"] + facts["decoder"]["norms"]
    parameters = facts["parameters"]
    assert parameters["total"] == model.parameter_count()
    assert sum(parameters.values()) == 2 * parameters["total"] + parameters["of these in norms"]


def test_explain_gives_the_equation_of_each_sublayer(config: str, capsys: Capture) -> None:
    assert toolkit(["explain", config, "--placement", "post"]) == 0
    text = capsys.readouterr().out
    for equation in (
        "LN(x + self_attention(x))",
        "LN(x + cross_attention(memory, x))",
        "LN(x + feed_forward(x))",
    ):
        assert equation in text
    assert "final norm: no" in text
    assert toolkit(["explain", config, "--placement", "deepnorm"]) == 0
    assert "alpha = " in capsys.readouterr().out


@pytest.mark.parametrize("schedule", ["constant", "inverse_sqrt", "linear", "cosine"])
def test_explain_gives_the_rates_that_training_will_have(config: str, schedule: str, capsys: Capture) -> None:
    settings = [f"--set=train.schedule={schedule}", "--set", "train.updates=500", "--warmup", "40"]
    assert toolkit(["explain", config, "--json", *settings]) == 0
    rates = json.loads(capsys.readouterr().out)["schedule"]["learning_rate"]
    assert list(rates) == ["1", "10", "40", "100", "500"]
    train = Config.model_validate(
        {"train": {"schedule": schedule, "updates": 500, "warmup": 40, "lr": 0.01}}
    ).train
    assert rates == {update: make_schedule(train, 500).learning_rate(int(update)) for update in rates}


def test_explain_says_when_a_rate_depends_on_the_data(config: str, capsys: Capture) -> None:
    settings = ["--set=train.schedule=cosine", "--set=train.updates=null", "--set=train.epochs=3"]
    assert toolkit(["explain", config, *settings]) == 0
    assert "follow from the data" in capsys.readouterr().out


def test_explain_reads_a_run(run: Path, capsys: Capture) -> None:
    assert toolkit(["explain", str(run), "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["parameters"]["total"]
        == json.loads((run / "result.json").read_text())["parameters"]
    )


def test_demo_shows_translations_and_scores(run: Path, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    assert toolkit(["demo", str(run), "--sentences", "3"]) == 0
    text = capsys.readouterr().out
    assert text.count("en  ") == text.count("de  ") == 3
    assert (folder / "valid.en").read_text().splitlines()[0] in text
    assert "held, 8 sentences: BLEU" in text
    assert "tok:13a" in text
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "result.json").unlink()
    assert toolkit(["demo", str(tmp_path / "copy")]) == 1
    assert "result.json: no scores here" in capsys.readouterr().err


@pytest.mark.parametrize("result", ["[]", '{"test": {"t": {}}}', '{"test": 3}', '{"test": {"t": 1}}'])
def test_demo_names_a_result_it_cannot_read(run: Path, tmp_path: Path, result: str, capsys: Capture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "result.json").write_text(result)
    assert toolkit(["demo", str(copy)]) == 1
    assert "result.json: no scores here" in capsys.readouterr().err


def test_counts_and_folders_that_make_no_sense_are_refused(run: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        toolkit(["demo", str(run), "--sentences", "-3"])
    assert toolkit(["docs", "--root", "/nope"]) == 2
    assert "/nope" in capsys.readouterr().err


def test_data_reports_what_was_kept(config: str, capsys: Capture) -> None:
    assert toolkit(["data", config]) == 0
    assert "200 pairs read, 200 kept" in capsys.readouterr().out
    assert toolkit(["data", config, "--json", "--set", "data.max_length=8"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["kept"] < 200


def test_the_package_runs_as_a_module_and_imports_the_compiler_only_where_it_is_used() -> None:
    """The compiler takes a second to import. What is imported is all that is told on stderr."""
    command = [sys.executable, "-X", "importtime", "-m", "transformer", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    assert "--placement" in done.stdout
    told = [line.partition("import time:") for line in done.stderr.splitlines()]
    assert not [line for line in told if line[0] or not line[1]]
    imported = {line[2].rpartition("|")[2].strip() for line in told}
    assert {"torch", "transformer.training.trainer"} <= imported
    assert "torch._dynamo" not in imported


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("transformer.cli.list.choices_text", interrupt)
    assert toolkit(["list", "norms"]) == 130
    assert capsys.readouterr().err == "interrupted\n"

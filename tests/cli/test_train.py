"""train.py: its messages, its exit codes, and the run directory it leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from transformer.cli.config import Config
from transformer.cli.resolve import run_config
from transformer.cli.train import main as train
from transformer.cli.translate import main as translate
from transformer.core import disk
from transformer.core.disk import clear
from transformer.core.loading import load
from transformer.core.signature import options_of
from transformer.modules.placements import PLACEMENTS
from transformer.training.logbook import Logbook
from transformer.training.shelf import tells_of_states
from transformer.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def subprocess_train(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)


def edit(run: Path, before: str, after: str) -> None:
    """Change a run's configuration by hand: its first line, the seal, has to go."""
    _, _, text = (run / "config.yaml").read_text().partition("\n")
    assert before in text
    (run / "config.yaml").write_text(text.replace(before, after))


def test_a_run_directory_holds_what_the_contract_says(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "tokenizer", "data.json", "metrics.jsonl", "log.txt", "tensorboard"} <= names
    assert {"result.json", "model.safetensors", "checkpoints"} <= names
    result = json.loads((run / "result.json").read_text())
    expected = {
        "status": "completed",
        "updates": 10,
        "placement": "pre",
        "norm": "layer",
        "warmup": 2,
        "peak_lr": 0.01,
        "seed": 1,
    }
    assert {key: result[key] for key in expected} == expected
    for key in ("seconds", "target_tokens_per_second", "parameters", "valid_loss", "valid_bleu"):
        assert result[key] >= 0
    assert {"versions", "commit", "command"} <= set(result)
    held = result["test"]["held"]
    assert held["bleu"] >= 0
    assert "tok:13a" in held["signature"]["bleu"]


def test_the_resolved_configuration_of_a_run_loads_back(run: Path, config: str) -> None:
    written = run_config(run)
    assert written == load(Config, config, [f"run_dir={run}"])
    assert set(yaml.safe_load((run / "config.yaml").read_text())) == set(Config.model_fields)


def test_the_same_command_gives_the_same_weights(run: Path, config: str, tmp_path: Path) -> None:
    assert train([config, "--run-dir", str(tmp_path / "again")]) == 0
    ours, again = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "again"))
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_flags_reach_the_model_and_the_result(other_run: Path) -> None:
    result = json.loads((other_run / "result.json").read_text())
    assert (result["placement"], result["norm"], result["warmup"]) == ("post", "rms", 0)


def test_a_plan_trains_translates_and_stands_in_the_result_on_one_line(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, source = tmp_path / "run", tmp_path / "source"
    plans = ["--placement", "{encoder: resi_dual, decoder: {1: post}}", "--set", "model.norm.final=rms"]
    assert train([config, "--run-dir", str(run), *plans, "--set", "train.updates=2"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["placement"] == "encoder-resi_dual-decoder-1-post"
    assert result["norm"] == "final-rms-default-layer"
    assert train(["--resume", str(run), "--set", "train.updates=4"]) == 0
    source.write_text("one red house.\n")
    capsys.readouterr()
    assert translate([str(run), "--input", str(source)]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_a_resumed_run_ends_like_the_straight_one(run: Path, config: str, tmp_path: Path) -> None:
    part = tmp_path / "part"
    assert train([config, "--run-dir", str(part), "--set", "train.updates=5"]) == 0
    assert train(["--resume", str(part), "--set", "train.updates=10"]) == 0
    ours, resumed = (load_file(folder / "checkpoints/last/model.safetensors") for folder in (run, part))
    assert all(torch.equal(ours[name], resumed[name]) for name in ours)
    assert json.loads((part / "result.json").read_text())["updates"] == 10


def test_a_default_that_has_changed_since_is_refused_and_the_values_are_written_down(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--placement", "xskip", "--set", "train.updates=2", "--run-dir", str(run)]
    assert train([config, *flags]) == 0
    assert json.loads((run / "result.json").read_text())["options"] == {"placement.xskip": {"scale": 2.0}}
    assert "placement_options: {}" in (run / "config.yaml").read_text()
    monkeypatch.setitem(PLACEMENTS["xskip"].__init__.__kwdefaults__, "scale", 3.0)
    options_of.cache_clear()
    try:
        assert train(["--resume", str(run), "--set", "train.updates=4"]) == 1
    finally:
        monkeypatch.undo()
        options_of.cache_clear()
    assert (
        "written with placement.xskip = {'scale': 2.0}, now it is {'scale': 3.0}" in capsys.readouterr().err
    )
    assert train(["--resume", str(run), "--set", "train.updates=4"]) == 0


@pytest.mark.parametrize(
    "change", [["--lr", "1"], ["--placement", "post"], ["--set", "data.source=fr"], ["--seed", "2"]]
)
def test_a_resumed_run_refuses_other_changes(
    run: Path, change: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert train(["--resume", str(run), *change]) == 2
    assert "goes on with what it was started with" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


@pytest.mark.parametrize(
    ("before", "after"),
    [("label_smoothing: 0.1", "label_smoothing: 0.3"), ("placement: pre", "placement: deepnorm")],
)
def test_a_run_whose_configuration_was_edited_does_not_go_on(
    run: Path, before: str, after: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    edit(copy, before, after)
    assert train(["--resume", str(copy), "--set", "train.updates=20"]) == 1
    assert "a run can only go on with what it was started with" in capsys.readouterr().err


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_the_end_of_a_schedule_that_needs_it_cannot_move(
    run: Path, schedule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    edit(copy, "schedule: inverse_sqrt", f"schedule: {schedule}")
    assert train(["--resume", str(copy), "--set", "train.updates=20"]) == 2
    assert f"the {schedule} schedule of this run was laid out for" in capsys.readouterr().err


def test_a_directory_that_holds_a_run_is_refused_and_kept(
    run: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert train([config, "--run-dir", str(run)]) == 2
    message = capsys.readouterr().err
    assert "already holds a run" in message
    assert "--resume" in message
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_overwrite_deletes_a_run_and_nothing_else(
    run: Path, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "notes.txt").touch()
    assert train([config, "--run-dir", str(old), "--overwrite"]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert (old / "model.safetensors").exists()
    (old / "notes.txt").unlink()
    settings = ["--set", "train.updates=1", "--set", "data.tokenizer.vocab_size=50"]
    assert train([config, "--run-dir", str(old), "--overwrite", *settings]) == 0
    assert json.loads((old / "result.json").read_text())["updates"] == 1
    assert not list(old.glob("checkpoints/update-0000010*"))


def test_a_directory_with_other_things_is_refused(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").touch()
    assert train([config, "--run-dir", str(tmp_path)]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert train([config, "--run-dir", str(tmp_path / "thesis.tex")]) == 2


def test_check_prints_the_resolved_configuration_and_writes_nothing(
    config: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(folder.rglob("*"))
    arguments = [config, "--check", "--placement", "deepnorm", "--lr", "1e-4", "--set", "model.dropout=0"]
    assert train([*arguments, "--run-dir", "a=b"]) == 0
    captured = capsys.readouterr()
    shown = yaml.safe_load(captured.out)
    assert shown["model"]["placement"] == "deepnorm"
    assert shown["train"]["lr"] == 1e-4
    assert shown["run_dir"] == "a=b"
    assert "valid" in captured.err
    assert set(folder.rglob("*")) == before


def test_the_run_directory_is_named_after_the_file_and_the_flags(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([config, "--check"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run_dir"] == os.path.join("runs", "tiny-pre")
    assert train([config, "--check", "--placement", "post", "--warmup", "4000", "--seed", "2"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run_dir"] == os.path.join(
        "runs", "tiny-post-warmup4000-seed2"
    )


def test_all_configuration_errors_are_printed_before_any_data_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr("transformer.cli.train.prepare", never)
    file = tmp_path / "bad.yaml"
    file.write_text(
        "data: {source: no, train: x}\nmodle: {}\nmodel:\n  placement: sandwhich\n  d_model: 30\n  heads: 4\n"
        "  lr: 1\ntrain:\n  schedule: invers_sqrt\n  warmup: 4k\n  warmup: 3\n"
    )
    assert train([str(file), "--norm", "rmss", "--lr", "-1", "--set", "decode.beam=0"]) == 2
    message = capsys.readouterr().err
    for expected in (
        "data.source: expected text, got False; YAML reads no, off or false as a boolean: write it in quotes",
        f"({file}, line 1)",
        f"modle: unknown option; did you mean model? ({file}, line 2)",
        f"({file}, line 4)",
        f"model.lr: unknown option; did you mean train.lr? ({file}, line 7)",
        "did you mean 'inverse_sqrt'?",
        f"train.warmup: duplicate key, first on line 10; keep one of the two ({file}, line 11)",
        "did you mean 'rms'?",
        "(--norm rmss)",
        "train.lr: must be greater than 0, got -1 (--lr -1)",
        "(--set decode.beam=0)",
    ):
        assert expected in message, expected
    assert "Traceback" not in message


def test_tying_source_and_target_demands_a_joint_vocabulary(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for tying, code in (("all", 2), ("source_target", 2), ("target_output", 0), ("none", 0)):
        settings = [f"--set=model.tie_embeddings={tying}", "--set", "data.tokenizer.joint=false"]
        assert train([config, "--check", *settings]) == code
    assert "data.tokenizer.joint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a configuration file"),
        (["x.yaml", "--resume", "y"], "give a configuration file, or --resume"),
        (["no-such-file.yaml"], "cannot read no-such-file.yaml"),
        (["--resume", "no-such-run"], "no such run directory"),
        (["CONFIG", "--device", "abacus"], "--device abacus"),
    ],
)
def test_a_wrong_command_line_is_explained(
    config: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = train([config if argument == "CONFIG" else argument for argument in arguments])
    assert code in (1, 2)
    assert message in capsys.readouterr().err


def test_an_unknown_flag_is_refused(config: str) -> None:
    with pytest.raises(SystemExit) as caught:
        train([config, "--placment", "pre"])
    assert caught.value.code == 2


def test_missing_data_is_an_error_of_its_own_that_names_the_file(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("train", "valid", "test.held"):
        arguments = ["--set", f"data.{key}={tmp_path}/gone", "--run-dir", str(tmp_path / key)]
        assert train([config, *arguments]) == 1
        message = capsys.readouterr().err
        assert str(tmp_path / "gone") in message
        assert "Traceback" not in message


def test_a_failed_start_does_not_block_the_next(config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train([config, "--run-dir", str(run), "--set", f"data.test.x={tmp_path}/gone"]) == 1
    assert train([config, "--run-dir", str(run), "--set", "train.updates=1"]) == 0


def test_help_tells_all_that_can_be_toggled(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "resi_dual",
        "layer_simple",
        "inverse_sqrt_decoupled",
        "adafactor",
        "batch_tokens",
        "--resume",
        "130",
    ):
        assert word in text


def test_divergence_is_a_result_with_exit_code_3(config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert (
        train([config, "--run-dir", str(run), "--lr", "1e30", "--warmup", "0", "--set", "train.clip=0"]) == 3
    )
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "diverged"
    assert result["reason"]


def test_a_truncated_checkpoint_is_named_and_cannot_be_resumed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "previous")
    state = copy / "checkpoints" / "last" / "trainer.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert train(["--resume", str(copy), "--set", "train.updates=20"]) == 1
    message = capsys.readouterr().err
    assert str(state) in message
    assert "Traceback" not in message


@pytest.mark.parametrize("file", ["model.safetensors", "result.json", "log.txt"])
def test_where_the_end_cannot_be_written_the_way_on_is_told(
    file: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    if file == "log.txt":
        write = Logbook.validation

        def full(self: Logbook, *arguments: Any) -> None:
            monkeypatch.setattr("transformer.training.logbook.not_through_a_link", refuse)
            write(self, *arguments)

        monkeypatch.setattr(Logbook, "validation", full)
    else:
        replace = disk.replace

        def refuse_it(temporary: Path, path: Path) -> None:
            if path == copy / file:
                refuse()
            replace(temporary, path)

        monkeypatch.setattr("transformer.training.checkpoint.replace", refuse_it)
    assert train(["--resume", str(copy), "--set", "train.updates=20"]) == 1
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert f"once this is mended, --resume {copy} goes on after update " in told
    monkeypatch.undo()
    assert train(["--resume", str(copy)]) == 0


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.usefixtures("starts_warm")
def test_the_script_reports_errors_without_a_traceback(config: str) -> None:
    done = subprocess_train(config, "--set", "model.d_model=x", "--check")
    assert done.returncode == 2
    assert "model.d_model: expected a number, got 'x' (--set model.d_model=x)" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_and_the_run_goes_on_exactly(
    run: Path, config: str, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, step = tmp_path / "part", Trainer.step

    def step_and_signal(trainer: Trainer, batches: Sequence[Any]) -> None:
        step(trainer, batches)
        if trainer.progress.update == 7:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step_and_signal)
        assert train([config, "--run-dir", str(part)]) == 130
    result = json.loads((part / "result.json").read_text())
    assert (result["status"], result["updates"]) == ("interrupted", 7)
    assert train(["--resume", str(part)]) == 0
    ours, resumed = (load_file(folder / "model.safetensors") for folder in (run, part))
    assert all(torch.equal(ours[name], resumed[name]) for name in ours)


def test_a_signal_while_the_test_sets_are_scored_is_an_interruption_and_resumed_they_are_scored(
    run: Path,
    config: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    part, went_on = tmp_path / "part", []

    def signalled(*_: object) -> dict[str, Any]:
        signal.raise_signal(signal.SIGTERM)
        went_on.append(sum(range(10**6)))
        return {}

    with monkeypatch.context() as patch:
        patch.setattr("transformer.cli.conclude.score_test_sets", signalled)
        assert train([config, "--run-dir", str(part)]) == 130
    assert not went_on
    assert "SIGTERM: breaking off the scoring of the test sets" in capfd.readouterr().err
    result = json.loads((part / "result.json").read_text())
    assert (result["status"], result["test"]) == ("interrupted", {})
    assert train(["--resume", str(part)]) == 0
    ended, straight = (json.loads((each / "result.json").read_text()) for each in (part, run))
    assert (ended["status"], ended["test"]) == ("completed", straight["test"])


def test_resuming_without_checkpoints_does_not_replace_the_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints")
    before = (copy / "model.safetensors").read_bytes()
    assert train(["--resume", str(copy)]) == 1
    assert "nothing to resume" in capsys.readouterr().err
    assert (copy / "model.safetensors").read_bytes() == before


def forget_states(run: Path) -> None:
    """Take out of the log that states were saved."""
    lines = (run / "log.txt").read_text().splitlines(keepends=True)
    (run / "log.txt").write_text("".join(line for line in lines if "  state " not in line))


def test_a_run_that_was_killed_before_it_saved_anything_begins_again(run: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(run, part)
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(part / name)
    for name in ("model.safetensors", "result.json"):
        (part / name).unlink()
    forget_states(part)
    assert train(["--resume", str(part)]) == 0
    ours, again = (load_file(folder / "model.safetensors") for folder in (run, part))
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_whatever_a_log_holds_it_is_soon_known_whether_it_tells_of_states(tmp_path: Path) -> None:
    began = time.process_time()
    for text in (b"\n" * 10**5, b"a" * 10**5, b"a \n" * 10**5, b"a a  state " * 10**4):
        (tmp_path / "log.txt").write_bytes(text)
        assert not tells_of_states(tmp_path)
    assert time.process_time() - began < 3, "not the square of its length"
    (tmp_path / "log.txt").write_bytes(b"\n" * 10**5 + b"2026-01-01 00:00:00  state 0af after update 3\n")
    assert tells_of_states(tmp_path)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_run_does_not_go_on_with_other_text(
    config: str, folder: Path, tmp_path: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (*folder.glob("train.*"), *folder.glob("valid.*")):
        shutil.copy(path, tmp_path)
    data = [f"--set=data.{name}={tmp_path}/{name}" for name in ("train", "valid")]
    run = tmp_path / "run"
    assert train([config, "--run-dir", str(run), *data]) == 0
    for side in ("en", "de"):
        path = tmp_path / f"{split}.{side}"
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert train(["--resume", str(run), "--set", "train.updates=20"]) == 1
    assert f"{'training' if split == 'train' else 'validation'} text = " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "RUN", "--overwrite"], "--overwrite starts again"),
        (["--resume", "RUN", "--run-dir", "other"], "run_dir: a run goes on with what it was started with"),
        (["CONFIG", "--check", "--device", "abacus"], "--device abacus"),
        (["CONFIG", "--device", "meta"], "--device meta"),
        (["CONFIG", "--device", "hpu"], "--device hpu: No module named 'torch.hpu'; use auto"),
        (
            ["CONFIG", "--check", "--set", "train.threads=1025"],
            "train.threads: must be less than or equal to 1024",
        ),
        (["--resume", "RUN", "--set", "train.threads=2147483648"], "train.threads: must be"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(
    run: Path, config: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"RUN": str(run), "CONFIG": config}
    assert train([words.get(argument, argument) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("stamp", ["", "{}", "[]", '{"options": 3, "text": ""}'])
def test_a_damaged_stamp_of_the_tokenizer_is_named(
    run: Path, tmp_path: Path, stamp: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "tokenizer" / "trained_from.json").write_text(stamp)
    assert train(["--resume", str(copy)]) == 1
    assert "trained_from.json: cut short or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["nothing", "a directory", "a link"])
def test_a_run_whose_states_are_gone_is_not_begun_again(
    left: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where `checkpoints` is on a disk that is not mounted."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for name in ("model.safetensors", "result.json"):
        (copy / name).unlink()
    shutil.move(copy / "checkpoints", tmp_path / "disk")
    if left == "a directory":
        (copy / "checkpoints").mkdir()
    elif left == "a link":
        (copy / "checkpoints").symlink_to(tmp_path / "gone")
    before = (copy / "metrics.jsonl").read_bytes()
    assert train(["--resume", str(copy)]) == 1
    assert "nothing to resume; put it back (is its disk there?)" in capsys.readouterr().err
    assert (copy / "metrics.jsonl").read_bytes() == before
    if left != "nothing":
        clear(copy / "checkpoints")
    shutil.move(tmp_path / "disk", copy / "checkpoints")
    assert train(["--resume", str(copy)]) == 0


def test_a_run_that_saved_nothing_says_how_it_ended(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints")
    (copy / "model.safetensors").unlink()
    (copy / "result.json").write_text('{"status": "diverged", "reason": "too fast"}')
    forget_states(copy)
    assert translate([str(copy)]) == 1
    assert "the run ended as diverged (too fast)" in capsys.readouterr().err
    assert train(["--resume", str(copy)]) == 0
    assert "ended as diverged (too fast), and nothing was saved: beginning again" in capsys.readouterr().err

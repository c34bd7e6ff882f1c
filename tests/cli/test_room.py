"""What a new run does with a directory that holds something, and what a start that fails leaves there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from transformer.cli.average import main as average
from transformer.cli.hold import held
from transformer.cli.room import room, settle
from transformer.cli.train import main as train
from transformer.cli.translate import main as translate
from transformer.core.errors import ConfigError


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def old_run(folder: Path) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "model.safetensors", "checkpoints/best.safetensors"):
        (folder / name).write_text(f"old {name}")
    return folder


@pytest.mark.parametrize("key", ["data.train", "data.test.x"])
def test_an_overwrite_that_fails_before_training_leaves_the_old_run(
    run: Path, config: str, tmp_path: Path, key: str
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    before = tree(old)
    assert train([config, "--run-dir", str(old), "--overwrite", "--set", f"{key}={tmp_path}/typo"]) == 1
    assert tree(old) == before


def test_a_failed_start_leaves_nothing_that_the_next_one_uses(
    config: str, folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    other = f"data.train={folder}/valid"
    bad = ["--set", other, "--set", "data.tokenizer.vocab_size=30", "--set", "data.max_length=1"]
    assert train([config, "--run-dir", str(run), *bad]) == 1
    assert (run / "tokenizer").is_dir()
    for name in ("run", "fresh"):
        assert train([config, "--run-dir", str(tmp_path / name), "--set", "train.updates=1"]) == 0
    (ours,), (fresh,) = (list((tmp_path / name / "tokenizer").glob("*.model")) for name in ("run", "fresh"))
    assert ours.read_bytes() == fresh.read_bytes()


def test_a_start_that_was_killed_gives_the_old_run_back(tmp_path: Path) -> None:
    old = old_run(tmp_path / "run")
    before = tree(old)
    dead = room(old, overwrite=True)
    dead.__enter__()
    (old / "config.yaml").write_text("new")
    with pytest.raises(ConfigError, match="already holds a run"), room(old, overwrite=False):
        pass
    assert tree(old) == before
    dead.gen.close()  # type: ignore[attr-defined]


def test_once_settled_the_old_run_is_gone_whatever_happens_then(tmp_path: Path) -> None:
    old = old_run(tmp_path / "run")

    def begin_and_fail() -> None:
        with room(old, overwrite=True):
            (old / "config.yaml").write_text("new")
            settle(old)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin_and_fail()
    assert tree(old) == {"config.yaml": b"new"}


def test_what_average_and_a_killed_write_leave_does_not_block_overwriting(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    assert average([str(old)]) == 0
    assert (old / "checkpoints" / "averaged.safetensors").is_file()
    (old / "result.json.17.partial").touch()
    with room(old, overwrite=True):
        settle(old)
    assert not list(old.iterdir())


@pytest.mark.parametrize("name", ["", " ", "a\0b", "/dev/null/x"])
def test_a_directory_that_cannot_be_is_explained(
    config: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([config, "--run-dir", name]) in (1, 2)
    assert capsys.readouterr().err.startswith(("error: invalid configuration", "error: /dev/null"))


def test_files_that_no_run_began_are_refused_and_kept(config: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "tokenizer").mkdir(parents=True)
    for name in ("log.txt", "data.json", "thesis.partial", "tokenizer/joint.model"):
        (mine / name).write_text("my notes")
    before = tree(mine)
    assert train([config, "--run-dir", str(mine)]) == 2
    assert tree(mine) == before


def test_overwriting_a_run_does_not_touch_a_strangers_partial_file(tmp_path: Path) -> None:
    old = old_run(tmp_path / "run")
    (old / "thesis.partial").write_text("my notes")
    with pytest.raises(ConfigError, match=r"thesis\.partial"), room(old, overwrite=True):
        pass
    assert (old / "thesis.partial").read_text() == "my notes"


def test_a_refused_resume_leaves_the_run_as_it_was(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    _, _, text = (copy / "config.yaml").read_text().partition("\n")  # without its seal
    (copy / "config.yaml").write_text(text.replace("label_smoothing: 0.1", "label_smoothing: 0.2"))
    before = tree(copy)
    assert train(["--resume", str(copy), "--set", "train.updates=99"]) == 1
    after = tree(copy)
    log = before.pop("log.txt")
    assert after.pop("log.txt").startswith(log)
    assert after == before


def test_averaging_does_not_write_over_a_file_of_the_run(run: Path) -> None:
    before = tree(run)
    for name in (
        "config.yaml",
        "model.safetensors",
        "checkpoints/update-0000099.safetensors",
        "checkpoints/damaged",
    ):
        assert average([str(run), "--output", str(run / name)]) == 2
    assert tree(run) == before


@pytest.mark.parametrize("when", ["moving", "replaced", "laid out"])
def test_resuming_after_an_overwrite_was_killed_goes_on_with_the_run_it_put_aside(
    when: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    aside = old / f".{'moving' if when == 'moving' else 'replaced'}"
    aside.mkdir()
    names = [path.name for path in old.iterdir() if path != aside]
    for name in ("checkpoints", "model.safetensors") if when == "moving" else names:
        (old / name).rename(aside / name)
    if when == "laid out":
        (old / "config.yaml").write_text((aside / "config.yaml").read_text())
    if when == "replaced":
        assert translate([str(old), "--input", str(run / "config.yaml")]) == 1
        assert f"train.py --resume {old} puts it back" in capsys.readouterr().err
    with held(old):
        assert train(["--resume", str(old)]) == 1
        assert "is in use" in capsys.readouterr().err
    assert aside.is_dir()
    assert train(["--resume", str(old)]) == 0
    told = capsys.readouterr().err
    assert "note: put back the run" in told
    assert "resumed after update 10" in told
    assert {path.name for path in old.iterdir()} == {path.name for path in run.iterdir()}

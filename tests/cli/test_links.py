"""A run directory may come from anywhere: what a link in it leads to is not changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from transformer.cli.hold import held
from transformer.cli.train import main as train
from transformer.core.disk import not_through_a_link
from transformer.core.errors import CheckpointError
from transformer.studies.locks import take
from transformer.training.logbook import Logbook, append


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_resumed_run_does_not_write_through_a_link(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    shutil.copytree(run, copy)
    (copy / name).replace(elsewhere)
    (copy / name).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    assert train(["--resume", str(copy), "--set", "train.updates=20"]) == 1
    done = "written" if name == "log.txt" else "cut"
    assert f"{copy / name}: cannot be {done} (it is a link" in capsys.readouterr().err
    assert elsewhere.read_bytes() == before
    (copy / name).unlink()
    elsewhere.replace(copy / name)
    assert train(["--resume", str(copy), "--set", "train.updates=20"]) == 0


def test_every_other_file_of_a_run_is_replaced_and_not_written_through(run: Path, tmp_path: Path) -> None:
    """Also one that is cut, as metrics.jsonl after a crash."""
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    shutil.copytree(run, copy)
    files = [path for path in copy.rglob("*") if path.is_file()]
    kept = {}
    for number, path in enumerate(files):
        if path.name in ("log.txt", "metrics.jsonl"):
            continue
        other = elsewhere / str(number)
        other.parent.mkdir(exist_ok=True)
        path.replace(other)
        path.symlink_to(other)
        kept[other] = other.read_bytes()
    assert len(kept) > 10
    assert train(["--resume", str(copy), "--set", "train.updates=20"]) == 0
    assert {other: other.read_bytes() for other in kept} == kept


def test_a_link_is_neither_locked_cut_nor_written_through(tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.write_text("precious\n")
    run.mkdir()
    for name in ("run.lock", "metrics.jsonl"):
        (run / name).symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match=r"run\.lock: cannot be written \(it is a link"), held(run):
        pass
    with pytest.raises(OSError, match="it is a link"):
        take(run / "run.lock")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be cut \(it is a link"):
        Logbook(run, tensorboard=False).open(position=3)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written \(it is a link"):
        append(run / "metrics.jsonl", "more")
    (run / "dangling").symlink_to(tmp_path / "new")
    with pytest.raises(OSError, match="it is a link"), open(run / "dangling", "w", opener=not_through_a_link):
        pass
    assert not (tmp_path / "new").exists()
    assert elsewhere.read_text() == "precious\n"


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "run.lock"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    assert train(["--resume", str(copy), "--set", "train.updates=20"]) == 1
    assert f"{copy / name}: " in capsys.readouterr().err
    reader = os.open(copy / name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert train(["--resume", str(copy), "--set", "train.updates=20"]) == 1
        assert "it is no file" in capsys.readouterr().err
    finally:
        os.close(reader)


def test_a_directory_may_lie_elsewhere(run: Path, tmp_path: Path) -> None:
    """As on a larger disk."""
    copy, disk = tmp_path / "copy", tmp_path / "disk"
    shutil.copytree(run, copy)
    (copy / "checkpoints").replace(disk)
    (copy / "checkpoints").symlink_to(disk)
    assert train(["--resume", str(copy), "--set", "train.updates=20"]) == 0
    assert (disk / "last" / "trainer.pt").is_file()

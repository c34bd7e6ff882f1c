"""One training at a time in a run directory; readers are not hindered; nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from transformer.cli.hold import held
from transformer.cli.room import room
from transformer.cli.train import main as train
from transformer.cli.translate import main as translate
from transformer.core.errors import CheckpointError, ConfigError
from transformer.core.holding import require_held
from transformer.training.trainer import Trainer


def test_a_second_training_is_refused_with_who_holds_the_directory(
    run: Path, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.write_text("one red house.\n")
    before = (run / "log.txt").read_bytes()
    with held(run):
        for arguments in (["--resume", str(run)], [config, "--run-dir", str(run), "--overwrite"]):
            assert train(arguments) == 1
            message = capsys.readouterr().err
            assert f"{run} is in use: process {os.getpid()} on {socket.gethostname()} trains there" in message
        assert translate([str(run), "--input", str(source)]) == 0  # readers do not ask
    assert (run / "log.txt").read_bytes() == before
    assert not (run / "run.lock").exists()


def test_the_lock_of_a_process_that_died_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text('{"pid": 1, "host": "elsewhere"}')
    with held(tmp_path):
        assert str(os.getpid()) in (tmp_path / "run.lock").read_text()
    assert not (tmp_path / "run.lock").exists()


HOLDER = """
import fcntl, json, os, socket, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
file.flush()
if os.fork() == 0:
    time.sleep(0.5)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_had_just_started_is_waited_for(tmp_path: Path) -> None:
    """A child has a copy of the lock until it is a program of its own: git's, say, when a run is killed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=f"process {holder.pid} on"), held(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with open(tmp_path / "run.lock") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # still
        with held(tmp_path):
            assert str(os.getpid()) in (tmp_path / "run.lock").read_text()


@pytest.mark.parametrize("text", ["", "[" * 9, "3", '{"pid": 1e999, "host": "a"}', '{"pid": -1, "host": ""}'])
def test_a_lock_that_does_not_say_whose_it_is_is_respected(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformer.cli.hold.time.sleep", lambda _: None)
    (tmp_path / "run.lock").write_text(text)
    with open(tmp_path / "run.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="in use"), held(tmp_path):
            pass


def test_a_patient_one_waits_for_the_lock_of_one_that_is_about_to_end(tmp_path: Path) -> None:
    """As a rank that torchrun starts anew, while the one that it killed is still there."""
    with ExitStack() as first:
        first.enter_context(held(tmp_path))
        with pytest.raises(CheckpointError, match="in use"), held(tmp_path, patience=0.2):
            pass
        ending = threading.Timer(0.3, first.close)
        ending.start()
        with held(tmp_path, patience=60):
            assert (tmp_path / "run.lock").exists()
        ending.join()


def test_a_lock_file_that_its_holder_removed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our opening it and our locking it: a lock on a removed file would keep nobody out."""
    path, flock, removed = tmp_path / "run.lock", fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(path.unlink())
        flock(descriptor, how)

    monkeypatch.setattr("transformer.cli.hold.fcntl.flock", late)
    with held(tmp_path):
        assert path.exists()
        with pytest.raises(CheckpointError, match="in use"), held(tmp_path):
            pass


def test_where_nothing_can_be_locked_that_is_said_and_where_nothing_can_be_written_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr("transformer.cli.hold.fcntl.flock", refuse)
        with held(tmp_path):
            assert "cannot be locked (No locks available)" in capsys.readouterr().err

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("transformer.cli.hold.os.open", read_only)
    told = r"cannot be written \(Read-only file system\); make it writable"
    with pytest.raises(CheckpointError, match=told), held(tmp_path):
        pass


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"), held(tmp_path / "file"):
        pass


@pytest.mark.parametrize("anew", [False, True], ids=["removed", "another's"])
def test_who_has_lost_the_lock_writes_nothing_more(
    anew: bool,
    config: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, step = tmp_path / "run", Trainer.step

    def losing(trainer: Trainer, batches: Any) -> None:
        step(trainer, batches)
        if trainer.progress.update == 7:
            (ours / "run.lock").unlink()
            if anew:
                (ours / "run.lock").write_text("another process")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", losing)
        assert train([config, "--run-dir", str(ours)]) == 1
    told = capsys.readouterr().err
    assert f"error: {ours / 'run.lock'} has been removed or replaced" in told
    assert f"--resume {ours} goes on after update 5" in told
    manifest = json.loads((ours / "checkpoints" / "last" / "manifest.json").read_text())
    assert manifest["update"] == 5
    assert not (ours / "result.json").exists()
    assert (ours / "run.lock").exists() == anew


def test_who_has_lost_the_lock_puts_nothing_back(run: Path, tmp_path: Path) -> None:
    """Another one has begun to train there meanwhile."""
    ours = tmp_path / "run"
    shutil.copytree(run, ours)
    with suppress(InterruptedError), held(ours), room(ours, overwrite=True):
        (ours / "run.lock").unlink()
        (ours / "config.yaml").write_text("of another one")
        raise InterruptedError
    assert (ours / "config.yaml").read_text() == "of another one"


def test_the_directory_that_a_process_works_in_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with held(Path("run")):
        monkeypatch.chdir("/")
        require_held(tmp_path / "run" / "model.safetensors")
        os.utime(tmp_path / "run" / "run.lock", (0, 0))
        require_held(tmp_path / "run" / "model.safetensors")
        assert (tmp_path / "run" / "run.lock").stat().st_mtime > 0, "it is not old"


def test_a_lock_that_cannot_be_touched_is_held_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that has become read-only: what is written then says so, with its name."""

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with held(tmp_path / "run"):
        monkeypatch.setattr(os, "utime", read_only)
        require_held(tmp_path / "run" / "model.safetensors")


def test_what_lies_elsewhere_asks_for_no_lock(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    with held(tmp_path / "held"):
        (tmp_path / "held" / "run.lock").unlink()
        require_held(tmp_path / "other" / "model.safetensors")
        with pytest.raises(CheckpointError, match="is not written"):
            require_held(tmp_path / "held" / "checkpoints" / "last")
    require_held(tmp_path / "held" / "checkpoints" / "last")

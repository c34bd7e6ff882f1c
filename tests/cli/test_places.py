"""What a run directory holds is read where it is a regular file; what a user names may be a pipe."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hostile_places import instead

from transformer.cli.train import main as train
from transformer.cli.translate import main as translate
from transformer.core.disk import content
from transformer.core.errors import CheckpointError
from transformer.training.checkpoint import read_weights
from transformer.training.history import read_past
from transformer.training.manifest import file_digest


@contextmanager
def piped(path: Path, text: str) -> Iterator[str]:
    """A pipe that somebody writes to, as of a process substitution."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(text,), daemon=True)
    writer.start()
    yield str(path)
    writer.join(10)
    assert not writer.is_alive(), "it was not read"


def test_a_pipe_is_read_where_the_user_names_it(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with piped(tmp_path / "config", (folder / "tiny.yaml").read_text()) as config:
        assert train([config, "--check"]) == 0
    with piped(tmp_path / "in", "one\ntwo\n") as source, piped(tmp_path / "ref", "eins\nzwei\n") as reference:
        assert translate([str(run), "--input", source, "--reference", reference]) == 0
    assert "BLEU" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_regular_file_is_named_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with instead(path, kind) as waited:
        for read in (content, file_digest):
            with pytest.raises(OSError, match=f"it is no regular file: '{path}'"):
                read(path)
        for reader in (read_weights, read_past):
            with pytest.raises(CheckpointError, match=f"{path}: .*it is no regular file"):
                reader(path)
    assert not waited


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer/joint.model", "config.yaml"])
def test_a_device_is_not_read(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / name).unlink()
    (copy / name).symlink_to("/dev/zero")
    assert translate([str(copy), "--input", os.devnull]) == 1
    message = capsys.readouterr().err
    assert str(copy / name) in message
    assert "it is no regular file" in message


def test_what_a_configuration_extends_is_no_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("extends: parent.yaml\n")
    with instead(tmp_path / "parent.yaml", "pipe") as waited:
        assert train([str(child), "--check"]) == 2
    assert "parent.yaml: it is no regular file" in capsys.readouterr().err
    assert not waited

"""What a run directory holds is read where it is a regular file; what a user names may be a pipe."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hostile_places import instead

from transformer.cli.compare import main as compare
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


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("config.yaml", 1, "config.yaml: damaged or edited"),
        (
            "tokenizer/joint.model",
            1,
            "joint.model: cannot read the tokenizer: it has more than 268,435,456 bytes",
        ),
        ("tokenizer/trained_from.json", 1, "it has more than 268,435,456 bytes"),
        ("checkpoints/last/manifest.json", 0, "it has more than 268,435,456 bytes"),
    ],
)
def test_a_file_of_a_run_that_is_far_too_large_is_not_read_whole(
    name: str, code: int, words: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 GB, with holes: what begins as it was written."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    os.truncate(copy / name, 1 << 33)
    assert train(["--resume", str(copy), "--set", "train.updates=11"]) == code
    assert words in capsys.readouterr().err + (copy / "log.txt").read_text()


def test_a_configuration_without_seal_that_is_far_too_large_is_not_read_whole(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    file = copy / "config.yaml"
    file.write_text(file.read_text().partition("\n")[2])
    os.truncate(file, 1 << 33)
    assert train(["--resume", str(copy), "--set", "train.updates=11"]) == 2
    assert "it has more than 4,000,000 bytes" in capsys.readouterr().err


def test_a_result_that_is_far_too_large_is_not_read_whole(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    os.truncate(copy / "result.json", 1 << 33)
    assert compare([str(copy), str(run)]) == 0
    assert "parameters: unknown and" in capsys.readouterr().out


def test_a_reference_that_no_metric_is_made_for_is_refused_before_anything_is_translated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, output = tmp_path / "reference", tmp_path / "output"
    for length, code in ((1_000_000, 0), (1_000_001, 1)):
        reference.write_text("x" * length + "\n")
        source = tmp_path / "in"
        source.write_text("one\n")
        output.write_text("as it was\n")
        flags = ["--input", str(source), "--output", str(output), "--reference", str(reference)]
        assert translate([str(run), *flags]) == code
    assert "reference: line 1 has 1,000,001 characters, more than 1,000,000" in capsys.readouterr().err
    assert output.read_text() == "as it was\n"


def test_a_test_set_with_a_line_on_which_ter_would_not_end_is_scored_without_ter(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a validation set as before, whose metrics take time that grows with the line and no faster."""
    monkeypatch.setattr("transformer.data.corpus.LONGEST_SCORED", 1000)
    (tmp_path / "long.en").write_text("one\ntwo\n")
    (tmp_path / "long.de").write_text("eins\n" + "x" * 1001 + "\n")
    file = tmp_path / "long.yaml"
    config = (folder / "tiny.yaml").read_text().replace("cache:", "max_unknown: 0.99\n  cache:")
    file.write_text(config.replace(f"{folder}/valid", f"{tmp_path}/long"))
    assert train([str(file), "--run-dir", str(tmp_path / "run")]) == 0
    held = json.loads((tmp_path / "run" / "result.json").read_text())["test"]["held"]
    assert "ter" not in held
    assert held["bleu"] >= 0
    said = "without TER: line 2 has 1,001 characters, more than 1,000"
    assert said in held["warnings"]
    assert said in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("beside", [False, True])
def test_a_directory_beside_compressed_text_is_not_in_its_way(
    beside: bool, folder: Path, tmp_path: Path
) -> None:
    for side in ("en", "de"):
        (tmp_path / f"train.{side}.gz").write_bytes(gzip.compress((folder / f"train.{side}").read_bytes()))
        if beside:
            (tmp_path / f"train.{side}").mkdir()
    file = tmp_path / "packed.yaml"
    file.write_text((folder / "tiny.yaml").read_text().replace(f"{folder}/train", f"{tmp_path}/train"))
    assert train([str(file), "--run-dir", str(tmp_path / "run")]) == 0


def test_text_that_is_a_pipe_is_named_as_such(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side in ("en", "de"):
        os.mkfifo(tmp_path / f"train.{side}")
    file = tmp_path / "piped.yaml"
    file.write_text((folder / "tiny.yaml").read_text().replace(f"{folder}/train", f"{tmp_path}/train"))
    assert train([str(file), "--run-dir", str(tmp_path / "run")]) == 1
    assert f"{tmp_path}/train.en: what has that name is no regular file" in capsys.readouterr().err

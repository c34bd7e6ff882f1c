"""Consoles that go away, disks that fill up, and streams that the shell has closed or does not wait for."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from transformer.__main__ import main as toolkit
from transformer.cli.command import command
from transformer.cli.train import main as train
from transformer.cli.translate import main as translate

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
Capture = pytest.CaptureFixture[str]
full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


class Broken(io.StringIO):
    """A pipe whose reader has gone after `lines` writes."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.left = lines

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


@pytest.mark.parametrize("lines", [0, 9])
def test_training_survives_the_loss_of_its_console(
    config: str, run: Path, tmp_path: Path, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(lines))
    assert train([config, "--run-dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("the console cannot be written") == 1
    assert log.count("\n") == (run / "log.txt").read_text().count("\n") + 1


@full_disk
def test_a_full_disk_is_an_error_and_not_a_traceback(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert translate([str(run), "--input", str(folder / "valid.en"), "--output", "/dev/full"]) == 1
    assert capsys.readouterr().err == "error: /dev/full: cannot be written: No space left on device\n"


@full_disk
@pytest.mark.usefixtures("starts_warm")
@pytest.mark.parametrize(
    "arguments",
    [
        ["translate", "RUN"],
        ["list", "norms"],
        ["list", "--json", "options"],
        ["doctor"],
        ["--help"],
        ["list", "--help"],
    ],
    ids=" ".join,
)
def test_a_full_disk_behind_standard_output_is_named(
    run: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Much and little of it: a full buffer is written at another place than what is left at the end."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one red house.\n")))
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert toolkit([str(run) if each == "RUN" else each for each in arguments]) == 1
    said = "error: standard output: cannot be written: No space left on device\n"
    assert capsys.readouterr().err.endswith(said)


def test_closed_streams_are_errors_only_where_they_are_used(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    arguments = [str(run), "--input", str(folder / "valid.en"), "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        for name in ("stdin", "stdout", "stderr"):
            patch.setattr(sys, name, None)
        assert translate(arguments) == 0
        assert translate(arguments[:1]) == 1
        assert toolkit(["list", "norms"]) == 1
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            stream.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        assert translate([str(run)]) == 1
        assert "stdin is closed" in capsys.readouterr().err
        sys.stdin.close()


def test_output_named_gz_is_compressed(run: Path, folder: Path, tmp_path: Path) -> None:
    for name in ("out", "out.gz"):
        arguments = ["--input", str(folder / "valid.en"), "--output", str(tmp_path / name)]
        assert translate([str(run), *arguments]) == 0
    assert gzip.decompress((tmp_path / "out.gz").read_bytes()) == (tmp_path / "out").read_bytes()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "memory does not suffice (MemoryError)"),
        (ZeroDivisionError("ours"), "Traceback"),
    ],
    ids=["disk", "memory", "ours"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_cannot_go_on_says_so_in_a_line(error: Exception, words: str, capsys: Capture) -> None:
    """As TensorBoard's does; what is our own fault keeps its traceback."""

    def fail() -> None:
        raise error

    def threaded(argv: object) -> int:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return 0

    kept = threading.excepthook
    threading.excepthook = threading.__excepthook__
    try:
        assert command(threaded)([]) == 0
    finally:
        threading.excepthook = kept
    said = capsys.readouterr().err
    assert words in said
    assert ("Traceback" in said) == (words == "Traceback")
    assert said.count("\n") == 1 or words == "Traceback"


@pytest.mark.usefixtures("starts_warm")
def test_an_input_that_was_not_to_be_waited_for_is() -> None:
    """Python would take a moment without data for its end."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    body = "print('ready', flush=True); print(list(sys.stdin.buffer))"
    with started(body, stdin=reading, stdout=subprocess.PIPE) as process:
        os.close(reading)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for part in (b"one\n", b"two ", b"words\n"):
            time.sleep(0.2)
            os.write(writing, part)
        os.close(writing)
        assert process.stdout.read() == b"[b'one\\n', b'two words\\n']\n"
        assert process.wait(timeout=60) == 0


@pytest.mark.usefixtures("starts_warm")
def test_an_output_whose_reader_is_slower_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    body = "for i in range(60_000): print('line', i)"
    with started(body, stdout=writing) as process, open(reading, "rb") as stream:
        os.close(writing)
        assert stream.readline() == b"line 0\n"
        time.sleep(0.5)  # until the pipe is full
        assert len(stream.read().splitlines()) == 60_000 - 1
        assert process.wait(timeout=60) == 0


def started(body: str, stdin: int | None = None, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """A program of the toolkit that runs one line."""
    code = (
        "import sys; from transformer.cli.command import command\n"
        f"def run(argv):\n    {body}\n    return 0\n"
        "sys.exit(command(run)([]))"
    )
    return subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdin=stdin, stdout=stdout)


def test_what_a_console_has_no_sign_for_is_escaped(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(taken, encoding="ascii"))
    assert train([config, "--check", "--run-dir", str(tmp_path / "müde")]) == 0
    assert f"run_dir: {tmp_path}/m\\xfcde\n".encode() in taken.getvalue()


@pytest.mark.usefixtures("starts_warm")
def test_a_file_is_not_translated_into_itself(run: Path, folder: Path, tmp_path: Path) -> None:
    """Also where the shell has opened it: what is emptied before it is read is lost."""
    text = tmp_path / "text"
    shutil.copy(folder / "valid.en", text)
    before, command = text.read_bytes(), [sys.executable, str(ROOT / "translate.py"), str(run)]

    def translated(source: int, target: int, *more: str) -> int:
        streams = {"stdin": source, "stdout": target, "stderr": subprocess.DEVNULL}
        return subprocess.run([*command, *more], **streams, env=ENVIRONMENT, timeout=60).returncode  # type: ignore[call-overload,no-any-return]

    with open(text, "rb") as source, open(text, "ab") as same:
        assert translated(source.fileno(), subprocess.DEVNULL, "--output", str(text)) == 2
        assert translated(source.fileno(), same.fileno()) == 2
        assert text.read_bytes() == before
        assert translated(source.fileno(), subprocess.DEVNULL, "--output", str(tmp_path / "other")) == 0
    assert (tmp_path / "other").read_bytes().count(b"\n") == before.count(b"\n")
    assert translated(subprocess.DEVNULL, subprocess.DEVNULL, "--output", os.devnull) == 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "checkpoints/best.safetensors"])
def test_translations_do_not_take_the_place_of_the_run(
    name: str, run: Path, folder: Path, capsys: Capture
) -> None:
    before = (run / name).read_bytes()
    assert translate([str(run), "--input", str(folder / "valid.en"), "--output", str(run / name)]) == 2
    assert "a run keeps such a file there" in capsys.readouterr().err
    assert (run / name).read_bytes() == before
    assert translate([str(run), "--input", str(folder / "valid.en"), "--output", str(run / "hyp.txt")]) == 0
    (run / "hyp.txt").unlink()


def test_an_output_that_is_no_file_is_an_error(
    run: Path, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for output in (run, tmp_path / "loop"):
        assert translate([str(run), "--input", str(folder / "valid.en"), "--output", str(output)]) == 1
        assert f"error: {output}: cannot be written" in capsys.readouterr().err

"""Before a command has begun: Ctrl-C while packages are imported, and packages that are broken."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from transformer.cli.command import command
from transformer.core.signals import hangup_interrupts

ROOT = Path(__file__).parents[2]
PROGRAMS = [
    [str(ROOT / "train.py")],
    [str(ROOT / "translate.py")],
    ["-m", "transformer", "train"],
    ["-c", "import sys; from transformer.__main__ import program; sys.exit(program())", "translate"],
]


def started(program: list[str], folder: Path, torch: str) -> subprocess.Popen[str]:
    """The program, with a file in the place of torch."""
    (folder / "torch.py").write_text(torch)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    pipe = subprocess.PIPE
    command = [sys.executable, *program]
    # As a terminal starts it: what runs in the background of a shell ignores Ctrl-C, and so do its children.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=folder, preexec_fn=heard
    )


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda words: Path(words[0]).name)
def test_ctrl_c_while_packages_are_imported_ends_in_silence(program: list[str], tmp_path: Path) -> None:
    with started(program, tmp_path, "import time\nprint('importing', flush=True)\ntime.sleep(60)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("error", ["ImportError('it is broken')", "OSError('libomp.so: it is broken')"])
@pytest.mark.parametrize("program", PROGRAMS[:2], ids=lambda words: Path(words[0]).name)
def test_a_broken_package_is_one_line(program: list[str], error: str, tmp_path: Path) -> None:
    with started(program, tmp_path, f"raise {error}") as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert "it is broken; `python -m transformer doctor` says what is missing" in errors


def test_a_library_that_crashes_leaves_the_line_of_python_where_it_did(tmp_path: Path) -> None:
    with started(PROGRAMS[0], tmp_path, "import os\nos.abort()") as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (-signal.SIGABRT, "")
    assert re.search(r'torch\.py", line 2 in <module>', errors)


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN], ids=["as programs start", "ignored"])
def test_a_command_takes_ctrl_c_up_where_it_is_not_ignored(
    before: signal.Handlers, request: pytest.FixtureRequest
) -> None:
    found = signal.signal(signal.SIGINT, before)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, found))
    seen: list[object] = []
    assert command(lambda _: seen.append(signal.getsignal(signal.SIGINT)) or 0)([]) == 0  # type: ignore[func-returns-value]
    assert seen == [signal.default_int_handler if before == signal.SIG_DFL else signal.SIG_IGN]
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN], ids=["as programs start", "ignored"])
def test_a_terminal_that_closes_interrupts_unless_that_is_ignored(
    before: signal.Handlers, request: pytest.FixtureRequest
) -> None:
    found = signal.signal(signal.SIGHUP, before)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, found))
    with hangup_interrupts():
        now = signal.getsignal(signal.SIGHUP)
    assert now == (signal.default_int_handler if before == signal.SIG_DFL else signal.SIG_IGN)
    assert signal.getsignal(signal.SIGHUP) == before


@pytest.mark.parametrize("several", [False, True])
def test_one_of_several_processes_ends_before_the_interpreter_takes_itself_down(several: bool) -> None:
    code = "import atexit, sys; atexit.register(print, 'down'); from transformer.__main__ import program"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0"}
    if not several:
        del environment["RANK"]
    command = [sys.executable, "-c", f"{code}; sys.exit(program())", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "" if several else "down\n")
    assert "nonsense" in done.stderr  # what was said is not lost

"""The Python that stands in for a new one behaves like it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from warm_python import has_servers

ASKS = "import sys; print('torch' in sys.modules)"
PROGRAM = "import os, sys; print(sys.argv, os.getcwd(), os.environ['HELLO'], sys.stdin.read(), __name__)"


def both(warm_python: str, *words: str, **options: Any) -> list[subprocess.CompletedProcess[str]]:
    environment = {**os.environ, "HELLO": "you", **options.pop("env", {})}
    return [
        subprocess.run([python, *words], capture_output=True, text=True, env=environment, **options)
        for python in (sys.executable, warm_python)
    ]


def test_arguments_environment_directory_and_streams_are_those_of_a_new_one(
    warm_python: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "gift.py").write_text("print('a gift')")
    for words in (["-c", PROGRAM], [str(tmp_path / "program.py")], ["-m", "program"], ["-m", "gift"]):
        cold, warm = both(
            warm_python,
            *words,
            "a",
            "-b",
            cwd=tmp_path,
            input="in",
            env={"PYTHONPATH": str(tmp_path / "given")},
        )
        assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr)
        assert warm.stdout


@pytest.mark.parametrize(
    "end",
    [
        *("pass", "sys.exit(7)", "sys.exit('told')", "raise SystemExit", "print(2, file=sys.stderr); 1 / 0"),
        *("os._exit(3)", "os.kill(os.getpid(), 9)", "import atexit; atexit.register(print, 'down')"),
        *("raise KeyboardInterrupt", "sys.stdout.write('no end of line')"),
    ],
)
def test_it_ends_as_a_new_one_does(warm_python: str, end: str) -> None:
    cold, warm = both(warm_python, "-c", f"import os, sys; {end}")
    assert (warm.returncode, warm.stdout) == (cold.returncode, cold.stdout)
    assert warm.stderr.splitlines()[-1:] == cold.stderr.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("heard", [True, False])
def test_signals_are_passed_on(warm_python: str, number: signal.Signals, heard: bool) -> None:
    hear = f"signal.signal({int(number)}, lambda n, f: sys.exit(n + 40));" if heard else ""
    code = f"import signal, sys, time; {hear} print('there', flush=True); time.sleep(60)"
    # As a terminal starts it: what runs in the background of a shell ignores Ctrl-C, and so do its children.
    before = partial(signal.signal, signal.SIGINT, signal.SIG_IGN if heard else signal.SIG_DFL)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [warm_python, "-c", code], stdout=pipe, stderr=pipe, text=True, preexec_fn=before
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == (number + 40 if heard else -number)


def test_who_is_killed_takes_it_along(warm_python: str) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([warm_python, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        fork = os.pidfd_open(int(process.stdout.readline())) if hasattr(os, "pidfd_open") else None
        process.kill()
        assert process.stdout.read() == "", "closed as the fork ends"
    if fork is not None:
        os.close(fork)


@pytest.mark.skipif(not has_servers, reason="a new one is started here")
@pytest.mark.parametrize(
    ("said", "line"),
    [(b"", b""), (b"r", b""), (b"r", b'{"words": ["-c"'), (b"r", None), (b"k", b"")],
    ids=["nothing", "no line", "half a line", "all", "kept"],
)
def test_who_is_gone_before_the_answer_leaves_it_to_the_others(
    warm_python: str, said: bytes, line: bytes | None, tmp_path: Path
) -> None:
    told = {"words": ["-c", "pass"], "environment": {}, "folder": str(tmp_path), "ignored": False}
    told |= {"unbuffered": False, "program": warm_python}
    whole = json.dumps(told).encode() + b"\n"
    with open(os.devnull, "r+b") as null:
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(os.environ["WARM_PYTHON"])
                socket.send_fds(asking, [said], [null.fileno()] * 3 if said == b"r" else [])
                asking.sendall(whole if line is None else line)
    assert both(warm_python, "-c", ASKS)[1].stdout == "True\n", "the server still answers"


def test_where_no_server_is_a_new_one_is_started(warm_python: str, tmp_path: Path) -> None:
    code = Path(warm_python).read_text().replace(os.environ["WARM_PYTHON"], str(tmp_path / "none"))
    program = tmp_path / "python"
    program.write_text(code)
    program.chmod(0o755)
    cold, other = both(str(program), "-c", ASKS)
    assert cold.stdout == other.stdout == "False\n"


def test_it_has_torch_and_the_options_of_an_interpreter_are_the_real_ones(warm_python: str) -> None:
    cold, warm = both(warm_python, "-c", ASKS)
    assert (cold.stdout, warm.stdout) == ("False\n", "True\n" if warm_python != sys.executable else "False\n")
    cold, warm = both(warm_python, "-S", "-c", "import sys; print('torch' in sys.modules, sys.flags.no_site)")
    assert warm.stdout == cold.stdout == "False 1\n"

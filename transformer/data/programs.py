"""A module's `serve` run as a program of its own, which computes for this process over two pipes.

A fork would copy the threads' locks of a process that has computed already. Such a program has to end when
its master is killed, which it sees as the end of its input. Ctrl-C and other requests to end are the master's
alone to see.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.signals import held


class Program:
    """The master's side. Whatever is sent or received, DataError when the program has ended."""

    def __init__(self, module: str, what: str, remedy: str) -> None:
        """`what` it does, and the `remedy` where it is killed, are for the message."""
        self._what, self._remedy = what, remedy
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        # Not by -m, which would import what lies in the working directory in the place of packages.
        begin = f"import sys; sys.path[0] = {root!r}; from {module} import serve; serve()"
        with held(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.process = subprocess.Popen(
                [sys.executable, "-c", begin],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path},
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to = Connection(os.dup(self.process.stdin.fileno()), readable=False)
        self._from = Connection(os.dup(self.process.stdout.fileno()), writable=False)
        self.process.stdin.close()
        self.process.stdout.close()

    def send(self, what: object) -> None:
        try:
            self._to.send(what)
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> Any:
        """What it sends next. A signal's handler runs while this waits."""
        try:
            return self._from.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error

    def _ended(self) -> DataError:
        return DataError(
            f"a process that {self._what} has ended (exit code {self.process.wait()}): killed, or out of "
            f"memory? {self._remedy}"
        )

    def close(self, patience: float) -> None:
        """Let it see the end of its input; kill it when it is still there after so many seconds."""
        self._to.close()
        self._from.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def pipes() -> tuple[Connection, Connection]:
    """The program's side: what the master sends, and what goes to it."""
    source, sink = Connection(0, writable=False), Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # what is printed by mistake must not come between the answers
    return source, sink

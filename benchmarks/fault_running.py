"""Processes of the toolkit that can be signalled, limited and waited for."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
Main = Callable[[list[str]], int]


def _child(
    command: str,
    argv: Sequence[str],
    said: str,
    file_limit: int | None,
    room: int | None,
    work: Callable[[Main, list[str]], int] | None,
) -> None:
    """A process's work: one command of the toolkit, its output in a file."""
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    if file_limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if room is not None:
        import resource

        importlib.import_module("torch._dynamo")  # optimizers do so when first used
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + room, held + room))
    sys.argv[0] = f"{command}.py"
    import transformer

    assert Path(transformer.__file__).is_relative_to(ROOT)
    main = importlib.import_module(f"transformer.cli.{command}").main
    sys.exit(work(main, list(argv)) if work else main(list(argv)))


class Running:
    """A process of the toolkit, forked from a server that has imported torch already."""

    def __init__(
        self,
        command: str,
        argv: Sequence[str],
        said: Path,
        file_limit: int | None = None,
        room: int | None = None,
        work: Callable[[Main, list[str]], int] | None = None,
    ) -> None:
        """`file_limit`: bytes that a file may have; `room`: bytes of memory besides what is held.

        `work` gets the command and its arguments, and the exit code is what it returns.
        """
        said.unlink(missing_ok=True)
        self.said, self.began, self.at = said, time.monotonic(), time.time()
        os.environ["PYTHONPATH"] = str(ROOT)  # the server imports this checkout, wherever it is started
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["transformer.cli.train", "torch.utils.tensorboard", "torch._dynamo"])
        given = (command, [*argv], str(said), file_limit, room, work)
        self.process = context.Process(target=_child, args=given)
        self.process.start()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        if self.alive:
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = 300.0) -> int:
        """The exit code; AssertionError after so many seconds."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s: {self.text()[-500:]}")
        return self.process.exitcode

    def seconds(self) -> float:
        """From the start to the last line that it wrote."""
        return self.said.stat().st_mtime - self.at

    def text(self) -> str:
        return self.said.read_text(encoding="utf-8", errors="replace") if self.said.exists() else ""


def children(process: int) -> list[int]:
    """The processes that one has started, on Linux."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(stat.parent.name))
    return sorted(found)

"""Faults of translating in several processes: one of them killed, or all."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fault_rows import EXACT, REFUSED, Row, fault
from fault_running import Running, children
from fault_trials import WORDS, Bench

LINES, FEW = 2000, 150  # so many that the output grows several times while they are translated
STARTED = re.compile(rb"spawn_main|forkserver")  # what is forked has the name of the server of its parent


class Forking:
    """What starts the processes that translate: forks of one that has imported torch, where torch is spawned.

    As in a spawned process, the other ends of the pipes are closed, else none would see that all have ended,
    and SIGTERM just ends it.
    """

    def __init__(self) -> None:
        self.context, self.ours = multiprocessing.get_context("fork"), list[Connection]()

    def Pipe(self) -> tuple[Connection, Connection]:
        ours, theirs = self.context.Pipe()
        self.ours.append(ours)
        return ours, theirs

    def Process(self, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> Any:
        return self.context.Process(target=self._serve, args=(target, args), daemon=daemon)

    def _serve(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        for pipe in self.ours:
            pipe.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        target(*args)


def forked(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """The command, with forks in the place of what it spawns: seconds less for each process."""
    from transformer.decoding import processes

    context = Forking()
    processes.multiprocessing.get_context = lambda method: context  # type: ignore[assignment,attr-defined]
    return main(argv)


def _many(bench: Bench) -> int:
    return FEW if bench.short else LINES


def _start(bench: Bench, name: str) -> tuple[Running, Path]:
    source, output = bench.folder / "workers.en", bench.folder / f"{name}.hyp"
    output.unlink(missing_ok=True)
    if not source.exists():
        lines = (
            " ".join(bench.random.choices(WORDS, k=bench.random.randint(0, 8))) for _ in range(_many(bench))
        )
        source.write_text("".join(f"{line}\n" for line in lines))
    flags = ["--processes", "2", "--device", "cpu", "--set", "decode.chunk_lines=10"]
    flags += ["--json"] if bench.short else []  # longer lines: it grows at each 4 KB
    files = ["--input", str(source), "--output", str(output)]
    said = bench.folder / f"{name}.txt"
    work = forked if bench.short else None
    return Running("translate", [str(bench.straight), *files, *flags], said, work=work), output


def _workers(process: int) -> list[int]:
    """The processes that translate; others clear up after them."""
    lines = {child: Path(f"/proc/{child}/cmdline") for child in children(process)}
    return [child for child, line in lines.items() if line.exists() and STARTED.search(line.read_bytes())]


def _lines(output: Path) -> int:
    return output.read_bytes().count(b"\n") if output.exists() else 0


def _whole(bench: Bench) -> tuple[bytes, float]:
    """All lines, and the seconds that they take."""
    running, output = _start(bench, "whole")
    while running.alive and not _lines(output):
        time.sleep(0.01)
    assert running.alive, f"the output does not grow before the end: {running.text()}"
    assert running.wait() == 0, running.text()
    whole = output.read_bytes()
    assert whole.count(b"\n") == _many(bench)
    return whole, time.monotonic() - running.began


def _hit(bench: Bench, tries: int, everything: bool) -> Row:
    """Every second kill, and the first, waits for a share of the lines; the others come at any moment."""
    row, later = Row(), 0
    whole, seconds = _whole(bench)
    for _ in range(6 * tries):  # some come before there are workers, or after
        if row.tried == tries:
            break
        running, output = _start(bench, "hit")
        if row.tried % 2 == 0:
            share = bench.random.uniform(0, 0.7) * _many(bench)
            while running.alive and _lines(output) <= share:
                time.sleep(0.01)
            time.sleep(bench.random.uniform(0, seconds / 20))
        else:
            time.sleep(bench.random.uniform(0, seconds))
        pid = running.process.pid
        assert pid is not None
        workers = _workers(pid) if running.alive else []
        if not workers:
            assert running.wait() == 0, running.text()
            seconds = min(seconds, output.stat().st_mtime - running.at)  # the machine may be faster now
            continue
        before = _lines(output)
        with suppress(ProcessLookupError):  # it has ended just now: all lines are there
            os.kill(pid if everything else bench.random.choice(workers), signal.SIGKILL)
        later += before > 0
        limit = 30 + 3 * seconds  # a worker that loads its models sees afterwards that nobody is there
        running.wait(limit)
        _judge(bench, row, running, _left(workers, limit), output, whole, everything)
    row.note = f"{later} kills came after the first line was written; what was written is the first lines"
    return row


def _left(workers: list[int], limit: float) -> list[int]:
    """The processes that are still there after so many seconds."""
    until = time.monotonic() + limit
    while (left := [w for w in workers if Path(f"/proc/{w}").exists()]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _judge(
    bench: Bench,
    row: Row,
    running: Running,
    left: list[int],
    output: Path,
    whole: bytes,
    everything: bool,
) -> None:
    code, text = running.wait(), running.text()
    written, lines = output.read_bytes() if output.exists() else b"", _lines(output)
    missing = re.search(r"before it had answered lines (\d+) to", text)
    if left or not whole.startswith(written) or "Traceback" in text:
        row.add("LEFT BEHIND", f"{left} {len(written)} bytes {text[-500:]}")
    elif everything:
        again, output = _start(bench, "hit")
        fine = again.wait() == 0 and output.read_bytes() == whole
        row.add(EXACT if fine else "OTHER LINES", again.text()[-500:])
    elif code == 0 and written == whole:
        row.add(EXACT)
    elif code == 1 and "ended by signal 9" in text and lines == (int(missing[1]) - 1 if missing else 0):
        row.add(REFUSED, text.strip().splitlines()[-1])
    else:
        row.add("UNCLEAR", f"exit code {code}, {lines} lines: {text[-1000:]}")


@fault("SIGKILL to one of two processes that translate", allows=(EXACT, REFUSED))
def one(bench: Bench, tries: int) -> Row:
    """All lines, or a message and exit code 1."""
    return _hit(bench, tries, everything=False)


@fault("SIGKILL to a translation in two processes, and given again")
def all_of_them(bench: Bench, tries: int) -> Row:
    """No process stays, and the same command gives all lines."""
    return _hit(bench, tries, everything=True)

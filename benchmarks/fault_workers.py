"""Faults of translating in several processes: one of them killed, or all."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from fault_trials import EXACT, REFUSED, WORDS, Bench, Row, Running, children, fault

LINES = 300


def _start(bench: Bench, name: str) -> tuple[Running, Path]:
    source, output = bench.folder / "workers.en", bench.folder / f"{name}.hyp"
    output.unlink(missing_ok=True)
    if not source.exists():
        lines = (" ".join(bench.random.choices(WORDS, k=bench.random.randint(0, 8))) for _ in range(LINES))
        source.write_text("".join(f"{line}\n" for line in lines))
    flags = ["--processes", "2", "--device", "cpu", "--set", "decode.chunk_lines=10"]
    files = ["--input", str(source), "--output", str(output)]
    said = bench.folder / f"{name}.txt"
    return Running("translate", [str(bench.straight), *files, *flags], said), output


def _workers(process: int) -> list[int]:
    """The processes that translate; others clear up after them."""
    lines = {child: Path(f"/proc/{child}/cmdline") for child in children(process)}
    return [child for child, line in lines.items() if line.exists() and b"spawn_main" in line.read_bytes()]


def _hit(bench: Bench, tries: int, everything: bool) -> Row:
    row = Row()
    running, output = _start(bench, "whole")
    assert running.wait() == 0, running.text()
    seconds, whole = time.monotonic() - running.began, output.read_bytes()
    assert whole.count(b"\n") == LINES
    while row.tried < tries:
        running, output = _start(bench, "hit")
        time.sleep(bench.random.uniform(0, seconds))
        pid = running.process.pid
        assert pid is not None
        workers = _workers(pid) if running.alive else []
        if not workers:
            running.wait()
            continue
        os.kill(pid if everything else bench.random.choice(workers), signal.SIGKILL)
        code, text = running.wait(60), running.text()
        until = time.monotonic() + 30
        while (left := [w for w in workers if Path(f"/proc/{w}").exists()]) and time.monotonic() < until:
            time.sleep(0.05)
        written = output.read_bytes() if output.exists() else b""
        if left or not whole.startswith(written) or "Traceback" in text:
            row.add("LEFT BEHIND", f"{left} {len(written)} bytes {text[-500:]}")
        elif everything:
            again, output = _start(bench, "hit")
            fine = again.wait() == 0 and output.read_bytes() == whole
            row.add(EXACT if fine else "OTHER LINES", again.text()[-500:])
        elif code == 0 and written == whole:
            row.add(EXACT)
        elif code == 1 and "ended by signal 9" in text and written.count(b"\n") < LINES:
            row.add(REFUSED, text.strip().splitlines()[-1])
        else:
            row.add("UNCLEAR", f"exit code {code}: {text[-1000:]}")
    row.note = "what was written by then is the first lines, each whole or cut at the end of the file"
    return row


@fault("SIGKILL to one of two processes that translate")
def one(bench: Bench, tries: int) -> Row:
    """All lines, or a message and exit code 1."""
    return _hit(bench, tries, everything=False)


@fault("SIGKILL to a translation in two processes, and given again")
def all_of_them(bench: Bench, tries: int) -> Row:
    """No process stays, and the same command gives all lines."""
    return _hit(bench, tries, everything=True)

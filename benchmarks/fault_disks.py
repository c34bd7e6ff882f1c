"""Faults of the disk: full, read-only."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_rows import REFUSED, Row, fault
from fault_running import Running
from fault_trials import VALID, Bench


class CannotMount(Exception):
    """The system does not let us."""


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """A context with something mounted on a new directory."""
    place.mkdir(parents=True, exist_ok=True)
    _mount(*options, str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], capture_output=True, check=False)


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotMount(str(error)) from error
    if done.returncode:
        raise CannotMount(done.stderr.strip())


@fault("the disk full at a random point of the run")
def full(bench: Bench, tries: int) -> Row:
    """A tmpfs with room for a random share of what the run writes; then it gets more, and the run goes on."""
    row, size = Row(), sum(p.stat().st_size for p in bench.straight.rglob("*") if p.is_file())
    tries = max(2, tries // 2)
    stopped = 0
    for _ in range(tries):
        share = bench.random.uniform(0.02, 1.1)
        place = bench.folder / f"disk{bench.count}"
        try:
            with mounted(place, "-t", "tmpfs", "-o", f"size={max(4096, int(share * size))}", "tmpfs"):
                run = place / bench.fresh().name
                running = bench.start(run)
                if running.wait():
                    stopped += 1
                    if not _told(running.text(), row):
                        continue
                _mount("-o", f"remount,size={20 * size}", str(place))
                bench.judge(bench.go_on(run), run, row)
        except CannotMount as error:
            return _limited(bench, tries, str(error))
    row.note = f"a tmpfs; {stopped} stopped for want of room"
    return row


def _told(text: str, row: Row) -> bool:
    """Was the failed write told in one message? Else that is the outcome."""
    error = next((line for line in text.splitlines() if line.startswith("error: ")), "")
    if "Traceback" in text or not error:
        row.add("TRACEBACK" if "Traceback" in text else "UNCLEAR", text[-1500:])
        return False
    row.examples.setdefault("said", error)
    return True


def _limited(bench: Bench, tries: int, why: str) -> Row:
    """Without mounts: no file may grow beyond a size (RLIMIT_FSIZE)."""
    row = Row(note=f"by RLIMIT_FSIZE, as nothing can be mounted here ({why})")
    for _ in range(tries):
        run = bench.fresh()
        running = bench.start(run, file_limit=bench.random.randrange(500, 400_000))
        if running.wait() and not _told(running.text(), row):
            continue
        bench.judge(bench.go_on(run), run, row)
    return row


@fault("the run directory read-only")
def read_only(bench: Bench, tries: int) -> Row:
    """A resume is refused and translation works as before; writable again, the run goes on."""
    row, translated = Row(), 0
    for _ in range(max(1, tries // 10)):
        run = bench.cut(bench.updates // 4)
        before = _translation(bench, run)
        try:
            with mounted(run, "--bind", str(run)):
                _mount("-o", "remount,bind,ro", str(run))
                running = bench.resume(run)
                code, text = running.wait(), running.text()
                after = _translation(bench, run)
        except CannotMount as error:
            row.note = f"not tried: the superuser may write anywhere, and nothing can be mounted ({error})"
            shutil.rmtree(run)
            return row
        if code != 1 or "Traceback" in text or "cannot be written" not in text:
            row.add("UNCLEAR", f"exit code {code}: {text[-500:]}")
            continue
        if after != before or before[0]:
            row.add("OTHER LINES", f"{after!r}, writable {before!r}")
            continue
        translated += 1
        row.examples.setdefault(REFUSED, text.strip().splitlines()[-1])
        bench.judge(bench.go_on(run), run, row)
    row.note = f"a read-only mount of it; {translated} translated as before meanwhile"
    return row


def _translation(bench: Bench, run: Path) -> tuple[int, bytes]:
    """The exit code and the lines of a translation by the last weights."""
    output = bench.folder / "read-only.hyp"
    output.unlink(missing_ok=True)
    files = ["--input", str(bench.folder / "valid.en"), "--output", str(output)]
    flags = ["--checkpoint", "last", "--device", "cpu"]
    running = Running("translate", [str(run), *files, *flags], output.with_suffix(".txt"))
    code = running.wait()
    assert code or output.read_bytes().count(b"\n") == VALID, running.text()
    return code, output.read_bytes() if output.exists() else running.text().encode()


@fault("checkpoints made unwritable in the middle of the run")
def locked_midway(bench: Bench, tries: int) -> Row:
    """`chattr +i` on the directory of the checkpoints, which stops the superuser too."""
    row, stopped, tries = Row(), 0, max(1, tries // 10)
    for _ in range(5 * tries):  # some come too late to stop anything
        if row.tried == tries:
            break
        run = bench.fresh()
        running = bench.start(run)
        while running.alive and not (run / "checkpoints" / "last").exists():
            time.sleep(0.0002)
        folder = str(run / "checkpoints")
        done = subprocess.run(["chattr", "+i", folder], capture_output=True, text=True, check=False)
        try:
            code = running.wait()
        finally:
            subprocess.run(["chattr", "-i", folder], capture_output=True, check=False)
        if done.returncode:
            row.note = f"not tried: chattr +i: {done.stderr.strip()}"
            return row
        if not code:
            shutil.rmtree(run)
            continue
        stopped += 1
        if not _told(running.text(), row):
            continue
        bench.judge(bench.go_on(run), run, row)
    row.note = f"{stopped} stopped by it"
    return row

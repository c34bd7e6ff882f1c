"""Faults of processes and files: killed, terminated, damaged, two at once."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

from fault_rows import EXACT, REFUSED, Row, fault
from fault_running import Running
from fault_trials import Bench, saved_update


@fault("SIGKILL at a random moment of the run")
def killed(bench: Bench, tries: int) -> Row:
    """Start-up, preparation, training, saving, validation and scoring are hit by their share of the time."""
    return _signalled(bench, tries, signal.SIGKILL)


@fault("SIGKILL while a save is under way")
def killed_in_a_save(bench: Bench, tries: int) -> Row:
    """Some save's temporary directory is waited for; the signal comes up to 12 milliseconds after it."""
    row, run = Row(), bench.straight
    within = 0
    for _ in range(tries):
        run = bench.fresh()
        running, target = bench.start(run), 5 * bench.random.randint(0, 9)
        new = run / "checkpoints" / "last.new"
        while running.alive and not (saved_update(run) >= target and new.exists()):
            time.sleep(0.0002)
        time.sleep(bench.random.uniform(0, 0.012))
        running.signal(signal.SIGKILL)
        running.wait()
        within += new.exists() or any(run.rglob("*.partial"))
        bench.judge(bench.go_on(run), run, row)
    row.note = f"{within} of them left a half-written save behind"
    return row


@fault("SIGKILL again and again until the run is done")
def killed_often(bench: Bench, tries: int) -> Row:
    """Each of six starts is killed up to 50 ms after it has saved a new state, the seventh is left alone."""
    row, kills = Row(), 0
    for _ in range(max(1, tries // 10)):
        run = bench.fresh()
        for _ in range(6):
            before = saved_update(run)
            running = bench.go_on(run)
            while running.alive and saved_update(run) <= before:
                time.sleep(0.0005)
            time.sleep(bench.random.uniform(0, 0.05))
            kills += running.alive
            running.signal(signal.SIGKILL)
            running.wait()
        bench.judge(bench.go_on(run), run, row)
    row.note = f"{kills} kills"
    return row


@fault("SIGTERM at a random moment of the run")
def terminated(bench: Bench, tries: int) -> Row:
    """It must end with code 130 (0 if it was done already) and within seconds."""
    return _signalled(bench, tries, signal.SIGTERM)


def bench_seconds(bench: Bench) -> float:
    assert bench.straight
    return bench.seconds


def _signalled(bench: Bench, tries: int, number: signal.Signals) -> Row:
    row, slowest, early = Row(), 0.0, 0
    while row.tried < tries and early < 5 * tries:
        run = bench.fresh()
        running = bench.start(run)
        time.sleep(bench.random.uniform(0, bench_seconds(bench)))
        sent = time.monotonic()
        if not running.alive:  # the machine is faster now: that was none, and the next ones come earlier
            bench.seconds = min(bench.seconds, running.seconds())
            early += 1
            shutil.rmtree(run)
            continue
        running.signal(number)
        code = running.wait()
        slowest = max(slowest, time.monotonic() - sent)
        fine = code in (0, 130, -signal.SIGTERM) and "Traceback" not in running.text()
        if number == signal.SIGTERM and not fine:
            row.add("OTHER EXIT", f"exit code {code}: {running.text()[-500:]}")
            continue
        bench.judge(bench.go_on(run), run, row)
    if number == signal.SIGTERM:
        row.note = f"at most {slowest:.1f} s from the signal to the end of the process"
    return row


# What no copy of is in the run: a resume may ask for one. All else is made anew, or done without.
IRREPLACEABLE = (
    "config.yaml",
    "tokenizer/*",
    "checkpoints/best.safetensors",
    "checkpoints/update-*.safetensors",
)
DAMAGES = ("emptied", "cut to a half", "cut by a byte", "a bit flipped", "a bit flipped", "removed")


@fault("a file of the run directory damaged", allows=(EXACT, REFUSED))
def damaged(bench: Bench, tries: int) -> Row:
    """Every file of a run that was killed, each in every way; `tries` below 30 takes so many of them."""
    row, whole = Row(), bench.cut(bench.updates // 2)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    cases = [(name, how) for name in files if name.name != "run.lock" for how in DAMAGES]
    if tries < 30:
        cases = bench.random.sample(cases, min(tries, len(cases)))
    for name, how in cases:
        run = bench.fresh()
        shutil.copytree(whole, run)
        _damage(bench, run / name, how)
        besides = (name.name,) if name.name == "metrics.jsonl" else ()
        each = Row()
        bench.judge(bench.resume(run), run, each, besides)
        (outcome,), said = each.outcomes, "".join(each.examples.values())
        if outcome == REFUSED and not any(map(name.match, IRREPLACEABLE)):
            outcome = "REFUSED, WHERE IT MUST GO ON"
        good = outcome in (EXACT, REFUSED)
        row.add(outcome, said if good else f"{name}, {how}: {said}")
    row.note = f"{len(files)} files"
    shutil.rmtree(whole)
    return row


def _damage(bench: Bench, path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
    elif how == "a bit flipped" and content:
        content[bench.random.randrange(len(content))] ^= 1 << bench.random.randrange(8)
        path.write_bytes(content)
    else:
        kept = {"emptied": 0, "cut to a half": len(content) // 2}.get(how, len(content) - 1)
        path.write_bytes(content[: max(kept, 0)])


@fault("a second process on the same run directory")
def two_at_once(bench: Bench, tries: int) -> Row:
    """The second is refused, whatever it was asked to do, and the first goes on as if nothing had been."""
    row = Row()
    for number in range(max(3, tries // 5)):
        for _ in range(4):  # on a busy machine the one may end before the other has begun
            run = bench.fresh()
            loser, winner = _both(bench, run, number % 3)
            code, text = loser.wait(), loser.text()
            if code:
                break
            winner.wait()
        known = f"process {winner.process.pid} on " in text or "already holds a run" in text
        if code not in (1, 2) or "Traceback" in text or not known:
            who = f"{loser.process.pid} beside {winner.process.pid}, case {number % 3}"
            row.add("UNCLEAR", f"{who}, exit code {code}: {text[-500:]}")
            winner.wait()
            continue
        row.examples.setdefault("refused", text.strip().splitlines()[-1])
        bench.judge(winner, run, row)
    return row


def _both(bench: Bench, run: Path, case: int) -> tuple[Running, Running]:
    """Of two processes the one that ends first, and the other."""
    first = bench.start(run)
    if case:  # else both begin at the same time
        while first.alive and saved_update(run) < 5:
            time.sleep(0.001)
    second = (bench.start(run), bench.resume(run), bench.start(run, "--overwrite"))[case]
    return _loser(first, second)


def _loser(first: Running, second: Running) -> tuple[Running, Running]:
    """(the one that ends first, the other)."""
    while first.alive and second.alive:
        time.sleep(0.001)
    return (second, first) if first.alive or not second.alive else (first, second)

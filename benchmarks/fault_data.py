"""Faults of preparation: killed and given again, and encoded text that is damaged."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

from fault_kinds import DAMAGES, _damage
from fault_rows import EXACT, REFUSED, Row, fault
from fault_running import Running
from fault_trials import WORDS, Bench, saved_update

PAIRS = 20_000  # so many that a kill can hit the encoding


def _files(cache: Path) -> dict[str, bytes]:
    """What the encoded text is, but for the notes of its making."""
    files = (path for path in (cache / "encoded").glob("[!.]*/*") if path.name != "state.json")
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}


def _config(bench: Bench, cache: Path) -> Path:
    """Of a larger text than the bench's, with a cache of its own."""
    text = bench.folder / "large.en"
    if not text.exists():
        lines = [" ".join(bench.random.choices(WORDS, k=bench.random.randint(2, 20))) for _ in range(PAIRS)]
        text.write_text("".join(f"{line}\n" for line in lines))
        text.with_suffix(".de").write_text("".join(f"{line[::-1]}\n" for line in lines))
    config = bench.config.read_text().replace(f"{bench.folder}/train", f"{bench.folder}/large")
    file = cache.with_suffix(".yaml")
    file.write_text(config.replace(f"cache: {bench.folder}/cache", f"cache: {cache}"))
    return file


def _prepare(bench: Bench, cache: Path) -> Running:
    return Running("data", [str(_config(bench, cache))], cache.with_suffix(".txt"))


def _judge(running: Running, cache: Path, whole: dict[str, bytes], row: Row) -> None:
    code, text = running.wait(), running.text()
    if code or "Traceback" in text:
        row.add("TRACEBACK" if "Traceback" in text else "UNCLEAR", f"exit code {code}: {text[-1500:]}")
    else:
        row.add(EXACT if _files(cache) == whole else "OTHER BYTES", text[-500:])


@fault("a preparation killed (SIGKILL) up to three times, and given again")
def killed(bench: Bench, tries: int) -> Row:
    row, kills, straight = Row(), 0, bench.folder / "prepared"
    for _ in range(2):  # the first one starts the server
        shutil.rmtree(straight, ignore_errors=True)
        began, running = time.monotonic(), _prepare(bench, straight)
        assert running.wait() == 0, running.text()
        seconds = time.monotonic() - began
    whole = _files(straight)
    assert len(whole) >= 6 * 2
    for number in range(tries):
        cache = bench.folder / f"prepared{number}"
        for _ in range(3):
            running = _prepare(bench, cache)
            time.sleep(bench.random.uniform(0, seconds))
            kills += running.alive
            running.signal(signal.SIGKILL)
            running.wait()
        _judge(_prepare(bench, cache), cache, whole, row)
        shutil.rmtree(cache, ignore_errors=True)
    row.note = f"{kills} kills; the files are those of a straight one"
    return row


@fault("a file of the encoded text damaged before a start")
def damaged(bench: Bench, tries: int) -> Row:
    """Every file in every way, or `tries` of them when they are below 30."""
    row, cache = Row(), bench.folder / "damaged"
    assert _prepare(bench, cache).wait() == 0
    whole = _files(cache)
    cases = [(name, how) for name in whole for how in DAMAGES]
    for name, how in bench.random.sample(cases, tries) if tries < 30 else cases:
        _damage(bench, cache / "encoded" / name, how)
        _judge(_prepare(bench, cache), cache, whole, row)
    row.note = "it is made anew"
    return row


@fault("a file of the encoded text overwritten while a training reads it", allows=(EXACT, REFUSED))
def in_use(bench: Bench, tries: int) -> Row:
    """With what cannot be text: a message, or, if nobody reads it any more, the right end."""
    row, cache = Row(), bench.folder / "cache"
    assert bench.straight
    whole = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    entries = sorted(path for path in whole if path.suffix in (".values", ".offsets"))
    (entry,) = {path.parent for path in entries if path.name == "source.text.values"}
    for _ in range(tries):
        run = bench.fresh()
        running = bench.start(run)
        while running.alive and not saved_update(run):
            time.sleep(0.001)
        path = bench.random.choice([path for path in entries if path.parent == entry])
        with open(path, "r+b") as file:
            file.write(b"\xff" * len(whole[path]))
        code, text = running.wait(), running.text()
        for each, content in whole.items():
            each.write_bytes(content)
        if code == 1 and "delete that directory" in text and "Traceback" not in text:
            row.add(REFUSED, text.strip().splitlines()[-1])
            shutil.rmtree(run)
        else:
            bench.judge(running, run, row)
    return row

"""Too little memory: an update in parts is the same update, or the message says what to set."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from fault_trials import CRASHED, EXACT, REFUSED, SAME, WORDS, Bench, Row, Running, fault

OPTIONS = """\
    model.dropout=0 model.max_length=256 data.max_length=200 data.tokenizer.sampling=0
    train.optimizer=sgd train.lr=0.1 train.schedule=constant train.average=0
    train.batch_tokens=26000 train.accumulate=1 train.updates=4 train.log_every=1
    train.validate_every=4 train.save_every=0 train.validate_bleu=false train.metric=loss
"""


def _start(bench: Bench, run: Path, room: int | None = None) -> Running:
    options = [word for option in OPTIONS.split() for word in ("--set", option)]
    text = f"data.train=[{bench.folder}/long]"
    return bench.start(run, *options, "--set", text, **({} if room is None else {"room": room}))


def _losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@fault("too little memory for a batch, on a CPU")
def short(bench: Bench, tries: int) -> Row:
    """RLIMIT_AS leaves room for a random share of what the run takes."""
    row, run = Row(), bench.fresh()
    for side in ("en", "de"):
        lines = (" ".join(bench.random.choices(WORDS, k=35)) for _ in range(600))
        (bench.folder / f"long.{side}").write_text("".join(f"{line}\n" for line in lines))
    straight = _start(bench, run)
    assert straight.wait() == 0, straight.text()
    expected = _losses(run)
    for _ in range(tries):
        short = bench.fresh()
        running = _start(bench, short, int(bench.random.uniform(60, 400) * 2**20))
        code, text = running.wait(), running.text()
        if "Traceback" in text:
            row.add("TRACEBACK", text[-1500:])
        elif code == 0:
            found = _losses(short)
            close = len(found) == len(expected) and all(map(_close, found, expected))
            parts = "memory did not hold" in text
            row.add((SAME if parts else EXACT) if close else "OTHER NUMBERS", f"{found} {expected}")
        elif code < 0 and bench.resume(short).wait() == 0 and all(map(_close, _losses(short), expected)):
            row.add(CRASHED, text[-500:])
        elif code == 1 and "memory" in text and "set " in text:
            row.add(REFUSED, text.strip().splitlines()[-1])
        else:
            row.add("UNCLEAR", f"exit code {code}: {text[-500:]}")
        shutil.rmtree(short, ignore_errors=True)
    return row


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-3)

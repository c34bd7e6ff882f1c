"""Too little memory: an update in parts is the same update, or the message says what to set."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from fault_rows import CRASHED, EXACT, REFUSED, SAME, Row, fault
from fault_running import Running
from fault_trials import WORDS, Bench, difference

from transformer.training.checkpoint import read_weights

OPTIONS = """\
    model.dropout=0 model.max_length=256 data.max_length=200 data.tokenizer.sampling=0
    train.optimizer=sgd train.lr=0.1 train.schedule=constant train.average=0
    train.batch_tokens=26000 train.accumulate=1 train.updates=4 train.log_every=1
    train.validate_every=4 train.save_every=0 train.validate_bleu=false train.metric=loss
"""
# Float32, sums in another order: weights, all below 2, were seen to differ by 6e-8, losses by 7e-8 of them.
LOSS, WEIGHT = 1e-5, 1e-6


def _start(bench: Bench, run: Path, room: int | None = None) -> Running:
    options = [word for option in OPTIONS.split() for word in ("--set", option)]
    text = f"data.train=[{bench.folder}/long]"
    return bench.start(run, *options, "--set", text, **({} if room is None else {"room": room}))


def _losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@fault("too little memory for a batch, on a CPU", allows=(EXACT, SAME, REFUSED, CRASHED))
def short(bench: Bench, tries: int) -> Row:
    """RLIMIT_AS leaves room for a random share of what the run takes."""
    row, run = Row(), bench.fresh()
    for side in ("en", "de"):
        lines = (" ".join(bench.random.choices(WORDS, k=35)) for _ in range(600))
        (bench.folder / f"long.{side}").write_text("".join(f"{line}\n" for line in lines))
    straight = _start(bench, run)
    assert straight.wait() == 0, straight.text()
    for _ in range(tries):
        short = bench.fresh()
        running = _start(bench, short, int(bench.random.uniform(60, 400) * 2**20))
        code, text = running.wait(), running.text()
        if "Traceback" in text:
            row.add("TRACEBACK", text[-1500:])
        elif code == 0:
            _compared(row, EXACT, run, short, text)
        elif code < 0:
            again = bench.resume(short) if (short / "config.yaml").exists() else _start(bench, short)
            if again.wait():
                row.add("UNCLEAR", f"exit code {code}: {text[-300:]} | {again.text()[-500:]}")
            else:
                _compared(row, CRASHED, run, short, text + again.text())
        elif code == 1 and "memory" in text and "set " in text:
            row.add(REFUSED, text.strip().splitlines()[-1])
        else:
            row.add("UNCLEAR", f"exit code {code}: {text[-500:]}")
        shutil.rmtree(short, ignore_errors=True)
    return row


def _compared(row: Row, whole: str, straight: Path, run: Path, text: str) -> None:
    """The outcome `whole` is of the same bits; only a run that was cut into parts may have others."""
    wrong, parts = difference(straight, run), "memory did not hold" in text
    if parts and wrong:
        wrong = beyond_rounding(straight, run)
    row.add("OTHER NUMBERS" if wrong else SAME if parts and whole == EXACT else whole, wrong or text[-500:])


def beyond_rounding(straight: Path, run: Path) -> str:
    """In what losses or weights differ by more than sums in another order do."""
    expected, found = _losses(straight), _losses(run)
    if len(found) != len(expected):
        return f"{len(found)} losses, straight {len(expected)}"
    for one, other in zip(found, expected, strict=True):
        if not math.isclose(one, other, rel_tol=LOSS):
            return f"losses {found}, straight {expected}"
    (ours, _), (theirs, _) = (read_weights(r / "checkpoints/last/model.safetensors") for r in (run, straight))
    if ours.keys() != theirs.keys():
        return f"weights {sorted(ours.keys() ^ theirs.keys())}"
    worst = max(float((ours[name] - weight).abs().max()) for name, weight in theirs.items())
    return f"a weight differs by {worst:.1e}" if not worst <= WEIGHT else ""

"""Do faults to a real training and see that it goes on exactly, or says plainly why not.

    python benchmarks/faults.py --only "disk full" --tries 3

Faults of one process, as many or as few as one likes, with an example of what was said; all of them at full
length are the part `runs` of reliability.py.

A small model is trained on a generated text in float32 (subword sampling, accumulation, averaging, patience
and a plateau schedule in use). After each fault the run is resumed, and its end is compared with that of a
run that nothing happened to: state hash, every weights file bit for bit, metrics.jsonl, result.json but for
clocks, and translations. Every process is a real one, forked from a server that has imported torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import fault_disks  # noqa: E402, F401
import fault_kinds  # noqa: E402, F401
from fault_rows import EXACT, FAULTS, REFUSED, Row  # noqa: E402
from fault_trials import Bench  # noqa: E402


def main() -> int:
    """Run every fault, print the table; 1 if any outcome may not be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=30, help="of each random fault (default: 30)")
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--updates", type=int, default=60, help="of the training (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments (default: 1)")
    arguments = parser.parse_args()
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.updates, arguments.seed)
        print(f"the straight run: {bench.straight.name}, {bench.seconds:.1f} s", flush=True)
        for name, function in FAULTS.items():
            if arguments.only in name:
                began = time.monotonic()
                rows[name] = function(bench, arguments.tries)
                print(f"{name}: {dict(rows[name].outcomes)} {rows[name].note}", flush=True)
                print(f"  {time.monotonic() - began:.0f} s; {rows[name].examples}", flush=True)
    print(table(rows))
    return 1 if any(row.bad for row in rows.values()) else 0


def table(rows: dict[str, Row]) -> str:
    """Markdown: fault, times tried, outcomes."""
    lines = ["| fault | tried | went on exactly | refused, with a remedy | anything else | |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, row in rows.items():
        bad = ", ".join(f"{count} {outcome}" for outcome, count in row.bad.items()) or "0"
        lines.append(
            f"| {name} | {row.tried} | {row.outcomes[EXACT]} | {row.outcomes[REFUSED]} | {bad} | {row.note} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())

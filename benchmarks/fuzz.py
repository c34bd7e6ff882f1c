"""Give every command hostile input, and print how many cases of each kind ended as they have to.

python benchmarks/fuzz.py --cases 10000  # a table, and each distinct failure once; exit code 1 with any
python benchmarks/fuzz.py --cases 300 --kind corpus --seed 7

Each kind runs in a process of its own, so that what ends the process is a failure of that kind, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fuzz_kinds import KINDS, Kind
from fuzzing import Bench
from hypothesis import HealthCheck, Phase, given, seed, settings


def tried(kind: Kind, bench: Bench, cases: int, start: int) -> tuple[int, dict[str, str]]:
    """How many cases were tried, and the failures: where from -> the first such case with its traceback."""
    count, failures = 0, {}

    @seed(start)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.draw(bench))
    def check(case: Any) -> None:
        nonlocal count
        count += 1
        try:
            kind.check(bench, case)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            key = where if last.name != "require" else str(error)[:90]
            failures.setdefault(key, f"{case!r}"[:2000] + "\n" + traceback.format_exc()[-3000:])

    check()
    return count, failures


def all_kinds(cases: int, start: int, only: str = "") -> Iterator[dict[str, Any]]:
    """Each kind's counts, from a process of its own."""
    total = sum(kind.share for kind in KINDS)
    for kind in KINDS:
        if only not in kind.name:
            continue
        wanted = -(-cases * kind.share // total)
        command = [sys.executable, __file__, f"--child={kind.name}", f"--cases={wanted}", f"--seed={start}"]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found = json.loads(done.stdout.splitlines()[-1])
        else:
            found = {"count": 0, "failures": {f"ended with {done.returncode}": done.stderr[-3000:]}}
        yield {"kind": kind.name, "seconds": time.monotonic() - began, **found}


def child(name: str, cases: int, start: int) -> None:
    (kind,) = (kind for kind in KINDS if kind.name == name)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        count, failures = tried(kind, Bench(Path(folder)), cases, start)
    print(json.dumps({"count": count, "failures": failures}))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="", metavar="WORDS", help="only kinds whose name holds this")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.cases, arguments.seed)
        return 0
    rows, failed = [], 0
    for found in all_kinds(arguments.cases, arguments.seed, arguments.kind):
        rows.append((found["kind"], found["count"], len(found["failures"]), found["seconds"]))
        failed += len(found["failures"])
        for key, text in found["failures"].items():
            print(f"--- {found['kind']}: {key}\n{text}\n", file=sys.stderr, flush=True)
        print("{}: {:,} cases, {} kinds of failure, {:.0f} s".format(*rows[-1]), file=sys.stderr, flush=True)
    print("| input | cases | kinds of failure | seconds |\n|---|---|---|---|")
    for kind, count, failures, seconds in rows:
        print(f"| {kind} | {count:,} | {failures} | {seconds:.0f} |")
    print(f"| all | {sum(row[1] for row in rows):,} | {failed} | {sum(row[3] for row in rows):.0f} |")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())

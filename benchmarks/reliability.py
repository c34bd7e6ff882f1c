"""Everything that is promised of faults, tried at full length; one table in docs/reliability.md.

    python benchmarks/reliability.py --write docs/reliability.md    # hours; each part in its own process
    python benchmarks/reliability.py --only fuzz hostile            # parts, now; the others' rows stay
    python benchmarks/reliability.py --only --write docs/reliability.md    # the table of what is there
    python benchmarks/reliability.py --only workers --write docs/reliability.md    # one part, and the table
    python benchmarks/reliability.py --tiny                         # minutes: does every part work?
    python benchmarks/reliability.py --tiny --only workers          # does this one? keeps nothing

A part's rows are kept in docs/results/reliability/PART.json as they come. A part that fails or is killed
stops no other; its row says so. Exit code 1 if anything was not as it has to be. `--only` lists: PARTS.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import short_forms
from provenance import commit_of, processor

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "results" / "reliability"
BEGIN, END = "<!-- reliability: begin -->", "<!-- reliability: end -->"
TRIES = 30
TEMPORARY = re.compile(
    r"(?:[\w.-]*/)*tmp[a-z0-9_]{8}/"
)  # as `tempfile` names a folder; it may be cut in front

Row = dict[str, Any]  # fault, tried, outcome, failed


def faults(*modules: str, tries: int = TRIES) -> Callable[[bool], Iterator[Row]]:
    """The rows of the faults in these modules, of a bench of their own."""

    def rows(tiny: bool) -> Iterator[Row]:
        from fault_rows import FAULTS
        from fault_trials import Bench

        for module in modules:
            import_module(module)
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), updates=20 if tiny else 60)
            for name, function in FAULTS.items():
                if function.__module__ in modules:
                    row = function(bench, 1 if tiny else tries)
                    said = [f"{count} {outcome}" for outcome, count in row.outcomes.items()]
                    yield {
                        "fault": name,
                        "tried": row.tried,
                        "outcome": "; ".join([*said, *([row.note] if row.note else [])]),
                        "failed": sum(row.bad.values()),
                        "allowed": list(row.allows),
                        "examples": row.examples,
                    }

    return rows


def alike(tiny: bool) -> Iterator[Row]:
    """Runs in several processes beside the same run in one."""
    import ranks
    import torch

    torch.set_num_threads(1)
    for size in [2] if tiny else [2, 4]:
        with tempfile.TemporaryDirectory() as folder:
            rows = ranks.compare(size, Path(folder), ["few rows"] if tiny else list(ranks.CASES))
        for layout in ("ddp", "fsdp"):
            some = [row for row in rows if row.case.endswith(layout)]
            cases = ", ".join(row.case.rpartition(", ")[0] for row in some)
            yield _alike(f"{size} processes beside one, {layout}: {cases}", some)
        yield {
            "fault": f"one of {size} processes killed in the middle of an update",
            "tried": 1,
            "outcome": "the others ended with a message",  # else `compare` has failed
            "failed": 0,
        }
    with tempfile.TemporaryDirectory() as folder:
        counts = (1, 2, 1) if tiny else (1, 2, 4, 1)
        row = ranks.handed_on(Path(folder), counts)
    yield _alike(f"a run handed on: {' -> '.join(map(str, counts))} processes", [row])


def _alike(fault: str, rows: Sequence[Any]) -> Row:
    good = [row for row in rows if row.good]
    worst = max(row.difference for row in rows)
    outcome = f"{len(good)} with the same data and weights; the largest difference of a weight {worst:.0e}"
    return {"fault": fault, "tried": len(rows), "outcome": outcome, "failed": len(rows) - len(good)}


def fuzz(tiny: bool) -> Iterator[Row]:
    """10,000 cases of hostile input."""
    from fuzz import all_kinds

    for found in all_kinds(100 if tiny else 10_000, 1):
        failures, good = found["failures"], found["count"] and not found["failures"]
        outcome = f"{'all ended as documented' if good else 'FAILED'}, {found['seconds']:.0f} s"
        row = {"fault": f"fuzzed: {found['kind']}", "tried": found["count"], "outcome": outcome}
        yield {**row, "failed": len(failures) + (not found["count"]), "examples": failures}


def hostile(tiny: bool) -> Iterator[Row]:
    """Files that would run code, climb out or fill the memory."""
    import hostile as files
    import torch

    torch.set_num_threads(1)
    for only in ("tags",) if tiny else ("",):
        for fault, tried, outcome in files.rows(only):
            row = {"fault": fault, "tried": tried, "outcome": outcome}
            yield {**row, "failed": int(outcome.startswith("FAILED"))}


@dataclass(frozen=True)
class Part:
    """`rows(tiny)` does it; which tests are short forms is in short_forms.py."""

    title: str
    rows: Callable[[bool], Iterable[Row]]


PARTS = {
    "runs": Part(
        "A run in one process: killed, terminated, damaged, without room",
        faults("fault_kinds", "fault_disks"),
    ),
    "ranks": Part("A run in two processes, by torchrun", faults("fault_ranks", "fault_meeting", tries=10)),
    "alike": Part("Several processes beside one", alike),
    "data": Part("Preparation and the encoded text", faults("fault_data")),
    "memory": Part("Out of memory", faults("fault_memory")),
    "workers": Part("Translating in two processes", faults("fault_workers", tries=20)),
    "fuzz": Part("Fuzzed input", fuzz),
    "hostile": Part("Files that would run code, climb out or fill the memory", hostile),
}


def child(name: str, file: Path, tiny: bool) -> None:
    """Do a part, and write down each row as it comes."""
    began, rows = time.monotonic(), []
    about = {
        "command": f"python benchmarks/reliability.py --only {name}{' --tiny' if tiny else ''}",
        "commit": commit_of(ROOT),
        "date": str(date.today()),
        "machine": f"{processor()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}",
    }

    def keep(done: bool) -> None:
        found = {**about, "seconds": round(time.monotonic() - began), "done": done, "rows": rows}
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    keep(done=False)
    for row in PARTS[name].rows(tiny):
        examples = {outcome: _clean(said)[-600:] for outcome, said in row.get("examples", {}).items()}
        row = {**row, "fault": _clean(row["fault"]), "outcome": _clean(row["outcome"]), "examples": examples}
        rows.append(row)
        print(f"  {row['fault']}: {row['tried']}, {row['outcome']}", flush=True)
        keep(done=False)
    keep(done=True)


def part(name: str, folder: Path, tiny: bool) -> None:
    """Do a part in a process of its own."""
    print(f"{name}: {PARTS[name].title}", flush=True)
    command = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *(["--tiny"] if tiny else [])], env=environment, check=False)
    if done.returncode:
        print(f"{name} ended with {done.returncode}", flush=True)


def found_in(folder: Path) -> dict[str, Any]:
    """What each part has found, so far as there is something."""
    files = {name: folder / f"{name}.json" for name in PARTS}
    return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}


def failures(found: dict[str, Any]) -> int:
    """How many tries were not as they have to be; a part that did not come to its end is one more."""
    return sum(sum(row["failed"] for row in each["rows"]) + (not each["done"]) for each in found.values())


def table(found: dict[str, Any]) -> str:
    """Markdown: fault, times tried, outcome, failed; and what each part was made by."""
    lines = ["| fault | tried | outcome | failed |", "|---|---|---|---|"]
    for name, each in found.items():
        lines.append(f"| **{PARTS[name].title}** | | | |")
        for row in each["rows"]:
            fault, outcome = (row[key].replace("|", "\\|") for key in ("fault", "outcome"))
            lines.append(f"| {fault} | {row['tried']:,} | {outcome} | {row['failed']} |")
        if not each["done"]:
            lines.append("| the rest of this part | 0 | FAILED: it did not come to its end | 1 |")
    tried = sum(row["tried"] for each in found.values() for row in each["rows"])
    lines += [f"| **all** | **{tried:,}** | | **{failures(found)}** |", ""]
    for name, each in found.items():
        made = f"`{each['command']}`, commit {each['commit']}, {each['date']}, {each['seconds']:,} s"
        lines.append(f"- {PARTS[name].title}: {made}, {each['machine']}")
    missing = [f"`{name}`" for name in PARTS if name not in found]
    lines += [f"- not there yet: {', '.join(missing)}"] if missing else []
    faults = [row["fault"].replace("|", "\\|") for each in found.values() for row in each["rows"]]
    return "\n".join([*lines, "", short_forms.table(faults)])


def _clean(text: str) -> str:
    """On one line, without the places of this machine, temporary ones too."""
    text = TEMPORARY.sub("", text)
    for place in (f"{ROOT}/", sys.prefix, f"{tempfile.gettempdir()}/"):
        text = text.replace(place, "")
    return " ".join(text.split())


def put(text: str, page: Path) -> None:
    """Put the table between its marks."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{page} has no {BEGIN} and {END}"
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Do the parts, one after another, and print the table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("PARTS", ", ".join(PARTS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="*", choices=list(PARTS), metavar="PART", help="parts; none: no part")
    parser.add_argument("--tiny", action="store_true", help="each fault about once, fewer cases")
    parser.add_argument(
        "--folder", type=Path, help=f"rows are kept there (default: {KEPT.relative_to(ROOT)})"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between its marks there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.tiny and not arguments.folder:
        arguments.folder = Path(tempfile.mkdtemp(prefix="reliability-"))
    folder = arguments.folder or KEPT
    if arguments.child:
        child(arguments.child, folder / f"{arguments.child}.json", arguments.tiny)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARTS if arguments.only is None else arguments.only:
        part(name, folder, arguments.tiny)
        if arguments.write:
            put(table(found_in(folder)), arguments.write)
    found = found_in(folder)
    if arguments.write:
        put(table(found), arguments.write)
    print(table(found))
    return int(bool(failures(found)))


if __name__ == "__main__":
    raise SystemExit(main())

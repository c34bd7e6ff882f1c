"""Training between several machines, made of network namespaces on this one: updates, votes, faults.

    python benchmarks/network.py --json network.json --write docs/results/network.md
    python benchmarks/network.py --part faults --fault rank host --json network.json

Starts torchrun at each of the hosts (network_hosts.py), on the embedded corpus, CPU and gloo, and measures

    updates  are the weights those of one process; seconds and bytes of an update, against the link's rate
    votes    what the ranks ask each other besides gradients, against its delay
    faults   a host, or its cable, is gone: how long until the others have ended, and what they say

Needs Linux, root and iproute2; nothing leaves the machine. All hosts share its cores: seconds of an update
without a limit are those of this machine, and what the link adds to them is what is measured. `--json`
keeps what it has of other parts, so parts may be measured one by one; `--write` makes the page of all of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

from network_faults import FAULTS, Ending, endings
from network_hosts import NoNetwork, end, missing
from network_runs import (
    ROOT,
    Case,
    Found,
    alone,
    configuration,
    delays,
    expected_bytes,
    expected_update,
    measure,
    ring,
)
from provenance import commit_of, processor

LAYOUTS = ("ddp", "fsdp")
TOLERANCE = 1e-4  # float32, and some tens of updates, in which a unit of a ReLU may fall on the other side
UPDATES = (
    "hosts, layout, link, measured, largest difference, MB a host sends, counted, of an all-reduce's ring,"
    " s an update, by the plan, the plan's error"
)
VOTES = (
    "hosts, layout, ms of a round trip asked for, measured, votes an update, s an update, of it in votes,"
    " one-way delays of a vote, a ring's, ms of a vote right after another, its delays"
)
PAGE = """# Training between machines

{commands}

{about}
Machines are network namespaces of one computer, joined by a bridge, or by a program that delays;
one process each, CPU, gloo, a model of {parameters} parameters. Seconds of an update without a limit
are of this computer, whose cores all hosts share. [What it means](../scaling.md#network-of-an-update).
"""


def cases(part: str, arguments: argparse.Namespace) -> Iterator[Case]:
    """Each number of hosts and layout without limit or delay, and at the rates, or delays, of the part."""
    for hosts in arguments.hosts:
        for layout in arguments.layouts:
            yield Case(hosts, layout)
            if part == "updates":
                yield from (Case(hosts, layout, 1e6 * rate) for rate in arguments.rates)
            else:
                yield from (Case(hosts, layout, 0.0, delay / 1000) for delay in arguments.delays)


def measured(part: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    config = configuration(folder, arguments.updates)
    reference = folder / "alone"
    if not reference.exists():
        alone(folder, config)
    rows = []
    for case in cases(part, arguments):
        rows.append(asdict(measure(case, folder / part, config, reference, arguments.votes)))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def ended(names: Sequence[str], folder: Path, limit: float, checkout: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    label = "" if checkout == ROOT else f", at {commit_of(checkout)[:7]}"
    for name in names:
        fault = replace(FAULTS[name], name=FAULTS[name].name + label)
        rows += map(asdict, endings(fault, folder / name, limit, checkout))
        print(json.dumps(rows[-2:]), file=sys.stderr, flush=True)
    return rows


# --- what is shown


def found_in(rows: Sequence[dict[str, Any]]) -> list[Found]:
    return [Found(**{**row, "case": Case(**row["case"])}) for row in rows]


def first(found: Sequence[Found], like: Found) -> Found:
    """The one of the same hosts and layout with neither limit nor delay."""
    return next(each for each in found if each.case == Case(like.case.hosts, like.case.layout))


def updates_table(found: Sequence[Found]) -> Iterator[list[str]]:
    yield UPDATES.split(", ")
    for each in found:
        limited = [f"{each.update:.3f}", "", ""]
        if each.case.rate:
            planned = expected_update(each, first(found, each))
            limited = [f"{each.update:.3f}", f"{planned:.3f}", f"{100 * (planned / each.update - 1):+.0f} %"]
        yield [
            f"{each.case.hosts}",
            each.case.layout,
            f"{each.case.rate / 1e6:,.0f} Mb/s" if each.case.rate else "no limit",
            f"{each.rate / 1e6:,.0f} Mb/s",
            f"{each.difference:.0e}",
            f"{each.sent / 1e6:.2f}",
            f"{expected_bytes(each) / 1e6:.2f}",
            f"{each.sent / ring(each.case.hosts, each.parameters):.2f}",
            *limited,
        ]


def votes_table(found: Sequence[Found]) -> Iterator[list[str]]:
    yield VOTES.split(", ")
    for each in found:
        waited = delays(each, first(found, each)) if each.case.delay else ()
        of_update, of_next = (f"{count:.1f}" for count in waited) if waited else ("", "")
        yield [
            f"{each.case.hosts}",
            each.case.layout,
            f"{1000 * each.case.delay:g}",
            f"{1000 * each.round_trip:.2f}",
            f"{each.votes:.1f}",
            f"{each.update:.3f}",
            f"{each.voting:.3f}",
            of_update,
            f"{2 * (each.case.hosts - 1)}",
            f"{1000 * each.vote:.2f}",
            of_next,
        ]


def faults_table(found: Sequence[Ending]) -> Iterator[list[str]]:
    yield ["host 1", "", "s until the rank had ended", "until torchrun had", "its code", "the rank said"]
    for each in found:
        yield [
            each.fault if each.host == 0 else "",
            f"host {each.host}",
            "not within the limit" if math.isinf(each.rank) else f"{each.rank:.1f}",
            "not within the limit" if math.isinf(each.agent) else f"{each.agent:.1f}",
            "" if each.code is None else f"{each.code}",
            each.message.replace("|", "\\|"),
        ]


def table(part: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of a part in Markdown."""
    if part == "faults":
        lines = list(faults_table([Ending(**row) for row in rows]))
    else:
        lines = list({"updates": updates_table, "votes": votes_table}[part](found_in(rows)))
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return [head, "|---" * len(lines[0]) + "|", *body]


def page(kept: dict[str, Any], note: str = "") -> str:
    about = {f"Commit {each['commit']}, {each['date']}; {processor()}." for each in kept.values()}
    parameters = {row["parameters"] for part in kept.values() for row in part["rows"] if "parameters" in row}
    text = PAGE.format(
        commands="\n".join(
            f"    {command}" for command in dict.fromkeys(e["command"] for e in kept.values())
        ),
        about=" ".join(sorted(about)),
        parameters=" or ".join(f"{each:,}" for each in sorted(parameters)),
    )
    text += f"\n{note}\n" if note else ""
    for part, each in kept.items():
        text += "\n".join(["", f"## {part.capitalize()}", "", *table(part, each["rows"]), ""])
    return text


def good(found: Sequence[Found]) -> bool:
    return all(each.difference <= TOLERANCE for each in found)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", nargs="+", choices=("updates", "votes", "faults"), default=["updates", "votes"]
    )
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--rates", type=float, nargs="+", default=[1000.0, 100.0], help="Mb/s, for updates")
    parser.add_argument(
        "--delays", type=float, nargs="+", default=[1.0, 10.0], help="round trips in ms, for votes"
    )
    parser.add_argument("--updates", type=int, default=25)
    parser.add_argument("--votes", type=int, default=50, help="votes for their own sake")
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--limit", type=float, default=1500.0, help="seconds to wait after a fault")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose package a fault hits")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep what is measured here")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the page of all that is kept")
    parser.add_argument("--note", default="", help="a paragraph for the page: what else the machine did, say")
    arguments = parser.parse_args(argv)
    if why := missing():
        print(f"error: {why}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, end)
    file = arguments.json
    kept: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}
    with tempfile.TemporaryDirectory(prefix="network.") as name:
        for part in arguments.part:
            folder = Path(name)
            if part == "faults":
                rows = ended(arguments.fault, folder, arguments.limit, arguments.checkout.resolve())
            else:
                rows = measured(part, arguments, folder)
            if part == "faults":  # those that were not tried anew stay
                new = {row["fault"] for row in rows}
                before = kept.get(part, {}).get("rows", [])
                rows = [row for row in before if row["fault"] not in new] + rows
            kept[part] = {"rows": rows, **made(sys.argv[1:] if argv is None else argv)}
            print(*table(part, rows), "", sep="\n", flush=True)
            if file:
                file.write_text(json.dumps(kept, indent=1))
    if arguments.write:
        arguments.write.write_text(page(kept, arguments.note))
    return int(not all(good(found_in(kept[part]["rows"])) for part in kept if part != "faults"))


def made(argv: Sequence[str]) -> dict[str, str]:
    command = f"python benchmarks/network.py {shlex.join(argv)}".strip()
    return {"command": command, "commit": commit_of(ROOT), "date": str(date.today())}


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except NoNetwork as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        os._exit(130)

"""Measure what size, placement, norm, probes and logging cost, and draw it (needs the `report` extra).

    python benchmarks/scaling.py --out docs/results/scaling
    python benchmarks/scaling.py --out docs/results/scaling --part norms --part placements

Writes OUT/points.jsonl, and from it table.md, table.json and a figure for each part. Every point is measured
in a process of its own (benchmarks/scaling_point.py), one after the other; each round goes through all
points, every other one backwards. A point that points.jsonl has of this processor is not measured again, so
that an interrupted call goes on. A round takes some 45 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from provenance import processor_model
from scaling_figures import draw

from transformer import NORMS, PLACEMENTS
from transformer.analysis.finding import markdown
from transformer.cli.result import commit

ROOT = Path(__file__).parents[1]
HEAD = 32  # width of an attention head
MODEL = {"d_model": 256, "d_ff": 1024, "heads": 8, "encoder_layers": 3, "decoder_layers": 3}
SIZE = {"vocabulary": 8000, "length": 15, "updates": 4, "rounds": 3}
BATCH = 4096
SMALL = MODEL | {"encoder_layers": 2, "decoder_layers": 2}  # on which placements and norms are compared
TURNS = {"vocabulary": 4000, "length": 15, "updates": 2, "rounds": 9, "log": False}
# With the default share, a quarter, no layer of two would be Post-LN.
OPTIONS = {"mix": {"share": 0.5}}
SWEEPS = {
    "width": [64, 128, 256, 512],
    "depth": [1, 2, 4, 8, 16],
    "length": [8, 16, 32, 64, 128, 256],
    "vocabulary": [1000, 4000, 16000, 64000],
    "batch": [512, 1024, 2048, 4096, 8192, 16384],
    "memory": [2, 4, 8, 16],
}
PREPARED = {"demo": [1000, 24_000], "data/multi30k/train": [29_000]}
# Ways to keep less for the backward pass, beside none of them.
WAYS = {
    "pre": ("pre", {}),
    "pre, checkpointed": ("pre", {"checkpoint_activations": True}),
    "reversible": ("reversible", {}),
}


def points(quick: bool) -> Iterator[dict[str, Any]]:
    """All points: `part`, `name` and `x` say where they belong, the rest what is measured."""
    for part, values in SWEEPS.items():
        for x in values[:2] if quick else values:
            yield from sweep(part, x)
    yield pair("placements", "pre", {})
    for name in PLACEMENTS:
        options = {"placement_options": OPTIONS[name]} if name in OPTIONS else {}
        if name != "pre":
            yield pair("placements", name, {"placement": name, **options})
    for name in NORMS:
        yield pair("norms", name, {"norm": plan(name)})
    yield pair("observing", "neither", {})
    yield pair("observing", "probe at each update", {}, {"probe_every": 1})
    yield pair("observing", "log line at each update", {}, log=True)
    for text, sizes in PREPARED.items():
        for x in sizes:
            point = {"part": "preparation", "name": text, "x": x, "kind": "prepare", "text": text, "pairs": x}
            yield point | {"vocabulary": 2000 if text == "demo" else 6000}


def sweep(part: str, x: int) -> Iterator[dict[str, Any]]:
    """The points of one size; all but it are as in MODEL, SIZE and BATCH."""
    model, size, train = dict(MODEL), dict(SIZE), {"batch_tokens": BATCH}
    if part == "width":
        model |= {"d_model": x, "d_ff": 4 * x, "heads": x // HEAD}
    elif part in ("depth", "memory"):
        model |= {"d_model": 128, "d_ff": 512, "heads": 4, "encoder_layers": x, "decoder_layers": x}
    elif part == "batch":
        train = {"batch_tokens": x}
    else:
        size[part] = x
    for name in WAYS if part == "memory" else ("pre",):
        placement, option = WAYS[name]
        chosen = {"model": model | {"placement": placement}, "train": train | option}
        yield {"part": part, "name": name, "x": x, "kind": "train", **chosen, **size}


def pair(
    part: str, name: str, model: dict[str, Any], train: dict[str, Any] | None = None, log: bool = False
) -> dict[str, Any]:
    """A point that is held against Pre-LN with LayerNorm, unprobed and unlogged, of the same size."""
    base = {"model": SMALL | {"placement": "pre"}, "train": {"batch_tokens": BATCH // 2}}
    arm = {"model": base["model"] | model, "train": base["train"] | (train or {}), "base": base}
    return {"part": part, "name": name, "x": None, "kind": "pair", **arm, **TURNS, "log": log}


def plan(norm: str) -> Any:
    """The norm everywhere, or in the encoder alone where a decoder may not have it."""
    return {"encoder": norm, "decoder": "layer"} if NORMS[norm].unfit("decoder") else norm


def tiny(point: dict[str, Any]) -> dict[str, Any]:
    """The same kind of point, small enough for a test: its numbers mean nothing."""
    shrink = {"d_model": 16, "d_ff": 32, "heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    small = {"vocabulary": min(point["vocabulary"], 500), "updates": 1, "rounds": 1}
    if point["kind"] == "prepare":
        return point | small | {"pairs": min(point["pairs"], 1000)}
    found = (
        point | small | {"model": point["model"] | shrink, "train": point["train"] | {"batch_tokens": 128}}
    )
    if "base" in point:
        base = {"model": point["base"]["model"] | shrink, "train": {"batch_tokens": 128}}
        found["base"] = base
    return found


def measured(point: dict[str, Any]) -> dict[str, Any]:
    """What the point's own process prints; why there is nothing to read, where it fails."""
    if point["kind"] == "prepare" and point["text"] != "demo" and not list(ROOT.glob(f"{point['text']}.*")):
        return {"skipped": f"{point['text']} is not there"}
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling_point.py"), json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        return {"skipped": f"exit code {done.returncode}: {(done.stderr.strip() or '-').splitlines()[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def kept(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run(todo: Sequence[dict[str, Any]], rounds: int, file: Path) -> list[dict[str, Any]]:
    """Measure what the file does not have, a line for each point and round; all rows of this processor."""
    here = processor_model()
    rows = [row for row in kept(file) if row.get("processor") == here]
    have = {json.dumps([row["point"], row["round"]]) for row in rows if "skipped" not in row["found"]}
    left = [
        (point, turn)
        for turn in range(rounds)
        for point in (todo if turn % 2 == 0 else todo[::-1])
        if json.dumps([point, turn]) not in have
    ]
    for number, (point, turn) in enumerate(left, start=1):
        row = {"point": point, "round": turn, "processor": here, "commit": commit(), "found": measured(point)}
        rows.append(row)
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        where = " ".join(str(point[key]) for key in ("part", "name", "x") if point[key] is not None)
        print(f"{number} of {len(left)}: {where}: {row['found'].get('skipped', 'done')}", file=sys.stderr)
    known = [json.dumps(point) for point in todo]
    return [row for row in rows if json.dumps(row["point"]) in known and row["round"] < rounds]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """For each part its points: medians over the rounds, and the range of the main number."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for text in dict.fromkeys(json.dumps(row["point"]) for row in rows):
        point = json.loads(text)
        founds = [row["found"] for row in rows if json.dumps(row["point"]) == text]
        good = [found for found in founds if "skipped" not in found]
        entry: dict[str, Any] = {"name": point["name"], "x": point["x"], "rounds": len(good)}
        if not good:
            entry["skipped"] = founds[-1]["skipped"]
        for key in [key for key in good[0] if key != "rounds"] if good else ():
            values = [found[key] for found in good]
            plain = isinstance(values[0], int | float)
            entry[key] = statistics.median(values) if plain else values[-1]
        for key in ("speed", "ratio", "whole"):
            if key in entry:
                turns = [value for found in good for value in found.get("rounds", [found[key]])]
                entry["least"], entry["most"] = min(turns), max(turns)
        parts.setdefault(point["part"], []).append(entry)
    return parts


def made_by(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """What made the rows: processor, threads, versions of torch and commits."""
    found = [row["found"] for row in rows if "skipped" not in row["found"]]
    values = {
        "processor": (str(row.get("processor")) for row in rows),
        "threads": (each["threads"] for each in found),
        "torch": (each["torch"] for each in found),
        "commit": (str(row["commit"])[:12] for row in rows),
    }
    return {key: sorted(set(each)) for key, each in values.items()}


def tables(parts: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table for each part."""
    text = []
    for part, entries in parts.items():
        good = [entry for entry in entries if "skipped" not in entry]
        kinds = {"speed": (SPEED, speed_row), "ratio": (RATIO, ratio_row), "whole": (TEXT, text_row)}
        kind = next((kind for kind in kinds if good and kind in good[0]), "speed")
        head, row = kinds[kind]
        cells = [row(entry, good[0]["memory"]) for entry in good]
        text.append(f"### {part}\n\n{markdown([part, *head], cells)}")
        text += [
            f"not measured: {e['name']} {e['x'] or ''}: {e['skipped']}" for e in entries if "skipped" in e
        ]
    return "\n\n".join(text) + "\n"


# Columns after the name. Ranges are over the rounds, of speeds also those within a process. Memory before is
# that of libraries, text and weights.
SPEED = [
    "target tokens/s",
    "from, to",
    "share of limit",
    "MiB",
    "MiB before",
    "parameters",
    "loss",
    "optimizer",
]
RATIO = ["time", "from, to", "ms an update", "MiB", "more MiB"]
TEXT = ["pairs", "pairs/s", "from, to", "tokenizer there", "all there"]


def speed_row(entry: dict[str, Any], reference: float) -> list[str]:
    return [
        f"{entry['x']:,} {entry['name']}",
        f"{entry['speed']:,.0f}",
        f"{entry['least']:,.0f} to {entry['most']:,.0f}",
        f"{entry['speed'] / entry['limit']:.0%}",
        f"{entry['memory'] / 2**20:,.0f}",
        f"{entry['memory_before'] / 2**20:,.0f}",
        f"{entry['parameters']:,.0f}",
        *(f"{entry['shares'][part]:.0%}" for part in ("loss", "optimizer")),
    ]


def ratio_row(entry: dict[str, Any], reference: float) -> list[str]:
    return [
        entry["name"],
        f"{entry['ratio']:.3f}",
        f"{entry['least']:.3f} to {entry['most']:.3f}",
        f"{1000 * entry['seconds']:,.1f}",
        f"{entry['memory'] / 2**20:,.0f}",
        f"{(entry['memory'] - reference) / 2**20:+,.0f}",
    ]


def text_row(entry: dict[str, Any], reference: float) -> list[str]:
    numbers = [f"{entry[key]:,.0f}" for key in ("pairs", "whole", "encoding", "cached")]
    numbers.insert(2, f"{entry['least']:,.0f} to {entry['most']:,.0f}")
    return [entry["name"], *numbers]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*SWEEPS, "placements", "norms", "observing", "preparation"]
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "scaling")
    parser.add_argument("--part", action="append", choices=names, help="only this; may be given often")
    parser.add_argument("--rounds", type=int, default=2, help="processes for each point (default: 2)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--only", help="points whose name holds this")
    parser.add_argument("--report", action="store_true", help="measure nothing: tables of all that is there")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a test, no measurement")
    arguments = parser.parse_args(argv)
    chosen = [
        (tiny(point) if arguments.quick else point)
        | {"device": arguments.device, "threads": arguments.threads}
        for point in points(arguments.quick)
        if point["part"] in (arguments.part or names) and (arguments.only or "") in point["name"]
    ]
    file = arguments.out / "points.jsonl"
    if arguments.report:
        rows = [row for row in kept(file) if row["point"]["part"] in (arguments.part or names)]
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        rows = run(chosen, arguments.rounds, file)
    parts, facts = summary(rows), made_by(rows)
    if arguments.report and (len(facts["processor"]), len(facts["threads"])) != (1, 1):
        parser.error(f"{file} is to hold points of one processor and number of threads, not of {facts}")
    (arguments.out / "table.json").write_text(json.dumps(facts | {"parts": parts}, indent=1) + "\n")
    said = "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in facts.items())
    (arguments.out / "table.md").write_text(f"{said}.\n\n{tables(parts)}", encoding="utf-8")
    for part, entries in parts.items():
        draw(part, [entry for entry in entries if "skipped" not in entry], arguments.out / f"{part}.png")
    print(tables(parts))
    return int(any("skipped" in entry for entries in parts.values() for entry in entries))


if __name__ == "__main__":
    raise SystemExit(main())

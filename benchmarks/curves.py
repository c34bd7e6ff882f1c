"""Draw the learning curves of run directories side by side (needs the `report` extra).

    python benchmarks/curves.py --out docs/results/arms.png runs/multi30k_arms-*

Left: training loss without label smoothing, a token, in nats. Right: BLEU on the validation set.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, told apart by readers who do not see red or green; the line styles repeat it
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
STYLES = ["-", "--", "-.", ":"]


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--labels", nargs="*", help="one for each run (default: the directories' names)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    labels = arguments.labels or [run.name for run in arguments.runs]
    figure, (loss, bleu) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for i, (run, label) in enumerate(zip(arguments.runs, labels, strict=True)):
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)], "label": label}
        held = rows(run)
        train = [(r["update"], r["nll"]) for r in held if r.get("nll") is not None]
        valid = [
            (r["update"], r["valid_bleu"])
            for r in held
            if r.get("valid_bleu") is not None and "averaged" not in r
        ]
        loss.plot(*zip(*train, strict=True), **look)
        bleu.plot(*zip(*valid, strict=True), marker="o", markersize=3, **look)
    loss.set(xlabel="update", ylabel="training loss (nats a token)")
    bleu.set(xlabel="update", ylabel="validation BLEU", ylim=(0, None))
    for axes in (loss, bleu):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    loss.legend(frameon=False)
    figure.suptitle(arguments.title)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()

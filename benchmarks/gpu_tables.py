"""The tables of benchmarks/gpu.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformer.analysis.finding import markdown
from transformer.speed.timeline import ATTENTION


def report(found: dict[str, Any]) -> str:
    """All tables."""
    parts = [
        "## Correctness: bf16 against float64, relative",
        check_table(found["correctness"], found["bounds"]),
    ]
    parts += ["## Speed", speed_table(found["speed"])]
    rates = found["ceilings"]
    parts.append(
        f"limit and peak: products at {rates['products'] / 1e12:,.2f} TFLOP/s in bf16, copies at"
        f" {rates['copy'] / 1e9:,.0f} GB/s, both measured in this run on {found['device']}; batches of"
        f" {found['batch_tokens']:,} tokens, padding counted; random text with Multi30k's spread of lengths"
    )
    done = found["training"]
    parts.append(f"## Training on {done.get('text', 'text')}, against the clock")
    if "skipped" in done:
        return "\n\n".join([*parts, f"not measured: {done['skipped']}"])
    rows = [[row["update"], row["seconds"], row["loss"], row["bleu"]] for row in done["validations"]]
    parts.append(markdown(["update", "seconds", "validation loss", "validation BLEU"], rows))
    scores = [
        f"{name}: BLEU {score['bleu']:.2f}, {score['signature']['bleu']}"
        for name, score in done["test"].items()
    ]
    average = f", the mean of {done['averaged']} checkpoints" if done["averaged"] else ""
    parts.append(
        f"{done['updates']:,} updates in {done['seconds']:,.0f} s, validations included ({done['reason']});"
        f" {done['target_tokens_per_second']:,.0f} target tokens/s; kept{average}: validation BLEU"
        f" {done['valid_bleu']:.2f}; " + "; ".join(scores)
    )
    return "\n\n".join(parts)


def check_table(rows: Sequence[dict[str, Any]], limits: dict[str, float]) -> str:
    cells = []
    for row in rows:
        errors = [
            f"{row[name]:.1e}{' WRONG' if name in row['wrong'] else ''}" if name in row else "-"
            for name in limits
        ]
        note = f"not measured: {row['skipped']}" if "skipped" in row else ""
        cells.append([row["placement"], row["norm"], row["way"], *errors, note])
    bounds = [f"{name} (bound {bound:g})" for name, bound in limits.items()]
    return markdown(["placement", "norm", "model", *bounds, ""], cells)


PARTS = ("data", "forward", ATTENTION, "loss", "backward", "optimizer")


def speed_table(rows: Sequence[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        cell = [row["shape"], "compiled" if row["compiled"] else "plain"]
        if "skipped" in row:
            cells.append([*cell, f"not measured: {row['skipped']}", *["-"] * (7 + len(PARTS))])
            continue
        shares = [f"{row['shares'][part]:.0%}" if part in row["shares"] else "-" for part in PARTS]
        cell += [f"{row['speed']:,.0f}", f"{min(row['rounds']):,.0f} to {max(row['rounds']):,.0f}"]
        cell += [f"{row['of_limit']:.1%}", f"{row['of_peak']:.1%}", *shares]
        cell += [f"{row['memory'] / 2**20:,.0f}", f"{row['first_update']:.1f}"]
        cells.append([*cell, "-" if row["graphs"] is None else row["graphs"], f"{row['parameters']:,}"])
    head = ["shape", "model", "target tokens/s", "from, to", "of the limit", "of the peak", *PARTS]
    return markdown([*head, "peak MiB", "first update s", "graphs", "parameters"], cells)

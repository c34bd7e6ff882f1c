"""The tables of benchmarks/gpu.py."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent
from typing import Any

from transformer.analysis.finding import markdown
from transformer.speed.timeline import ATTENTION


def check_text(found: dict[str, Any]) -> str:
    """Correctness."""
    table = check_table(found["correctness"], found["bounds"])
    return f"## Correctness: bf16 against float64, relative\n\n{table}"


def ceilings_text(found: dict[str, Any]) -> str:
    """What the speeds are measured by."""
    rates = found["ceilings"]
    if rates is None:
        return "limit and peak: not measured"
    stated = found["stated_peak"]
    mfu = f"; MFU: of {stated / 1e12:,.0f} TFLOP/s, which its maker states" if stated else ""
    return (
        f"limit and peak: products at {rates['products'] / 1e12:,.2f} TFLOP/s in bf16, copies at"
        f" {rates['copy'] / 1e9:,.0f} GB/s, both measured in this run on {found['device']}; batches of"
        f" {found['batch_tokens']:,} tokens, padding counted; random text with Multi30k's spread of"
        f" lengths{mfu}"
    )


def speed_text(found: dict[str, Any], compiled: bool) -> str:
    """The models that are compiled, or those that are not."""
    rows = [row for row in found["speed"] if row["compiled"] == compiled]
    return f"## Speed, {'compiled' if compiled else 'plain'}\n\n{speed_table(rows)}"


def training_text(found: dict[str, Any]) -> str:
    """The training's validations, and how it ended."""
    done = found["training"] or {"skipped": "it did not come to its end"}
    title = f"## Training on {done.get('text', 'text')}, against the clock"
    if "skipped" in done:
        return f"{title}\n\nnot measured: {done['skipped']}"
    rows = [[row["update"], row["seconds"], row["loss"], row["bleu"]] for row in done["validations"]]
    table = markdown(["update", "seconds", "validation loss", "validation BLEU"], rows)
    scores = [
        f"{name}: BLEU {score['bleu']:.2f}, {score['signature']['bleu']}"
        for name, score in done["test"].items()
    ]
    average = f", the mean of {done['averaged']} checkpoints" if done["averaged"] else ""
    end = (
        f"{done['updates']:,} updates in {done['seconds']:,.0f} s, validations included ({done['reason']});"
        f" {done['target_tokens_per_second']:,.0f} target tokens/s; kept{average}: validation BLEU"
        f" {done['valid_bleu']:.2f}; " + "; ".join(scores)
    )
    seconds = done["reached"]
    when = "not reached" if seconds is None else f"first reached after {seconds:,.0f} s of training"
    return "\n\n".join([title, table, f"validation BLEU {done['aim']:g}: {when}", end])


def error_text(found: dict[str, Any]) -> str:
    """What ended it, for whoever has only the report."""
    error = indent(found["error"], "    ")
    return f"## Ended by an error\n\nWhat stands above was measured before it.\n\n{error}"


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
            cells.append([*cell, f"not measured: {row['skipped']}", *["-"] * (8 + len(PARTS))])
            continue
        shares = [f"{row['shares'][part]:.0%}" if part in row["shares"] else "-" for part in PARTS]
        cell += [f"{row['speed']:,.0f}", f"{min(row['rounds']):,.0f} to {max(row['rounds']):,.0f}"]
        cell += [
            f"{row['of_limit']:.1%}",
            f"{row['of_peak']:.1%}",
            "-" if row["mfu"] is None else f"{row['mfu']:.1%}",
            *shares,
        ]
        cell += [f"{row['memory'] / 2**20:,.0f}", f"{row['first_update']:.1f}"]
        cells.append([*cell, "-" if row["graphs"] is None else row["graphs"], f"{row['parameters']:,}"])
    head = ["shape", "model", "target tokens/s", "from, to", "of the limit", "of the peak", "MFU", *PARTS]
    return markdown([*head, "peak MiB", "first update s", "graphs", "parameters"], cells)

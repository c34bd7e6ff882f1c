"""Print a Markdown table of finished runs from their result.json.

python benchmarks/table.py runs/multi30k_arms-*
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description="Print a Markdown table of finished runs.")
    parser.add_argument("runs", nargs="+", type=Path)
    results = [json.loads((run / "result.json").read_text("utf-8")) for run in parser.parse_args().runs]
    sets = list(dict.fromkeys(name for result in results for name in result["test"]))
    head = [
        "placement",
        "warm-up",
        "seed",
        "status",
        "updates",
        "minutes",
        "tokens/s",
        "valid loss",
        "valid BLEU",
    ]
    print("| " + " | ".join([*head, *sets]) + " |")
    print("|" + "---|" * (len(head) + len(sets)))
    for r in results:
        scores = [f"{r['test'][name]['bleu']:.2f}" if name in r["test"] else "" for name in sets]
        row = [
            f"{r['placement']}",
            f"{r['warmup']:,}",
            f"{r['seed']}",
            r["status"],
            f"{r['updates']:,}",
            f"{r['seconds'] / 60:.1f}",
            f"{r['target_tokens_per_second']:,.0f}",
            f"{r['valid_loss']:.3f}",
            f"{r['valid_bleu']:.2f}",
        ]
        print("| " + " | ".join([*row, *scores]) + " |")


if __name__ == "__main__":
    main()

"""The training of benchmarks/gpu.py: to its BLEU against the clock."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from transformer.cli.train import main as train

ROOT = Path(__file__).parents[1]
AIM = 36.0  # validation BLEU


def training(device: torch.device, tiny: bool, minutes: float) -> dict[str, Any]:
    """Train as `train.py` does; validations with the seconds at which they began, and the test scores."""
    have = bool(list(Path("data/multi30k").glob("train.*"))) and not tiny
    config = ROOT / "configs" / ("multi30k.yaml" if have else "demo.yaml")
    sets = [f"train.minutes={minutes:g}", "train.metric=bleu"]
    if tiny:
        sets += ["train.updates=4", "train.validate_every=4", "train.log_every=1", "train.warmup=1"]
        sets += ["model.d_model=16", "model.d_ff=32", "model.heads=2", "decode.beam=1", "decode.max_length=3"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = [word for option in sets for word in ("--set", option)]
        code = train([str(config), "--run-dir", str(run), "--device", str(device), *flags])
        if code:
            return {"text": config.stem, "skipped": f"training ended with exit code {code}"}
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        result = json.loads((run / "result.json").read_text())
    validations: list[dict[str, float]] = []
    seconds = 0.0
    for row in rows:
        seconds = row.get("seconds", seconds)
        if "valid_bleu" in row:
            names = {"bleu": "valid_bleu", "loss": "valid_loss"}
            found = {name: row[key] for name, key in names.items()}
            validations.append({"update": row["update"], "seconds": seconds, **found})
    kept = ("seconds", "updates", "reason", "target_tokens_per_second", "valid_bleu", "test", "averaged")
    found = {
        "text": config.stem,
        "validations": validations,
        "aim": AIM,
        "reached": reached(validations, AIM),
    }
    return found | {key: result[key] for key in kept}


def reached(validations: Sequence[Mapping[str, float]], aim: float) -> float | None:
    """Seconds of training after which a validation first gave that BLEU."""
    return next((row["seconds"] for row in validations if row["bleu"] >= aim), None)

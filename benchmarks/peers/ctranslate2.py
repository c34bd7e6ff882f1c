"""CTranslate2: this toolkit's model, exported by `python -m transformer export`, in float32 or int8.

The variant is CTranslate2's `compute_type`; one that it does not compute in on this machine is an error.
Pre-LN; translation only. The export is verified as ever, then served by CTranslate2 alone: this process has
neither torch nor the toolkit. It sorts the sentences, cuts them into batches of 64 and translates several at
a time, one thread each, which is faster than all threads on one batch.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import shapes
from .meter import Task, adapter, translated
from .text import pieces

COMPUTED_IN = {"int8": "int8_float32"}  # what CTranslate2 calls what it was asked for, where not the same


def model(task: Task) -> None:
    """Train one update, export; runs where this toolkit is installed."""
    run = task.model / "ours"
    run.mkdir()
    options = ["--shape", task.shape, "--data", task.data, "--threads", task.threads, "--model", run]
    python([f"{__package__}.ours", "model", *options, "--variant", "float32", "--out", run / "result.json"])
    export = ["transformer", "export", run / "run", "--to", "ctranslate2", task.model / "served"]
    python([*export, *(["--quantization", "int8"] if task.variant.startswith("int8") else [])])
    shutil.rmtree(run)


def python(words: list[object]) -> None:
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


def translate(task: Task) -> dict[str, Any]:
    import ctranslate2

    translator = ctranslate2.Translator(
        str(task.model / "served"),
        device="cpu",
        compute_type=task.variant,
        inter_threads=task.threads,
        intra_threads=1,
    )
    if translator.compute_type != COMPUTED_IN.get(task.variant, task.variant):
        raise RuntimeError(f"asked for {task.variant}, CTranslate2 computes in {translator.compute_type}")
    sources = pieces(Path(task.data, f"{shapes.TEST_SET}.source"))

    def search(lines: list[list[str]], beam: int) -> list[list[str]]:
        results = translator.translate_batch(
            lines,
            beam_size=beam,
            max_batch_size=shapes.BATCH_SENTENCES,
            min_decoding_length=shapes.STEPS,
            max_decoding_length=shapes.STEPS,
            length_penalty=0,
            disable_unk=True,
        )
        return [result.hypotheses[0] for result in results]

    first = sorted(sources, key=len, reverse=True)[: shapes.BATCH_SENTENCES]
    return translated(lambda beam: search(sources, beam), lambda beam: search(first, beam), len(sources))


if __name__ == "__main__":
    adapter(model=model, translate=translate)

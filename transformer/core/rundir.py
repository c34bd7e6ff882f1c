"""What a run directory holds, by name."""

from pathlib import Path

CONFIG_FILE = "config.yaml"  # resolved, complete
RESULT = "result.json"
METRICS = "metrics.jsonl"
LOG = "log.txt"
DATA_REPORT = "data.json"
TOKENIZERS = "tokenizer"
WEIGHTS = "model.safetensors"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
JOB = "torchrun.job"  # which torchrun began this run, or went on with it; one process writes none
LOCK = "run.lock"  # there while a process trains
TESTS = "tests"  # NAME.hyp and NAME.ref of each test set, a sentence a line


def kept(run_dir: Path, test: str, ending: str) -> Path:
    """The file of a test set: its translations (`hyp`) or references (`ref`)."""
    return run_dir / TESTS / f"{test}.{ending}"

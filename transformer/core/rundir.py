"""What a run directory holds, by name."""

CONFIG_FILE = "config.yaml"  # resolved, complete
RESULT = "result.json"
METRICS = "metrics.jsonl"
LOG = "log.txt"
DATA_REPORT = "data.json"
TOKENIZERS = "tokenizer"
WEIGHTS = "model.safetensors"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
LOCK = "run.lock"  # there while a process trains
TESTS = "tests"  # NAME.hyp and NAME.ref of each test set, a sentence a line

"""python -m transformer data CONFIG|RUN: prepare the data; report what was read, kept, left out, and why."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..core.loading import load
from ..data.dataset import prepare
from .command import MODEL_FLAGS, Parser, command
from .config import Config
from .lines import say
from .resolve import config_file_of

DESCRIPTION = """\
Read, check, filter and encode the data of a configuration, without training: the report that a run writes to
data.json. What is prepared stays in data.cache, so training starts at once."""


@command
def main(argv: Sequence[str]) -> int:
    """Prepare and report."""
    parser = Parser("data", DESCRIPTION)
    parser.add_argument("config", metavar="CONFIG|RUN", help="a configuration file or a run directory")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_options({"--seed": MODEL_FLAGS["--seed"]})
    arguments = parser.parse_args(argv)
    path = Path(arguments.config)
    config = load(Config, config_file_of(path) if path.is_dir() else path, arguments.overrides)
    with tempfile.TemporaryDirectory() as folder:
        report = prepare(config.data, Path(folder), config.seed, say).report
    print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) if arguments.json else report.text())
    return 0

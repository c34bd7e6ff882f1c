"""python -m transformer average RUN: the mean of a run's last checkpoints, as one weights file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.errors import CheckpointError, ConfigError
from ..core.rundir import CHECKPOINTS
from ..data.tokenizer import load_tokenizers
from ..training.checkpoint import average_checkpoints, write_weights
from .command import Parser, command
from .lines import say
from .resolve import config_file_of, run_config
from .runs import made_with, require_made_with, weights_file


@command
def main(argv: Sequence[str]) -> int:
    """Average and write; translate.py RUN --checkpoint FILE uses the result."""
    parser = Parser(
        "average", "Average checkpoints of a run; use the file with `translate.py RUN --checkpoint FILE`."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "checkpoints", nargs="*", metavar="NAME", help="update-0000500 or files (default: the last ones)"
    )
    parser.add_argument(
        "--last", type=int, default=5, metavar="N", help="how many of the last checkpoints (default: 5)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: RUN/checkpoints/averaged.safetensors"
    )
    arguments = parser.parse_args(argv)
    if arguments.last < 1:
        raise ConfigError(f"--last {arguments.last}: at least one checkpoint is needed")
    config_file_of(arguments.run)
    paths = [weights_file(arguments.run, name) for name in arguments.checkpoints]
    paths = paths or sorted((arguments.run / CHECKPOINTS).glob("update-*.safetensors"))[-arguments.last :]
    if not paths:
        raise CheckpointError(
            f"{arguments.run}: no checkpoints/update-*.safetensors; train with train.keep or train.average"
        )
    target = arguments.output or arguments.run / CHECKPOINTS / "averaged.safetensors"
    if target.exists() and "averaged" not in target.stem:
        raise ConfigError(f"--output {target} exists; choose another file")
    own = target.parent.resolve() == (arguments.run / CHECKPOINTS).resolve()
    if own and not target.name.startswith("averaged"):
        raise ConfigError(f"--output {target}: there the run keeps its own; begin the name with `averaged`")
    if not arguments.checkpoints and len(paths) < arguments.last:
        say(f"note: {len(paths)} validated weights are kept, fewer than --last {arguments.last}")
    config, tokenizers = run_config(arguments.run), load_tokenizers(arguments.run)

    def require(header: Mapping[str, str], path: Path) -> None:
        require_made_with(header, config, *tokenizers, path)

    header = {"averaged": " ".join(path.stem for path in paths), **made_with(config, *tokenizers)}
    write_weights(target, average_checkpoints(paths, require), header)
    say(f"{target}: the mean of {', '.join(map(str, paths))}")
    return 0

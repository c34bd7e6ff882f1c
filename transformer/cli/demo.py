"""python -m transformer demo RUN: test sentences, what the run makes of them, and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.errors import CheckpointError, ConfigError
from ..core.rundir import RESULT
from ..data.dataset import read_parallel
from ..decoding.translator import Translator
from .command import Parser, command, whole_number
from .result import read_result
from .runs import load_run, pick_device


@command
def main(argv: Sequence[str]) -> int:
    """Show translations a person can read, spread over the run's first test set, then all test scores."""
    parser = Parser("demo", "Show a run's translations of some of its test sentences, and its scores.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run that has a test set")
    parser.add_argument(
        "--sentences", type=whole_number, default=8, metavar="N", help="how many to show (default: 8)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    arguments = parser.parse_args(argv)
    run = load_run(arguments.run, device=pick_device(arguments.device))
    data = run.config.data
    if not data.test:
        raise ConfigError(f"{run.directory}: its configuration names no test set (data.test)")
    pairs = read_parallel(next(iter(data.test.values())), data.source, data.target, "test")
    count = min(arguments.sentences, len(pairs))
    shown = [pairs[i * len(pairs) // count] for i in range(count)]
    translator = Translator([run.model], run.source_tokenizer, run.target_tokenizer, run.config.decode)
    scores = _scores(run.directory)
    for (source, reference), translation in zip(
        shown, translator.translate(source for source, _ in shown), strict=True
    ):
        print(f"{data.source}  {source}\n{data.target}  {translation.text}")
        print("    as the reference\n" if translation.text == reference else f"    reference: {reference}\n")
    print("\n".join(scores))
    return 0


def _scores(run: Path) -> list[str]:
    """The test scores of result.json."""
    try:
        return [
            f"{name}, {held['sentences']:,} sentences: BLEU {held['bleu']:.2f}, chrF2 {held['chrf']:.2f}\n"
            f"    {held['signature']['bleu']}"
            for name, held in read_result(run)["test"].items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{run / RESULT}: no scores here ({error!r}); has the run ended?") from error

"""python -m transformer compare RUN RUN: is one better, by how much, and what else differs between them?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import rundir
from ..core.errors import CheckpointError, ConfigError, DataError
from ..core.reading import written
from ..data.dataset import read_parallel
from ..decoding.translator import Translator
from ..studies.bootstrap import SAMPLES, Resampled, paired_bootstrap
from ..studies.cells import differences, read_result
from ..studies.judging import ALPHA, p_words
from .command import Parser, command, whole_number
from .config import Config
from .lines import json_line, read_lines, say
from .resolve import run_config
from .result import how_it_ended
from .runs import Run, load_run, pick_device

DESCRIPTION = """\
Compare the translations of two runs: BLEU and chrF2 of each with 95 % intervals, and the p of their
difference by paired bootstrap, all by sacreBLEU; then every option in which the runs differ, and their
parameters.

Without --test or --input, every test set that both configurations name is compared. Translations that a run
has kept (RUN/tests/NAME.hyp) are used as they are; otherwise the run translates.

Two runs are one training each: what holds for them need not hold for other seeds. A study asks that."""
MIN_SAMPLES = 100
FEW_SENTENCES = 100  # below these, resampling says little


@dataclass(frozen=True)
class Side:
    """One of the two runs: what is known of it without its model, which is only loaded to translate."""

    directory: Path
    config: Config

    def kept(self, test: str, ending: str) -> list[str] | None:
        """Lines of RUN/tests/NAME.ENDING, None where there is no such file."""
        file = rundir.kept(self.directory, test, ending)
        return list(read_lines(str(file))) if file.is_file() else None

    def has_no_model(self) -> bool:
        """Has it ended without one, as a run that diverged before its first validation?"""
        diverged = read_result(self.directory).get("status") == "diverged"
        return diverged and not (self.directory / rundir.WEIGHTS).is_file()

    def parameters(self, loaded: dict[Path, Run]) -> int | None:
        if self.directory in loaded:
            return loaded[self.directory].model.parameter_count()
        count = read_result(self.directory).get("parameters")
        return count if isinstance(count, int) else None


@command
def main(argv: Sequence[str]) -> int:
    """Compare, print."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    sides = [Side(run, run_config(run)) for run in arguments.run]
    languages = ["-".join((side.config.data.source, side.config.data.target)) for side in sides]
    if len(set(languages)) > 1:
        raise ConfigError(
            f"{sides[0].directory} translates {languages[0]}, {sides[1].directory} {languages[1]}:"
            " their translations cannot be compared"
        )
    device, loaded = pick_device(arguments.device), {}

    def translate(side: Side, sources: Sequence[str]) -> list[str]:
        if side.directory not in loaded:
            loaded[side.directory] = load_run(side.directory, device=device)
        run = loaded[side.directory]
        say(f"{side.directory}: translating {len(sources):,} lines")
        translator = Translator(
            [run.model], run.source_tokenizer, run.target_tokenizer, run.config.decode, device
        )
        return [translation.text for translation in translator.translate(sources)]

    found: dict[str, list[Resampled]] = {}
    sentences: dict[str, int] = {}
    if lost := [side.directory for side in sides if side.has_no_model()]:
        facts = _facts(sides, found, sentences, loaded)
        print(json_line(facts) if arguments.json else "\n".join(_text(sides, found, facts)), flush=True)
        raise CheckpointError("; ".join(f"{run} has no model: {how_it_ended(run)}" for run in lost))
    if arguments.input is not None:
        sources, references = list(read_lines(arguments.input)), list(read_lines(arguments.reference))
        if len(sources) != len(references):
            names = f"{arguments.input} has {len(sources)} lines, {arguments.reference} has {len(references)}"
            raise DataError(f"{names}: they have to be equally many")
        texts = translate(sides[0], sources), translate(sides[1], sources)
        name = Path(arguments.input).name
        found[name] = paired_bootstrap(*texts, references, samples=arguments.samples)
        sentences[name] = len(references)
    else:
        tests = _tests(sides, arguments.test)
        other = list(read_lines(arguments.reference)) if arguments.reference else None
        if other is not None and len(tests) > 1:
            raise ConfigError(
                f"--reference is of one text, and there are {', '.join(tests)}: give --test too"
            )
        for test in tests:
            texts, references = _test_texts(sides, test, translate, other)
            found[test] = paired_bootstrap(*texts, references, samples=arguments.samples)
            sentences[test] = len(references)
    facts = _facts(sides, found, sentences, loaded)
    print(json_line(facts) if arguments.json else "\n".join(_text(sides, found, facts)))
    return 0


def _tests(sides: Sequence[Side], wanted: Sequence[str] | None) -> list[str]:
    """The test sets to compare on; ConfigError where a run has none by that name."""
    named = [list(side.config.data.test) for side in sides]
    common = [name for name in named[0] if name in named[1]]
    for name in wanted or ():
        for side, known in zip(sides, named, strict=True):
            if name not in known:
                has = f"it has {', '.join(known)}" if known else "its configuration names none"
                raise ConfigError(f"--test {name}: {side.directory} has no such test set; {has}")
    if not wanted and not common:
        raise ConfigError("the two runs name no test set in common: give --input FILE --reference FILE")
    return list(dict.fromkeys(wanted or common))


def _test_texts(
    sides: Sequence[Side], test: str, translate: Any, other: list[str] | None = None
) -> tuple[tuple[list[str], list[str]], list[str]]:
    """(translations of each run, references) of a test set; what was kept is used, the rest translated.

    `other` stands in for the references.
    """
    kept = [side.kept(test, "hyp") for side in sides]
    references = [side.kept(test, "ref") for side in sides]
    pairs: list[list[tuple[str, str]] | None] = []
    for side, hypotheses, reference in zip(sides, kept, references, strict=True):
        whole = hypotheses is not None and reference is not None
        data = side.config.data
        pairs.append(None if whole else read_parallel(data.test[test], data.source, data.target, "test"))
    texts, expected = [], []
    for side, hypotheses, reference, read in zip(sides, kept, references, pairs, strict=True):
        if read is not None:
            hypotheses, reference = translate(side, [source for source, _ in read]), [r for _, r in read]
        texts.append(hypotheses or [])
        expected.append(reference or [])
    if other is not None:
        for side, text in zip(sides, texts, strict=True):
            if len(text) != len(other):
                names = f"--reference has {len(other)} lines, {test} of {side.directory} has {len(text)}"
                raise DataError(f"{names}: they have to be equally many")
        if expected[0] != expected[1]:
            say(f"note: {test} was another text in each of the two runs, by their references")
        return (texts[0], texts[1]), other
    if expected[0] != expected[1]:
        raise DataError(
            f"test set {test!r} has another reference in {sides[1].directory} than in {sides[0].directory};"
            " give --input FILE --reference FILE"
        )
    return (texts[0], texts[1]), expected[0]


def _facts(
    sides: Sequence[Side],
    found: dict[str, list[Resampled]],
    sentences: dict[str, int],
    loaded: dict[Path, Run],
) -> dict[str, Any]:
    """Everything that is printed, for programs. Which test sets a run has does not tell models apart."""
    same = sides[0].directory.resolve() == sides[1].directory.resolve()
    notes = ["A and B are one and the same run"] if same else []
    notes += [
        f"{test} has {count:,} sentences: with fewer than about {FEW_SENTENCES}, intervals and p are rough"
        for test, count in sentences.items()
        if count < FEW_SENTENCES
    ]
    return {
        "runs": [str(side.directory) for side in sides],
        "parameters": [side.parameters(loaded) for side in sides],
        "tests": {test: {each.metric: each.to_dict() for each in scores} for test, scores in found.items()},
        "differences": {
            key: [one, other]
            for key, one, other in differences(sides[0].config, sides[1].config)
            if key != "data.test" and not key.startswith("data.test.")
        },
        "sentences": sentences,
        "notes": notes,
    }


def _text(sides: Sequence[Side], found: dict[str, list[Resampled]], facts: dict[str, Any]) -> list[str]:
    lines = [f"A  {sides[0].directory}", f"B  {sides[1].directory}"]
    for test, scores in found.items():
        lines += ["", f"{test}, {facts['sentences'][test]:,} sentences"]
        lines.append(f"{'':<12} {'A':>15} {'B':>15} {'B - A':>8}   paired bootstrap")
        for each in scores:
            one, other = (
                f"{score:.2f} ± {half:.2f}"
                for score, half in ((each.first, each.first_half), (each.second, each.second_half))
            )
            lines.append(
                f"  {each.metric:<10} {one:>15} {other:>15} {each.difference + 0.0:>+8.2f}   {_verdict(each)}"
            )
        lines += [f"  {each.metric:<6} {each.signature}" for each in scores]
    lines += [""] if found or facts["notes"] else []
    lines += [f"note: {note}" for note in facts["notes"]]
    lines += ["One training of each: this is about these two models, not about other seeds."] if found else []
    counts = ["unknown" if count is None else f"{count:,}" for count in facts["parameters"]]
    both = f"{counts[0]} each" if counts[0] == counts[1] else " and ".join(counts)
    lines += ["", f"parameters: {both}"]
    changed = facts["differences"]
    lines.append("options that differ:" if changed else "no option differs")
    width = max(map(len, changed), default=0)
    lines += [f"  {key:<{width}}  {_shown(one)} -> {_shown(other)}" for key, (one, other) in changed.items()]
    return lines


def _verdict(each: Resampled) -> str:
    better = "B" if each.difference > 0 else "A"
    if each.p >= ALPHA:
        return f"not significant ({p_words(each.p)})"
    return f"{better} is better ({p_words(each.p)})"


def _shown(value: Any) -> str:
    return "(not set)" if value is None else written(value)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse half a text, and two texts."""
    if arguments.input is not None and arguments.reference is None:
        raise ConfigError("--input needs --reference: the text's reference")
    if arguments.test and arguments.input is not None:
        raise ConfigError("--test names a test set of the runs, --input another text: give one of the two")
    if arguments.samples < MIN_SAMPLES:
        raise ConfigError(f"--samples {arguments.samples}: at least {MIN_SAMPLES} are needed")


def _parser() -> Parser:
    parser = Parser("compare", DESCRIPTION)
    parser.add_argument("run", nargs=2, type=Path, metavar="RUN", help="two run directories")
    parser.add_argument(
        "--test", action="append", metavar="NAME", help="a test set of both runs; may be given often"
    )
    parser.add_argument("--input", metavar="FILE", help="another text to translate, plain or .gz")
    parser.add_argument("--reference", metavar="FILE", help="its reference, or another one of the test set")
    parser.add_argument(
        "--samples", type=whole_number, default=SAMPLES, metavar="N", help=f"resamples (default: {SAMPLES})"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    return parser

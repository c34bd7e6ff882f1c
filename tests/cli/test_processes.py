"""translate.py --processes: the lines of one process, in order; and a process that is killed is an error."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from transformer.cli.command import whole_number
from transformer.cli.translate import _parser, _translator, decode_config
from transformer.cli.translate import main as translate
from transformer.decoding.answers import WorkerLost
from transformer.decoding.processes import SpreadTranslator

LINES = ["one two red", "", "small cat sees", "house", "two", "cat sees red house", " ", "one"] * 3


def translator_of(run: Path, *flags: str) -> object:
    arguments = _parser().parse_args([str(run), *flags])
    return _translator(arguments, decode_config(run, ["decode.chunk_lines=5"]))


def keeps_out(process: int, number: signal.Signals) -> bool:
    """Is a signal blocked or ignored there, as /proc has it?"""
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        pytest.skip("no /proc")
    lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
    return bool((int(lines["SigBlk"], 16) | int(lines["SigIgn"], 16)) >> (number - 1) & 1)


def test_two_processes_answer_as_one_and_a_killed_one_is_an_error(run: Path) -> None:
    alone = translator_of(run)
    assert not isinstance(alone, SpreadTranslator)
    expected, scores = list(alone.translate(LINES)), list(alone.score(LINES, LINES))
    spread = translator_of(run, "--processes", "2", "--device", "cpu")
    assert isinstance(spread, SpreadTranslator)
    for worker in spread.workers:  # also while they import
        assert keeps_out(worker.process.pid or 0, signal.SIGINT)
        assert not keeps_out(worker.process.pid or 0, signal.SIGTERM), "which ends them"
    with spread:
        assert list(spread.translate(LINES)) == expected
        assert list(spread.score(iter(LINES), LINES)) == scores
        read = []

        def endless() -> object:
            while True:
                read.append("one")
                yield "one"

        answers = spread.translate(endless())
        for _ in range(6):
            next(answers)
        assert len(read) <= 5 * (2 * 2 + 2), "memory is bounded: few chunks are read ahead"
        answers.close()
        os.kill(spread.workers[0].process.pid or 0, signal.SIGKILL)
        answered = []
        with pytest.raises(WorkerLost, match="ended by signal 9 before it had answered lines"):
            answered += spread.translate(LINES)
    assert all(not worker.process.is_alive() for worker in spread.workers)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--processes", "1", "--device", "cpu,cpu"], "fewer than the devices"),
        (["--processes", "1000"], "at most"),
    ],
)
def test_numbers_of_processes_that_make_no_sense_are_refused(
    run: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert whole_number(flags[1]) > 0
    assert translate([str(run), "--input", str(run / "config.yaml"), *flags]) == 2
    assert words in capsys.readouterr().err

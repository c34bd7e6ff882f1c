"""Pieces trained in a program of its own: the same model, and no signal has to wait for it."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sentences import sentences

from transformer.core.errors import DataError
from transformer.data import pieces
from transformer.data.programs import Program
from transformer.data.tokenizer import TokenizerConfig, train_tokenizers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[pieces._Trainer]]:
    """No text is too small for another process; those there were have ended afterwards."""
    there: list[pieces._Trainer] = []
    start = pieces._Trainer.__init__

    def noted(self: pieces._Trainer) -> None:
        start(self)
        there.append(self)

    monkeypatch.setattr(pieces, "_LARGE", 0)
    monkeypatch.setattr(pieces, "_BATCH", 7)
    monkeypatch.setattr(pieces._Trainer, "__init__", noted)
    yield there
    assert all(trainer.process.returncode is not None for trainer in there)


def config(**options: object) -> TokenizerConfig:
    return TokenizerConfig.model_validate({"vocab_size": 80, **options})


def digests(directory: Path, chosen: TokenizerConfig) -> list[str]:
    pairs = [*sentences(200), ("word " * 3000, ""), ("½ \x01</s>", " ")]
    return [t.digest for t in train_tokenizers(chosen, lambda: pairs, len(pairs), directory)]


@pytest.mark.parametrize(
    "options",
    [
        {"type": "bpe"},
        {"type": "unigram"},
        {"type": "char", "character_coverage": 0.99},
        {"joint": False, "normalization": "nfkc"},
        {"byte_fallback": True, "vocab_size": 340},
    ],
    ids=str,
)
def test_another_process_trains_the_same_model(
    tmp_path: Path, options: dict[str, object], request: pytest.FixtureRequest
) -> None:
    here = digests(tmp_path / "here", config(**options))
    there = request.getfixturevalue("started")
    assert digests(tmp_path / "there", config(**options)) == here
    assert len(there) == (1 if options.get("joint", True) else 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab_size": 5000},
        {"vocab_size": 5000, "type": "unigram"},
        {"vocab_size": 10},
        {"character_coverage": 0.9},  # found before the text is read
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_told_in_the_same_words(
    tmp_path: Path, wrong: dict[str, object], request: pytest.FixtureRequest
) -> None:
    told = []
    for _ in range(2):
        with pytest.raises(DataError) as refused:
            digests(tmp_path, config().model_copy(update=wrong))
        told.append(str(refused.value))
        there = request.getfixturevalue("started")
    assert told[0] == told[1]
    assert len(there) == 1


@pytest.mark.parametrize("when", ["send", "receive"])
def test_a_trainer_that_is_killed_is_told(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch, started: list[pieces._Trainer]
) -> None:
    before = getattr(pieces._Trainer, when)

    def killing(self: pieces._Trainer, *given: object) -> object:
        self.process.kill()
        self.process.wait()
        return before(self, *given)

    monkeypatch.setattr(pieces._Trainer, when, killing)
    with pytest.raises(DataError, match=r"trains a tokenizer has ended \(exit code -9\): .*training_lines"):
        digests(tmp_path, config())
    assert len(started) == 1


def test_an_error_of_the_text_passes_and_leaves_no_process(
    tmp_path: Path, started: list[pieces._Trainer]
) -> None:
    def broken() -> Iterator[tuple[str, str]]:
        yield from sentences(30)
        raise DataError("train.de: it changed")

    with pytest.raises(DataError, match="it changed"):
        train_tokenizers(config(), broken, 200, tmp_path)
    assert len(started) == 1


def words(count: int = 4000) -> list[str]:
    """Long words that have nothing in common: a small text, and unigram pieces take many seconds."""
    draw = random.Random(0)
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=100)) for _ in range(count)]


# Trains, and says when the text has been read; the trainer's id too, where there is one.
TRAINS = """
import signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_pieces import words
from transformer.data.tokenizer import TokenizerConfig, train_tokenizers
signal.signal(signal.SIGTERM, signal.default_int_handler)
text = words()
def pairs():
    yield from zip(text, text)
    print("read", flush=True)
from transformer.data import pieces
from transformer.data.programs import Program
pieces._LARGE, start = 100_000, pieces._Trainer.__init__
def told(self):
    start(self)
    print(self.process.pid, flush=True)
pieces._Trainer.__init__ = told
try:
    train_tokenizers(TokenizerConfig(type="unigram", vocab_size=2000), pairs, len(text), Path(sys.argv[2]))
except KeyboardInterrupt:
    sys.exit(130)
"""


@contextmanager
def training(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that trains, and the id of the one that does it for it, just when the text is read."""
    with subprocess.Popen(
        [sys.executable, "-c", TRAINS, str(Path(__file__).parent), str(folder / "pieces")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as master:
        try:
            assert master.stdout is not None
            pid = int(master.stdout.readline())
            assert master.stdout.readline() == "read\n"
            yield master, pid
        finally:
            master.kill()


def is_there(pid: int) -> bool:
    """Does it run? Who has ended and whom nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends_within(seconds: float, pid: int) -> bool:
    last = time.monotonic() + seconds
    while is_there(pid):
        if time.monotonic() > last:
            return False
        time.sleep(0.02)
    return True


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@linux
def test_a_signal_ends_a_training_at_once(tmp_path: Path) -> None:
    with training(tmp_path) as (master, pid):
        time.sleep(0.5)
        assert is_there(pid)  # it computes
        master.send_signal(signal.SIGTERM)
        assert master.wait(5) == 130  # a fraction of a second, on a machine that has nothing else to do
        assert not is_there(pid)
    assert not (tmp_path / "pieces").exists()


@linux
@pytest.mark.parametrize("computed", [0, 0.5], ids="after {} s".format)
def test_a_trainer_ends_when_its_master_is_killed(tmp_path: Path, computed: float) -> None:
    with training(tmp_path) as (master, pid):
        time.sleep(computed)
        assert is_there(pid)
        master.kill()
        assert ends_within(5, pid)


@linux
def test_a_trainer_ends_when_its_master_was_gone_before_it_began() -> None:
    trainer = pieces._Trainer()
    trainer.send(("text", pieces.PieceOptions("unigram", 2000, 1.0, False, nfkc=False)))
    trainer.send(words())
    trainer.send([])
    trainer._to.close()
    assert trainer.process.wait(8) in (1, -signal.SIGIO)
    trainer.close()


def test_what_lies_in_the_working_directory_is_not_imported(
    started: list[pieces._Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By none of the programs that compute for this one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # which might have it, as the empty name
    for name in ("sentencepiece", "transformer", "random", "yaml"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w')\nraise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    assert digests(tmp_path / "there", config())
    assert len(started) == 1
    worker = Program("transformer.data.workers", "encodes", "")
    worker.close(patience=30)
    assert worker.process.returncode == 0
    assert not Path("imported").exists()

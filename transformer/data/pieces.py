"""Train a SentencePiece model: here, or where the text is large in a program of its own.

No signal is heard while SentencePiece computes, and a large text takes it minutes. A process that waits for
another one hears it at once, and kills what it waited for.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection

import sentencepiece

from ..core.errors import DataError
from ..core.special import BOS, EOS, PAD, UNK
from .cleaning import clean
from .programs import Program, pipes

LOWEST_COVERAGE = 0.98  # that SentencePiece trains with
_LARGEST_REQUEST = 10_000_000  # near 2**31 SentencePiece's arithmetic overflows and training never ends
_LONGEST_SENTENCE = 4096  # bytes a training sentence may have; longer lines are cut, not left out
_TRAINING_THREADS = 4  # fixed: the order of float sums, and so the model, depends on it
_LARGE = 500_000  # characters, of 5,000 pairs or so; with fewer it takes about a second
_BATCH = 1000  # sentences that are sent at a time

# U+0001 is taken out of every text before SentencePiece sees it, so no text can spell a control piece.
_CONTROL_PIECES = {PAD: "\x01<pad>", UNK: "\x01<unk>", BOS: "\x01<s>", EOS: "\x01</s>"}


@dataclass(frozen=True)
class PieceOptions:
    """All but the text that decides which pieces there are."""

    kind: str
    size: int
    character_coverage: float
    byte_fallback: bool
    nfkc: bool


def train_pieces(lines: Iterable[str], what: str, options: PieceOptions) -> bytes:
    """The model's bytes, the same wherever they are computed.

    Raises DataError, which names the text by `what`, when there can be no such model, and when the process
    that trains a large one is killed.
    """
    sentences = _sentences(lines)
    first: list[str] = []
    characters = 0
    for sentence in sentences:
        first.append(sentence)
        characters += len(sentence)
        if characters > _LARGE:
            return _train_elsewhere(chain(first, sentences), what, options)
    return _train(iter(first), what, options)


def _sentences(lines: Iterable[str]) -> Iterator[str]:
    """Cleaned lines; a line that SentencePiece would skip for its length comes in parts."""
    limit = _LONGEST_SENTENCE // 4  # characters, of at most four bytes
    for line in lines:
        line = clean(line)
        start = 0  # a copy of the rest for each part would take time quadratic in the line
        while len(line) - start > limit:
            cut = line.rfind(" ", start, start + limit) + 1 or start + limit
            yield line[start:cut]
            start = cut
        rest = line[start:]
        if rest and not rest.isspace():
            yield rest


def _train(sentences: Iterator[str], what: str, options: PieceOptions) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type=options.kind,
            vocab_size=min(options.size, _LARGEST_REQUEST),
            character_coverage=options.character_coverage,
            byte_fallback=options.byte_fallback,
            normalization_rule_name="nmt_nfkc" if options.nfkc else "identity",
            max_sentence_length=_LONGEST_SENTENCE,
            num_threads=_TRAINING_THREADS,
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            pad_piece=_CONTROL_PIECES[PAD],
            unk_piece=_CONTROL_PIECES[UNK],
            bos_piece=_CONTROL_PIECES[BOS],
            eos_piece=_CONTROL_PIECES[EOS],
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(_explain(str(error), what, options.kind, options.size)) from None
    return model.getvalue()


def _explain(message: str, what: str, kind: str, size: int) -> str:
    """SentencePiece's complaint in the user's terms."""
    if found := re.search(r"value <= (\d+)", message):
        return (
            f"a vocabulary of {size:,} {kind} pieces is larger than the text of {what} allows: at most "
            f"{int(found[1]):,}; set data.tokenizer.vocab_size to that or, better, well below it"
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"a vocabulary of {size:,} {kind} pieces is too small for {what}: its characters alone need "
            f"{int(found[1]):,}; raise data.tokenizer.vocab_size or lower data.tokenizer.character_coverage"
            f" (to {LOWEST_COVERAGE} at least)"
        )
    if "sentences_.empty()" in message:
        return f"no tokenizer can be trained: {what} of the training data has blank lines only"
    return f"SentencePiece cannot train on {what} ({kind}, {size:,} pieces): {message}"


class _Trainer(Program):
    def __init__(self) -> None:
        super().__init__(
            __name__, "trains a tokenizer", "Lower data.tokenizer.training_lines if memory is short"
        )

    def close(self, patience: float = 0) -> None:
        """It has done all it was to do, or nobody wants it any more."""
        super().close(patience)


def _train_elsewhere(sentences: Iterator[str], what: str, options: PieceOptions) -> bytes:
    with closing(_Trainer()) as trainer:
        trainer.send((what, options))
        for batch in iter(lambda: list(islice(sentences, _BATCH)), []):
            trainer.send(batch)
        trainer.send([])
        model: bytes | str = trainer.receive()
    if isinstance(model, str):
        raise DataError(model)
    return model


def serve() -> None:
    """Options and then sentences come in; the model goes out, or why there is none."""
    source, sink = pipes()
    try:
        what, options = source.recv()
        sentences = _received(source)
        try:
            answer: bytes | str = _train(sentences, what, options)
        except DataError as error:
            deque(sentences, maxlen=0)  # the master is still sending where the options alone are wrong
            answer = str(error)
        sink.send(answer)
    except (EOFError, BrokenPipeError):
        return  # the master is gone


def _received(source: Connection) -> Iterator[str]:
    """The master's sentences; after the last one this process does not outlive the master."""
    try:
        yield from chain.from_iterable(iter(source.recv, []))
        _end_with_the_input()
        if source.poll():  # it ended before that
            raise EOFError
    except EOFError:
        os._exit(1)  # not through SentencePiece


def _end_with_the_input() -> None:
    """When the input's other end is closed the kernel sends SIGIO, which ends a process in native code too.

    On Linux; elsewhere the signal may be ignored, and the process ends when it has trained.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)

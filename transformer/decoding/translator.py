"""Text to text: lines are encoded, batched by length, searched, decoded and put back in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol, TypeAlias

import torch

from ..core.errors import CheckpointError, ConfigError, DataError, Problem
from ..model.transformer import Transformer
from .config import DecodeConfig
from .engine import Engine, Models, Request
from .forked import ForkedModels
from .hypothesis import Hypothesis
from .limits import Limits
from .memory import refuse_too_much
from .penalties import LENGTH_PENALTIES
from .ranking import NOT_NUMBERS
from .translation import Score, Status, TextHypothesis, Translation

Chunk: TypeAlias = list[tuple[int, str, str]]  # (number, line, what its target begins with or is)

# No subword is longer on average; what lies beyond is cut off before the tokenizer spends time on it.
_CHARACTERS_PER_SUBWORD = 32
# Lines are read ahead up to so many characters, however many lines `chunk_lines` allows.
_CHUNK_CHARACTERS = 4_000_000
# A short source still has a target, and R rows of logits: it counts as so many subwords in a batch.
_SMALLEST_COST = 16


class Subwords(Protocol):
    """What a translator asks of a tokenizer."""

    @property
    def size(self) -> int: ...
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def pieces(self, ids: Sequence[int]) -> list[str]: ...


@dataclass(frozen=True)
class _Line:
    number: int
    text: str
    source: list[int]  # without EOS
    status: Status
    prefix: tuple[int, ...] = ()


class LineTranslator:
    """Translate lines with an engine.

    N lines in give N translations out, in order. Lines are read in chunks, so that input of any length needs
    bounded memory. The engine decides how many positions there are, on either side.
    """

    def __init__(
        self, engine: Engine, source_tokenizer: Subwords, target_tokenizer: Subwords, config: DecodeConfig
    ) -> None:
        self.engine, self.config = engine, config
        self.source_tokenizer, self.target_tokenizer = source_tokenizer, target_tokenizer
        # EOS closes the source, BOS opens the target: each takes one position.
        self.max_source = min(config.max_source_length, engine.positions - 1)
        self.max_target = min(config.max_length, engine.positions - 1)
        if config.min_length > self.max_target:
            message = f"{config.min_length} is more than the model's {self.max_target} target positions"
            raise ConfigError([Problem("decode.min_length", message)])

    def translate(self, lines: Iterable[str], prefixes: Iterable[str] | None = None) -> Iterator[Translation]:
        """Yield one Translation per line, in order, as chunks are done.

        A blank line is answered with a blank one, without asking the model. `prefixes` gives each line a text
        that its translation begins with ("" for none): the subwords the tokenizer cuts it into are forced, so
        what follows may still lengthen its last word. Its log-probability counts.

        Raises DataError when there are more lines than prefixes or the reverse, or a prefix is too long;
        CheckpointError when the model's output is not a number.
        """
        for chunk in chunks(paired(lines, prefixes), self.config.chunk_lines):
            yield from self.translate_chunk(chunk)

    def score(self, sources: Iterable[str], targets: Iterable[str]) -> Iterator[Score]:
        """Yield log p(target | source) of each pair, in order; the target's EOS counts.

        A long source is cut as in translation; a blank source or target is scored as it stands.
        Raises DataError when the two are not equally many, or a target is longer than `max_length`;
        CheckpointError when the model's output is not a number.
        """
        pairs = paired(sources, targets, "sources", "targets")
        for chunk in chunks(pairs, self.config.chunk_lines):
            yield from self.score_chunk(chunk)

    def translate_chunk(self, chunk: Chunk) -> list[Translation]:
        """A Translation of each line; of all chunks, one after the other, those of `translate`."""
        lines = self._encode(chunk)
        asked = [line for line in lines if line.status != "blank"]
        found: dict[int, list[Hypothesis]] = {}
        with self.engine.working():
            batches = [
                [Request(line.number, line.source, self._limits(line)) for line in batch]
                for batch in self._batches(asked, lambda line: len(line.source))
            ]
            for batch, each in zip(batches, self.engine.search_all(batches, self.config), strict=True):
                found.update(zip((request.number for request in batch), each, strict=True))
        return [self._translation(line, found.get(line.number, [])) for line in lines]

    def score_chunk(self, chunk: Chunk) -> list[Score]:
        """A Score of each pair; of all chunks, one after the other, those of `score`."""
        lines = self._encode(chunk)
        penalty = LENGTH_PENALTIES[str(self.config.length_penalty)]
        scores: dict[int, Score] = {}
        with self.engine.working():
            for batch in self._batches(lines, lambda line: max(len(line.source), len(line.prefix))):
                log_probs = self.engine.token_log_probs([(line.source, line.prefix) for line in batch])
                for line, each in zip(batch, log_probs, strict=True):
                    total = sum(each)
                    if math.isnan(total):
                        raise CheckpointError(NOT_NUMBERS)
                    scores[line.number] = Score(
                        number=line.number,
                        source=line.text,
                        target=chunk[line.number - chunk[0][0]][2],
                        score=total / penalty(len(each), self.config.alpha),
                        log_probability=total,
                        tokens=tuple(self.target_tokenizer.pieces(line.prefix)),
                        token_log_probabilities=tuple(each),
                        status=line.status,
                        source_tokens=len(line.source),
                    )
        return [scores[line.number] for line in lines]

    def _encode(self, chunk: Chunk) -> list[_Line]:
        """Subwords of each line, cut to what the model takes, and of what its target begins with."""
        cut = self.max_source * _CHARACTERS_PER_SUBWORD
        stripped = [text.strip() for _, text, _ in chunk]
        sources = self.source_tokenizer.encode_batch([_encodable(text[:cut]) for text in stripped])
        prefixes = self._encode_targets([(number, prefix) for number, _, prefix in chunk])
        lines = []
        for (number, text, _), line, source, prefix in zip(chunk, stripped, sources, prefixes, strict=True):
            long = len(source) > self.max_source or len(line) > cut
            status: Status = "blank" if not source else "truncated" if long else "ok"
            lines.append(_Line(number, text, source[: self.max_source], status, tuple(prefix)))
        return lines

    def _encode_targets(self, targets: list[tuple[int, str]]) -> list[list[int]]:
        cut = self.max_target * _CHARACTERS_PER_SUBWORD
        encoded = self.target_tokenizer.encode_batch([_encodable(text[: cut + 1]) for _, text in targets])
        for (number, text), ids in zip(targets, encoded, strict=True):
            if len(ids) > self.max_target or len(text) > cut:
                raise DataError(
                    f"line {number + 1}: the given target is longer than {self.max_target} subwords;"
                    " shorten it, or raise decode.max_length if the model's positions allow it"
                )
        return encoded

    def _limits(self, line: _Line) -> Limits:
        longest = min(max(self.config.longest(len(line.source)), self.config.min_length), self.max_target)
        return Limits(longest, self.config.min_length, line.prefix)

    def _translation(self, line: _Line, hypotheses: list[Hypothesis]) -> Translation:
        status: Status = "failed" if not hypotheses and line.status != "blank" else line.status
        texts = tuple(
            TextHypothesis(
                text=_one_line(self.target_tokenizer.decode(list(h.tokens))),
                score=h.score,
                log_probability=h.log_probability,
                tokens=tuple(self.target_tokenizer.pieces(list(h.tokens))),
            )
            for h in hypotheses
        )
        return Translation(line.number, line.text, texts, status, len(line.source))

    def _batches(self, lines: list[_Line], length: Callable[[_Line], int]) -> Iterator[list[_Line]]:
        """Lines of like length together, longest first; padded subwords x rows within the budget."""
        budget = max(1, self.config.batch_tokens // self.config.rows_per_line)
        batch: list[_Line] = []
        cost = 0
        for line in sorted(lines, key=length, reverse=True):
            cost = cost or max(length(line) + 1, _SMALLEST_COST)  # of the longest, which comes first
            if batch and (len(batch) + 1) * cost > budget:
                yield batch
                batch, cost = [], max(length(line) + 1, _SMALLEST_COST)
            batch.append(line)
        if batch:
            yield batch


class Translator(LineTranslator):
    """Translate lines with one model, or with several whose probabilities are averaged.

    The models are put into evaluation mode while they work and back after each chunk.
    Raises CheckpointError when models and tokenizers disagree about vocabulary sizes.
    """

    def __init__(
        self,
        models: Sequence[Transformer],
        source_tokenizer: Subwords,
        target_tokenizer: Subwords,
        config: DecodeConfig | None = None,
        device: torch.device | str | None = None,
        *,
        fork: bool = False,
    ) -> None:
        """`fork`: on a CPU, batches are shared among processes, not threads (see `ForkedModels`)."""
        assert models
        config = DecodeConfig() if config is None else config
        for i, model in enumerate(models):
            _check_size(i, "source", model.source_vocab, source_tokenizer.size)
            _check_size(i, "target", model.target_vocab, target_tokenizer.size)
        engine = (ForkedModels if fork else Models)(models, config.precision, device)
        super().__init__(engine, source_tokenizer, target_tokenizer, config)
        refuse_too_much(models, config, self.max_source, self.max_target, engine.device)


def _check_size(index: int, side: str, model: int, tokenizer: int) -> None:
    if model != tokenizer:
        raise CheckpointError(
            f"model {index + 1} has a {side} vocabulary of {model} entries, the {side} tokenizer one of"
            f" {tokenizer}; they are not of one run"
        )


def paired(
    lines: Iterable[str], partners: Iterable[str] | None, left: str = "lines", right: str = "prefixes"
) -> Iterator[tuple[int, str, str]]:
    """(number, line, partner); raises DataError, when it gets there, if one side ends before the other."""
    if partners is None:
        yield from ((number, line, "") for number, line in enumerate(lines))
        return
    for number, (line, partner) in enumerate(zip_longest(lines, partners)):
        if line is None or partner is None:
            short, more = (left, right) if line is None else (right, left)
            raise DataError(f"there are {number} {short}, and more {more}: they have to be equally many")
        yield number, line, partner


def chunks(lines: Iterable[tuple[int, str, str]], size: int) -> Iterator[Chunk]:
    """At most `size` lines at a time, and fewer where lines are huge."""
    chunk: Chunk = []
    characters = 0
    for line in lines:
        chunk.append(line)
        characters += len(line[1]) + len(line[2])
        if len(chunk) == size or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _encodable(text: str) -> str:
    """Lone surrogates, which Python can hold and UTF-8 cannot, become U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _one_line(text: str) -> str:
    """A translation takes one line of output, even where a vocabulary of bytes spells a line feed.

    A carriage return at the end would be taken for a part of the line's end.
    """
    return text.replace("\n", " ").rstrip("\r")

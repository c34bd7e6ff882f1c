"""SentencePiece models: trained on training text only, deterministic, never taking text for a control id.

Normalisation `plain` (the default) leaves every visible character alone, so that output can be scored against
the untouched reference: control characters vanish, odd white space (tab, no-break space, U+2028, ...)
becomes a space, runs of spaces become one. `nfkc` adds Unicode compatibility normalisation by SentencePiece's
`nmt_nfkc` rules, which rewrites text (`½` becomes `1⁄2`): scores against raw references then suffer.

Papers: SentencePiece, Kudo and Richardson 2018; BPE, Sennrich et al. 2016; unigram model and subword
sampling, Kudo 2018; BPE-dropout, Provilkov et al. 2020.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Annotated, Literal

import sentencepiece
from pydantic import Field

from ..core.configuration import Count, Float, Int, NonNegative, Section, Text
from ..core.disk import content, replace
from ..core.errors import DataError, Problem
from ..core.special import BOS, EOS, PAD, UNK
from .cleaning import clean
from .pieces import LOWEST_COVERAGE, PieceOptions, train_pieces
from .segmentation import BPEDropout, Segmenter, UnigramSampling

JOINT, SOURCE, TARGET = "joint.model", "source.model", "target.model"

_WORD = re.compile("▁[^▁]*")
_LONGEST_WORD = 64  # characters; drawing takes time quadratic in this

PieceCount = Annotated[Int, Field(ge=5)]  # the control pieces and one more


class TokenizerConfig(Section):
    """How text becomes subwords."""

    type: Literal["bpe", "unigram", "char"] = Field(default="bpe", description="kind of SentencePiece model")
    joint: bool = Field(default=True, description="one model for both languages, trained on both sides")
    vocab_size: PieceCount = Field(
        default=8000, description="pieces in a vocabulary, the four control pieces included"
    )
    source_vocab_size: PieceCount | None = Field(
        default=None, description="another size for the source (separate models only; default: `vocab_size`)"
    )
    target_vocab_size: PieceCount | None = Field(
        default=None, description="another size for the target (separate models only; default: `vocab_size`)"
    )
    character_coverage: Float = Field(
        default=1.0,
        ge=LOWEST_COVERAGE,
        le=1.0,
        description="share of the text's characters that get a piece; the rest are unknown",
    )
    byte_fallback: bool = Field(
        default=False, description="spell unknown characters in bytes (adds 256 pieces)"
    )
    normalization: Literal["plain", "nfkc"] = Field(
        default="plain",
        description="plain: only white space and control characters change; nfkc: Unicode NFKC too",
    )
    sampling: NonNegative = Field(
        default=0.0,
        description="subword sampling in training: dropout of merges (bpe, 0.1 is usual) or smoothing "
        "(unigram, 0.1 to 0.5 is usual); 0 = off",
    )
    sampling_side: Literal["both", "source", "target"] = Field(
        default="both", description="which side is sampled"
    )
    training_lines: Count = Field(
        default=1_000_000, description="lines, evenly spread, that the model is trained on"
    )
    path: Text | None = Field(
        default=None,
        description="use the models in this directory (of a run, say) instead of training new ones",
    )

    def conflicts(self) -> Iterator[Problem]:
        for name in ("source_vocab_size", "target_vocab_size"):
            if self.joint and getattr(self, name) is not None:
                yield Problem(name, "one model for both sides has one size", hint="set joint: false")
        sizes = (self.vocab_size, self.source_vocab_size, self.target_vocab_size)
        if self.byte_fallback and self.path is None and min(filter(None, sizes)) <= 4 + 256:
            yield Problem("byte_fallback", "4 control pieces and 256 bytes leave no room: raise vocab_size")
        if self.sampling and self.type == "char":
            yield Problem("sampling", "a character model has one segmentation only: it must be 0")
        if self.type == "bpe" and self.sampling >= 1:
            yield Problem("sampling", f"{self.sampling:g} is a dropout rate with bpe: it must be below 1")

    def training_options(self) -> dict[str, object]:
        """The options that decide what is trained, and so what a cache or a run directory must agree on."""
        return self.model_dump(exclude={"sampling", "sampling_side", "path"})


class Tokenizer:
    """One SentencePiece model. Ids 0 to 3 are PAD, UNK, BOS, EOS, and only UNK ever comes out of text."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.digest = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        self.size: int = self._processor.GetPieceSize()

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Raises DataError naming the file when it is missing, broken, or has other control ids."""
        try:
            tokenizer = cls(content(Path(path)))
            _ = tokenizer.vocabulary  # pieces that are not UTF-8 would be found out by a translation
        except OSError as error:
            raise DataError(f"{path}: cannot read the tokenizer: {error.strerror or error}") from None
        except (RuntimeError, ValueError):
            raise DataError(f"{path}: not a SentencePiece model, or cut short") from None
        p = tokenizer._processor
        if (p.pad_id(), p.unk_id(), p.bos_id(), p.eos_id()) != (PAD, UNK, BOS, EOS):
            raise DataError(
                f"{path}: its control ids are not pad={PAD}, unk={UNK}, bos={BOS}, eos={EOS}; "
                "train it with this toolkit"
            )
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of a line, without BOS and EOS. A blank line has none."""
        ids: list[int] = self._processor.encode(clean(text))
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = -1) -> list[list[int]]:
        """Ids of lines; by so many threads, -1 = one for each CPU."""
        ids: list[list[int]] = self._processor.encode([clean(text) for text in texts], num_threads=threads)
        return ids

    def sample(self, text: str, alpha: float, seed: int) -> list[int]:
        """Draw a segmentation: a function of (text, alpha, seed) in every thread, process and release.

        `alpha` is the dropout rate of a BPE model, or the exponent of a unigram model's probabilities.
        A word with unknown characters, or a monster, keeps its plain segmentation.
        """
        generator = Random(seed)
        ids: list[int] = []
        for word in _WORD.findall(self._processor.Normalize(clean(text))):
            if len(word) <= _LONGEST_WORD and self._segmenter.knows(word):
                ids += self._segmenter.draw(word, alpha, generator)
            else:
                ids += self._processor.encode(word[1:])
        return ids

    @cached_property
    def _segmenter(self) -> Segmenter:
        p = self._processor
        text_ids = [i for i in range(EOS + 1, self.size) if not p.IsByte(i)]
        # The scores of a BPE model are its merges' ranks 0, -1, -2, ...; else they are log-probabilities.
        is_bpe = [p.GetScore(i) for i in text_ids[:3]] == [0.0, -1.0, -2.0]
        pieces = {p.IdToPiece(i): (i, p.GetScore(i)) for i in text_ids}
        return BPEDropout(pieces) if is_bpe else UnigramSampling(pieces)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: the inverse of `encode` up to `clean` and runs of spaces. Ids 0 to 3 are left out."""
        text: str = self._processor.decode([int(i) for i in ids if i > EOS])
        return text

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces of ids, `▁` for a space; control ids read `<pad>`, `<unk>`, `<s>`, `</s>`."""
        return [self._processor.IdToPiece(int(i)).removeprefix("\x01") for i in ids]

    @property
    def vocabulary(self) -> list[str]:
        """All pieces by id, no two alike: the control ids' begin with U+0001, which no text can spell."""
        return [self._processor.IdToPiece(i) for i in range(self.size)]

    def knows(self, character: str) -> bool:
        """Has this character a piece of its own (or bytes to spell it)?"""
        return UNK not in self.encode(character)

    def save(self, path: Path) -> None:
        """Write the model file whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(self.model)
        replace(temporary, path)


def load_tokenizers(directory: str | Path) -> tuple[Tokenizer, Tokenizer]:
    """Source and target tokenizer of a directory, or of a run; the same object twice when they are joint."""
    directory = Path(directory)
    if (directory / "tokenizer").is_dir():
        directory /= "tokenizer"
    if (directory / JOINT).exists():
        joint = Tokenizer.load(directory / JOINT)
        return joint, joint
    missing = [name for name in (SOURCE, TARGET) if not (directory / name).exists()]
    if missing:
        raise DataError(f"{directory}: no tokenizer here: neither {JOINT} nor {' and '.join(missing)}")
    return Tokenizer.load(directory / SOURCE), Tokenizer.load(directory / TARGET)


def train_tokenizers(
    config: TokenizerConfig, pairs: Callable[[], Iterable[tuple[str, str]]], count: int, directory: Path
) -> tuple[Tokenizer, Tokenizer]:
    """Train on `pairs()` (`count` of them; read once, or twice for separate models), save, return both.

    A function of the text and the configuration alone. Raises DataError when the vocabulary cannot
    have the size asked for, with the size it can have.
    """
    if config.joint:
        lines = (
            side for pair in _spread(pairs(), count, max(1, config.training_lines // 2)) for side in pair
        )
        tokenizers = [Tokenizer(_train(lines, "the two sides", config.type, config.vocab_size, config))]
        names = [JOINT]
    else:
        sizes = config.source_vocab_size or config.vocab_size, config.target_vocab_size or config.vocab_size
        tokenizers, names = [], [SOURCE, TARGET]
        for side, (name, size) in enumerate(zip(("the source side", "the target side"), sizes, strict=True)):
            lines = (pair[side] for pair in _spread(pairs(), count, config.training_lines))
            tokenizers.append(Tokenizer(_train(lines, name, config.type, size, config)))
    directory.mkdir(parents=True, exist_ok=True)
    for name, tokenizer in zip(names, tokenizers, strict=True):
        tokenizer.save(directory / name)
    return tokenizers[0], tokenizers[-1]


def _spread(pairs: Iterable[tuple[str, str]], count: int, wanted: int) -> Iterator[tuple[str, str]]:
    """Every pair, or `wanted` of the `count` at even distances."""
    for index, pair in enumerate(pairs):
        if count <= wanted or index * wanted // count != (index - 1) * wanted // count:
            yield pair


def _train(lines: Iterator[str], what: str, kind: str, size: int, config: TokenizerConfig) -> bytes:
    options = PieceOptions(
        kind, size, config.character_coverage, config.byte_fallback, nfkc=config.normalization == "nfkc"
    )
    return train_pieces(lines, what, options)

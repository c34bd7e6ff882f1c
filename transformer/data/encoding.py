"""Encode and filter a split into memory-mapped arrays, and say what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ..core.errors import DataError
from ..core.special import UNK
from . import report as why
from .cache import fetch, key_of
from .config import DataConfig
from .corpus import Pair
from .encoded import CorpusWriter, EncodedCorpus, is_sound, report_of
from .report import SplitReport
from .splits import SplitText
from .tokenizer import Tokenizer

_CHUNK = 10_000  # pairs in memory at a time
_CHUNK_CHARACTERS = 1 << 25  # the same, where they are huge
# No subword is longer on average. What lies beyond `max_length` of them is not looked at: it would take
# SentencePiece a hundred bytes a character to tell that the pair is too long.
_CHARACTERS_PER_SUBWORD = 32
_FORMAT = 1  # raise it when the same options come to mean other arrays

Log = Callable[[str], None]


def encoded_split(
    config: DataConfig,
    text: SplitText,
    tokenizers: tuple[Tokenizer, Tokenizer],
    cache: Path,
    *,
    texts: bool,
    drops: bool,
    log: Log,
) -> tuple[EncodedCorpus, SplitReport]:
    def make(folder: Path) -> None:
        log(f"encoding {text.count:,} pairs of {text.split}")
        _encode(config, text, tokenizers, folder, texts=texts, drops=drops)

    key = key_of(
        kind="encoded",
        format=_FORMAT,
        text=text.digest,
        prefixes=text.prefixes,
        languages=(config.source, config.target),
        tokenizers=[tokenizer.digest for tokenizer in tokenizers],
        max_length=config.max_length,
        max_ratio=config.max_ratio,
        drop_copies=config.drop_copies,
        texts=texts,
        drops=drops,
    )
    entry, made = fetch(cache / "encoded", key, make, is_sound)
    if not made:
        log(f"{text.split}: encoded text from the cache ({entry})")
    # Other bytes can hold the same text, so what was odd about them is not the entry's to say.
    return EncodedCorpus.open(entry), replace(report_of(entry), oddities=text.oddities)


def _encode(
    config: DataConfig,
    text: SplitText,
    tokenizers: tuple[Tokenizer, Tokenizer],
    folder: Path,
    *,
    texts: bool,
    drops: bool,
) -> None:
    report = SplitReport(text.split, drops=drops)
    limit = config.max_length - 1
    most = longest_text(config)
    with CorpusWriter(folder, (tokenizers[0].size, tokenizers[1].size), texts) as writer:
        for chunk in _chunks(text.located(), _CHUNK):
            sources = tokenizers[0].encode_batch([pair.source[:most] for _, pair in chunk])
            targets = tokenizers[1].encode_batch([pair.target[:most] for _, pair in chunk])
            keep = []
            for row, (prefix, pair) in enumerate(chunk):
                reason = _reason(config, pair, len(sources[row]), len(targets[row]))
                if reason:
                    shown = pair.target if reason == why.EMPTY_SOURCE else pair.source
                    report.add(reason, f"{prefix}, line {pair.line}", shown)
                if not (reason and drops):
                    keep.append(row)
            kept = [sources[row][:limit] for row in keep], [targets[row][:limit] for row in keep]
            writer.add(kept, ([chunk[row][1].source for row in keep], [chunk[row][1].target for row in keep]))
            report.read += len(chunk)
            report.kept += len(keep)
            report.source_tokens += sum(len(ids) for ids in kept[0])
            report.target_tokens += sum(len(ids) for ids in kept[1])
            report.source_unknown += sum(ids.count(UNK) for ids in kept[0])
            report.target_unknown += sum(ids.count(UNK) for ids in kept[1])
        writer.close(report)


def _reason(config: DataConfig, pair: Pair, source: int, target: int) -> str | None:
    """Why a pair is no good for training, or None. Lengths are in tokens without the end mark."""
    if not source or not target:
        return why.EMPTY_BOTH if source == target else why.EMPTY_TARGET if source else why.EMPTY_SOURCE
    if max(source, target) + 1 > config.max_length or max(map(len, pair[1:])) > longest_text(config):
        return why.TOO_LONG
    longer, shorter = max(source, target) + 1, min(source, target) + 1
    if config.max_ratio is not None and longer > config.max_ratio * shorter:
        return why.RATIO
    if config.drop_copies and pair.source.strip() == pair.target.strip():
        return why.COPY
    return None


def longest_text(config: DataConfig) -> int:
    """Characters of a side that are looked at; with more it is too long."""
    return config.max_length * _CHARACTERS_PER_SUBWORD


def _chunks(items: Iterable[tuple[str, Pair]], size: int) -> Iterator[list[tuple[str, Pair]]]:
    chunk: list[tuple[str, Pair]] = []
    characters = 0
    for item in items:
        chunk.append(item)
        characters += len(item[1].source) + len(item[1].target)
        if len(chunk) == size or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def check_unknown(
    config: DataConfig, report: SplitReport, text: SplitText, tokenizers: tuple[Tokenizer, Tokenizer]
) -> None:
    """Raise DataError when a side of the training text is largely unknown to its tokenizer."""
    for number, (side, language) in enumerate((("source", config.source), ("target", config.target))):
        share = report.unknown_share(side)
        if share <= config.max_unknown:
            continue
        seen = Counter(c for pair in islice(text.pairs(), _CHUNK) for c in pair[number] if not c.isspace())
        unknown = [c for c, _ in seen.most_common() if not tokenizers[number].knows(c)][:10]
        raise DataError(
            f"{100 * share:.3g} % of the {side} tokens ({language}) are unknown to the tokenizer, more than "
            f"data.max_unknown = {100 * config.max_unknown:.3g} %; most frequent unknown characters: "
            f"{' '.join(unknown) or 'none in the first lines'}; was the tokenizer trained for this text? "
            "If so, raise data.tokenizer.character_coverage or set data.tokenizer.byte_fallback"
        )

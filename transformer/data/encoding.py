"""Encode and filter a split into flat files, and say what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ..core.cpus import usable_cpus
from ..core.errors import DataError
from .cache import ENCODED, fetch, key_of
from .checksums import is_sound
from .chunks import Chunk, Recipe
from .config import DataConfig
from .corpus import Pair
from .encoded import EncodedCorpus, report_of
from .meter import Meter
from .report import SplitReport
from .splits import SplitText
from .tokenizer import Tokenizer
from .workers import encode_all
from .writing import CorpusWriter

_CHUNK = 10_000  # pairs that a process has in memory at a time
_CHUNK_CHARACTERS = 1 << 25  # the same, where they are huge
_WORTHWHILE = 200_000  # pairs from which on it pays to start processes
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
        _encode(config, text, tokenizers, folder, texts=texts, drops=drops, log=log)

    def sound(folder: Path) -> bool:
        return is_sound(folder) and report_of(folder).read == text.count

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
    entry, made = fetch(cache / ENCODED, key, make, sound, log, resumable=True)
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
    log: Log,
) -> None:
    """Fill `folder`, or go on with what a process that was killed has left there."""
    source, target = tokenizers
    recipe = recipe_of(config, text, tokenizers, texts=texts, drops=drops)
    empty = SplitReport(text.split, drops=drops)
    with CorpusWriter(folder, (source.size, target.size), texts, empty) as writer:
        done = writer.report.read
        begun = f", {done:,} of them done before" if done else ""
        workers = usable_cpus() if text.count - done >= _WORTHWHILE else 1
        by = f" in {workers} processes" if workers > 1 else ""
        log(f"encoding {text.count:,} pairs of {text.split}{begun}{by}")
        with Meter(f"encoding {text.split}", text.count, "pairs", log, done=done) as meter:
            chunks = in_chunks(text, done)
            for part in encode_all(recipe, chunks, workers):
                writer.add(part.flats, part.report)
                meter.add(part.report.read)
        writer.close()


def recipe_of(
    config: DataConfig, text: SplitText, tokenizers: tuple[Tokenizer, Tokenizer], *, texts: bool, drops: bool
) -> Recipe:
    """What becomes of each pair of a split."""
    source, target = tokenizers
    return Recipe(
        split=text.split,
        models=(source.model, target.model),
        max_length=config.max_length,
        max_ratio=config.max_ratio,
        drop_copies=config.drop_copies,
        texts=texts,
        drops=drops,
    )


def in_chunks(text: SplitText, done: int = 0) -> Iterator[Chunk]:
    """The pairs of a split, those after the first `done`, as many at a time as a process takes.

    All that is given was scanned, if the text was: what comes of it may be kept. Raises Changed.
    """
    with text.unchanged():
        for chunk in _chunks(islice(text.located(), done, None), _CHUNK):
            text.require_unchanged()
            yield chunk


def _chunks(items: Iterable[tuple[str, Pair]], size: int) -> Iterator[Chunk]:
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

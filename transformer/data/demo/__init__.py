"""The embedded demo corpus: English-German sentence pairs written by a small grammar.

Held out is not a sentence but a *combination*: who does what to what (`woman|buy|apple`), which noun costs
how much, which clock time. Every combination belongs to one split by its hash, and a training sentence holds
training combinations only, so a held-out sentence says something no training sentence ever said.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Literal

from ...core.errors import DataError
from ...core.registry import unknown
from ...core.seeding import derive_seed
from .example import Example
from .sentences import Writer

__all__ = ["SIZES", "Example", "demo_examples", "demo_pairs"]

Split = Literal["train", "valid", "test"]
SIZES: dict[str, int] = {"train": 24_000, "valid": 500, "test": 500}

_SEED = derive_seed("demo corpus", 1)
_HELD_OUT_PERCENT = 4  # of the combinations, for each of valid and test
_NO_PUNCTUATION = str.maketrans("", "", ".,?!")


@cache
def _split_of(combination: str) -> str:
    share = derive_seed("demo split", combination) % 100
    if share < _HELD_OUT_PERCENT:
        return "test"
    return "valid" if share < 2 * _HELD_OUT_PERCENT else "train"


def _words(*examples: Example) -> set[str]:
    text = " ".join(f"{example.english} {example.german}" for example in examples)
    return set(text.lower().translate(_NO_PUNCTUATION).split())


@lru_cache(maxsize=1)
def _corpus() -> dict[str, tuple[Example, ...]]:
    """Draw until every split is full; keep those held-out sentences whose words were all trained on."""
    writer = Writer(_SEED)
    meanings: dict[str, str] = {}
    drawn: dict[str, list[Example]] = {split: [] for split in SIZES}
    wanted = {"train": SIZES["train"], "valid": 2 * SIZES["valid"], "test": 2 * SIZES["test"]}
    while any(len(drawn[split]) < wanted[split] for split in wanted):
        example = writer.example()
        if example.english in meanings:
            assert meanings[example.english] == example.german, f"two translations of {example.english!r}"
            continue
        meanings[example.english] = example.german
        splits = {_split_of(combination) for combination in example.combinations}
        held_out = splits - {"train"}
        split = held_out.pop() if len(held_out) == 1 else "" if held_out else "train"
        if split and len(drawn[split]) < wanted[split]:
            drawn[split].append(example)
    known = _words(*drawn["train"])
    corpus = {"train": tuple(drawn["train"])}
    for split in ("valid", "test"):
        kept = [example for example in drawn[split] if _words(example) <= known]
        assert len(kept) >= SIZES[split], split
        corpus[split] = tuple(kept[: SIZES[split]])
    return corpus


def demo_examples(split: Split) -> tuple[Example, ...]:
    """The sentence pairs of a split with the combinations they are made of. DataError for another name."""
    if split not in SIZES:
        raise DataError(f"demo corpus: {unknown('split', split, SIZES)}")
    return _corpus()[split]


def demo_pairs(split: Split) -> list[tuple[str, str]]:
    """(English, German) sentence pairs of `train`, `valid` or `test`. Raises DataError for another name."""
    return [(example.english, example.german) for example in demo_examples(split)]

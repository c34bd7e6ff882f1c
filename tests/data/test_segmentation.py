"""Sampled subwords: the right distribution, the plain segmentation as a limit, the same in every process."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from sentences import sentences

from transformer.core.special import UNK
from transformer.data.segmentation import BPEDropout, UnigramSampling
from transformer.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizers

PIECES = {
    "a": (4, -2.0),
    "b": (5, -2.5),
    "ab": (6, -1.5),
    "ba": (7, -3.0),
    "aba": (8, -3.5),
    "bab": (9, -4.0),
}


def train(directory: Path, kind: str) -> Tokenizer:
    config = TokenizerConfig.model_validate({"type": kind, "vocab_size": 80})
    pairs = sentences(200)
    return train_tokenizers(config, lambda: pairs, len(pairs), directory)[0]


def segmentations(word: str) -> Iterator[list[str]]:
    if not word:
        yield []
    for end in range(1, len(word) + 1):
        if word[:end] in PIECES:
            yield from ([word[:end], *rest] for rest in segmentations(word[end:]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_unigram_sampling_draws_by_the_products_of_probabilities(alpha: float) -> None:
    word, draws = "ababa", 20_000
    weights = {
        tuple(PIECES[piece][0] for piece in pieces): math.exp(
            alpha * sum(PIECES[piece][1] for piece in pieces)
        )
        for pieces in segmentations(word)
    }
    total = sum(weights.values())
    generator, sampler = Random(1), UnigramSampling(PIECES)
    drawn = Counter(tuple(sampler.draw(word, alpha, generator)) for _ in range(draws))
    assert set(drawn) <= set(weights)
    for ids, weight in weights.items():
        share = weight / total
        assert abs(drawn[ids] / draws - share) < 5 * math.sqrt(share * (1 - share) / draws)


def test_unigram_sampling_tends_to_the_plain_segmentation(tmp_path: Path) -> None:
    tokenizer = train(tmp_path, "unigram")
    for source, target in sentences(30, seed=3):
        assert tokenizer.sample(source, 500.0, 1) == tokenizer.encode(source)
        assert tokenizer.sample(target, 500.0, 1) == tokenizer.encode(target)


def test_bpe_without_dropout_is_the_plain_segmentation_and_with_all_of_it_characters(tmp_path: Path) -> None:
    tokenizer = train(tmp_path, "bpe")
    for source, target in sentences(50, seed=3):
        assert tokenizer.sample(source, 0.0, 1) == tokenizer.encode(source)
        assert tokenizer.sample(target, 0.0, 1) == tokenizer.encode(target)
        assert len(tokenizer.sample(source, 1.0, 1)) == len(source) + 1


def test_bpe_dropout_drops_a_single_merge_at_its_rate() -> None:
    generator, sampler = Random(1), BPEDropout({"a": (4, -1.0), "b": (5, -2.0), "ab": (6, 0.0)})
    kept = sum(sampler.draw("ab", 0.3, generator) == [6] for _ in range(10_000))
    assert abs(kept / 10_000 - 0.7) < 0.025


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_unknown_characters_and_monsters_are_sampled_as_they_are_encoded(tmp_path: Path, kind: str) -> None:
    tokenizer = train(tmp_path, kind)
    for text in ("日本 cat 語", "x" * 500, "", " ", "cat\u2028日"):
        ids = tokenizer.sample(text, 0.1, 3)
        assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode(text))
        assert ids.count(UNK) == tokenizer.encode(text).count(UNK)


def test_the_same_seed_draws_the_same_numbers_in_every_release() -> None:
    # Random(int) and random() are the two things Python promises to keep.
    assert [round(Random(5).random(), 6) for _ in range(2)] == [0.622902, 0.622902]

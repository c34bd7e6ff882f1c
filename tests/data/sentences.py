"""A made-up language pair."""

from __future__ import annotations

import random

WORDS = """
the a red green small cat dog bird house tree sees likes finds under over near with two three old
young window garden street water apple bread letter reads writes
"""


def sentences(count: int, seed: int = 0, longest: int = 14) -> list[tuple[str, str]]:
    """Pairs whose target is the source, each word spelt backwards: text enough for a subword model."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(count):
        words = draw.choices(WORDS.split(), k=draw.randint(1, longest))
        pairs.append((" ".join(words) + ".", " ".join(word[::-1] for word in words) + "."))
    return pairs

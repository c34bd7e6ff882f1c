"""Subword sampling in training: each epoch sees each pair in another segmentation.

Kudo 2018 (unigram model) and Provilkov et al. 2020 (BPE-dropout).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..core.seeding import derive_seed
from .encoded import EncodedCorpus, Ids
from .tokenizer import Tokenizer


class SubwordSampler:
    """(epoch, pair index) -> ids, a pure function given the seed, so that a resumed epoch is the same epoch.

    A drawn segmentation longer than `max_length` (end mark included) gives way to the plain one.
    """

    def __init__(
        self,
        corpus: EncodedCorpus,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        alpha: float,
        sides: Collection[str],
        max_length: int,
        seed: int,
    ) -> None:
        self._corpus = corpus
        self._tokenizers = (("source", source_tokenizer), ("target", target_tokenizer))
        self._alpha, self._sides, self._longest, self._seed = alpha, frozenset(sides), max_length - 1, seed

    def pair(self, epoch: int, index: int) -> tuple[Ids, Ids]:
        """Source and target ids of a pair in an epoch, without BOS and EOS."""
        source, target = (
            self._sampled(side, tokenizer, plain, text, epoch, index)
            for (side, tokenizer), plain, text in zip(
                self._tokenizers, self._corpus.pair(index), self._corpus.text(index), strict=True
            )
        )
        return source, target

    def _sampled(self, side: str, tokenizer: Tokenizer, plain: Ids, text: str, epoch: int, index: int) -> Ids:
        if side not in self._sides:
            return plain
        drawn = tokenizer.sample(text, self._alpha, derive_seed(self._seed, "subwords", side, epoch, index))
        return np.array(drawn, np.uint32) if len(drawn) <= self._longest else plain

"""Distributions that can be enumerated, models small enough to be exact, and a tokenizer of letters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from transformer import Transformer
from transformer.core.seeding import derive_seed
from transformer.core.special import BOS, EOS
from transformer.decoding import Hypothesis, Limits

ORDINARY = 4  # the first token that is not special
LogProb = Callable[[Sequence[int], Sequence[int]], float]


class Toy:
    """p(next | source, prefix) drawn at random, once and for all, for every source and prefix.

    `order` 1 makes it a Markov chain: only the last token counts. `forbidden` tokens have probability 0.
    """

    def __init__(
        self, vocabulary: int = 7, seed: int = 0, order: int | None = None, sharp: float = 1.5, forbidden=()
    ) -> None:
        self.vocabulary, self.seed, self.order, self.sharp = vocabulary, seed, order, sharp
        self.forbidden, self.steps, self.rows = list(forbidden), 0, 0

    def next(self, source: Sequence[int], prefix: Sequence[int]) -> Tensor:
        """Log-probabilities (V); prefix without BOS, source without padding."""
        history = tuple(prefix)[-self.order :] if self.order else tuple(prefix)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, tuple(source), history))
        logits = torch.randn(self.vocabulary, generator=generator, dtype=torch.float64) * self.sharp
        logits[self.forbidden] = -torch.inf
        return logits.log_softmax(0)

    def log_prob(self, source: Sequence[int], target: Sequence[int]) -> float:
        """Log p of the target and its EOS."""
        ended = [*target, EOS]
        return sum(float(self.next(source, ended[:t])[token]) for t, token in enumerate(ended))

    def start(self, source: Tensor) -> _Rows:
        return _Rows(self, [[int(i) for i in row if i] for row in source])

    def token_log_probs(self, source: Tensor, target_in: Tensor, target_out: Tensor) -> Tensor:
        rows = torch.zeros(target_out.shape, dtype=torch.float64)
        for i, inputs in enumerate(target_in.tolist()):
            for t, token in enumerate(target_out[i].tolist()):
                if token:
                    words = [int(w) for w in source[i] if w]
                    rows[i, t] = self.next(words, inputs[1 : t + 1])[token]
        return rows


class _Rows:
    def __init__(self, toy: Toy, sources: list[list[int]]) -> None:
        self.toy, self.sources, self.prefixes = toy, sources, [[] for _ in sources]

    def step(self, tokens: Tensor) -> Tensor:
        assert len(tokens) == len(self.sources)
        self.toy.steps, self.toy.rows = self.toy.steps + 1, self.toy.rows + len(tokens)
        for prefix, token in zip(self.prefixes, tokens.tolist(), strict=True):
            prefix.append(token)
        assert all(prefix[0] == BOS for prefix in self.prefixes)
        rows = zip(self.sources, self.prefixes, strict=True)
        return torch.stack([self.toy.next(source, prefix[1:]) for source, prefix in rows])

    def select(self, rows: Tensor) -> None:
        self.sources = [self.sources[i] for i in rows.tolist()]
        self.prefixes = [list(self.prefixes[i]) for i in rows.tolist()]


def tiny(vocabulary: int = 9, seed: int = 0, **flags: object) -> Transformer:
    """A float64 model with random weights everywhere, sharp enough to prefer something."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    shape = {"d_model": 8, "heads": 2, "d_ff": 12, "encoder_layers": 1, "decoder_layers": 2, "dropout": 0.1}
    model = Transformer(vocabulary, vocabulary, **{**shape, **flags})
    torch.set_default_dtype(before)
    draws = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.6, generator=draws)
    return model.eval()


def sources(sentences: int, length: int, vocabulary: int = 9, seed: int = 0) -> Tensor:
    """(B, S) ids of unequal lengths, each closed by EOS and padded."""
    draws = torch.Generator().manual_seed(seed)
    source = torch.randint(ORDINARY, vocabulary, (sentences, length), generator=draws)
    for row in range(sentences):
        end = length - 1 - row % max(length - 1, 1)
        source[row, end], source[row, end + 1 :] = EOS, 0
    return source


def enumerate_targets(vocabulary: int, limits: Limits) -> list[tuple[int, ...]]:
    """Every target within the limits, written down without the code under test."""
    letters = range(ORDINARY, vocabulary)
    longest = max(limits.longest, len(limits.prefix))
    shortest = max(min(limits.shortest, longest), len(limits.prefix))
    return [
        limits.prefix + rest
        for length in range(shortest, longest + 1)
        for rest in product(letters, repeat=length - len(limits.prefix))
    ]


PENALTIES: dict[str, Callable[[int, float], float]] = {
    "none": lambda length, alpha: 1.0,
    "average": lambda length, alpha: math.exp(alpha * math.log(length)),
    "wu": lambda length, alpha: math.exp(alpha * (math.log(5 + length) - math.log(6))),
}


def exhaustive(
    log_prob: LogProb, source: Sequence[int], vocabulary: int, limits: Limits, penalty: str, alpha: float
) -> list[Hypothesis]:
    """Every target and its score, best first."""
    found = []
    for target in enumerate_targets(vocabulary, limits):
        total = log_prob(source, target)
        if total > -math.inf:
            found.append(Hypothesis(target, total, total / PENALTIES[penalty](len(target) + 1, alpha)))
    return sorted(found, key=lambda h: -h.score)


class Letters:
    """A tokenizer whose subwords are single characters; `▁` is the space, what it does not know is UNK."""

    def __init__(self, letters: str = "abcdefghijklmnopqrstuvwxyz") -> None:
        self.alphabet = ["<pad>", "<unk>", "<s>", "</s>", "▁", *letters]
        self.size = len(self.alphabet)
        self.encoded_characters = 0

    def encode(self, text: str) -> list[int]:
        known = {letter: i for i, letter in enumerate(self.alphabet) if i >= ORDINARY}
        self.encoded_characters += len(text)
        text.encode("utf-8")  # as a real tokenizer, it cannot take lone surrogates
        return [known.get(letter, 1) for letter in "▁".join(text.split())]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.alphabet[i] for i in ids if i >= ORDINARY).replace("▁", " ").strip(" ")

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.alphabet[i] for i in ids]

"""Searches that follow one path per row: greedy, and sampling.

B sentences, R rows still under way, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.special import BOS, EOS
from .hypothesis import Hypothesis
from .limits import Constraints, Limits
from .next_token import NextToken
from .penalties import penalty_table
from .ranking import first_largest, largest, possible

# (log-probabilities (R, V) with -inf where forbidden, column, original rows (R,)) -> token (R,)
Choose = Callable[[Tensor, int, Tensor], Tensor]


def greedy_search(
    model: NextToken,
    source: Tensor,
    limits: Sequence[Limits],
    *,
    length_penalty: str = "none",
    alpha: float = 1.0,
) -> list[list[Hypothesis]]:
    """The likeliest token at each step, the lower one of equals: at most one hypothesis a sentence.

    The penalty changes the score that is reported, not the choice. Raises CheckpointError on NaN.
    """
    walked = _walk(
        model,
        source,
        limits,
        lambda log_probs, column, rows: first_largest(log_probs)[1],
        penalty_table(length_penalty, alpha, max((limit.cap for limit in limits), default=0) + 1),
    )
    return [[hypothesis] if hypothesis else [] for hypothesis in walked]


@dataclass(frozen=True)
class Sampling:
    """q_i ~ p_i^(1 / temperature), over the `top_k` likeliest tokens (0: all), and of those over the smallest
    set that holds at least `top_p` of their probability. Applied in this order.

    Sources: Fan et al. 2018, arXiv 1805.04833 (top-k); Holtzman et al. 2020, arXiv 1904.09751 (top-p).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def distribution(self, log_probs: Tensor) -> Tensor:
        """Log-probabilities (R, V) -> probabilities (R, V) in float64, 0 where a token is not to be drawn.

        A row that allows no token gives NaN.
        """
        logits = log_probs.double()
        # The likeliest token is at 0 whatever it is divided by, and no reciprocal of the divisor overflows.
        numbers = torch.finfo(logits.dtype)
        logits = logits - logits.amax(dim=1, keepdim=True).clamp(min=numbers.min)
        logits = logits / max(self.temperature, numbers.tiny)
        if 0 < self.top_k < logits.shape[1]:
            _, indices = largest(logits, self.top_k)
            kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, indices, True)
            logits = logits.masked_fill(~kept, -torch.inf)
        probabilities = logits.softmax(dim=1)
        if self.top_p < 1:
            ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
            before = ordered.cumsum(dim=1) - ordered
            ordered = ordered.masked_fill(before >= self.top_p, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter_(1, order, ordered)
            probabilities /= probabilities.sum(dim=1, keepdim=True)
        return probabilities


def sample(
    model: NextToken,
    source: Tensor,
    limits: Sequence[Limits],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    length_penalty: str = "none",
    alpha: float = 1.0,
) -> list[list[Hypothesis]]:
    """Draw as many hypotheses for sentence b as it has seeds `seeds[b]` (as many for each), best score first.

    A hypothesis is a function of its seed and its sentence: neither the batch nor its other draws enter.
    The numbers behind its choices are drawn at the start, and each step inverts the cumulated distribution.
    Log-probabilities reported are the model's own, before temperature and truncation. Draws may coincide.
    """
    draws = len(seeds[0]) if seeds else 0
    repeated = [limit for limit in limits for _ in range(draws)]
    columns = max((limit.cap for limit in limits), default=0) + 1
    numbers = torch.zeros(len(repeated), columns, dtype=torch.float64)
    for row, seed in enumerate(seed for sentence in seeds for seed in sentence):
        needed = repeated[row].cap + 1
        generator = torch.Generator().manual_seed(seed)
        numbers[row, :needed] = torch.rand(needed, generator=generator, dtype=torch.float64)
    numbers = numbers.to(source.device)

    def choose(log_probs: Tensor, column: int, rows: Tensor) -> Tensor:
        probabilities = sampling.distribution(log_probs)
        cumulated = probabilities.cumsum(dim=1)
        # `right`: the first token whose cumulated probability exceeds the goal, never one of probability 0.
        goal = numbers[rows, column, None] * cumulated[:, -1:]
        token = torch.searchsorted(cumulated, goal, right=True).squeeze(1)
        last = (cumulated < cumulated[:, -1:]).sum(dim=1)  # where rounding put the goal at the very end
        return torch.minimum(token, last)

    penalties = penalty_table(length_penalty, alpha, columns)
    walked = _walk(model, source, repeated, choose, penalties, draws)
    grouped = [walked[b * draws : (b + 1) * draws] for b in range(len(limits))]
    return [sorted((h for h in group if h), key=lambda h: -h.score) for group in grouped]


@torch.inference_mode()
def _walk(
    model: NextToken,
    source: Tensor,
    limits: Sequence[Limits],
    choose: Choose,
    penalties: list[float],
    repeats: int = 1,
) -> list[Hypothesis | None]:
    """Follow `choose` from BOS to EOS, row by row; None where every token has probability 0."""
    found: list[Hypothesis | None] = [None] * len(limits)
    if not limits:
        return found
    device = source.device
    constraints = Constraints(limits, model.vocabulary, device)
    rows = torch.arange(len(limits), device=device)
    tokens = torch.full((len(limits), 1), BOS, device=device)
    totals = torch.zeros(len(limits), dtype=torch.float64, device=device)
    continuation = model.start(source)
    if repeats > 1:
        continuation.select(rows // repeats)

    while len(rows):
        length = tokens.shape[1] - 1
        log_probs = constraints.apply(continuation.step(tokens[:, -1]), length)
        some = possible(log_probs)
        if not bool(some.all()):
            log_probs[~some, EOS] = 0.0  # something to choose; the row is dropped below
        token = choose(log_probs, length, rows)
        totals = totals + log_probs.gather(1, token[:, None]).squeeze(1)
        ended = token == EOS
        for row, total, prefix, real in zip(
            rows[ended].tolist(),
            totals[ended].tolist(),
            tokens[ended, 1:].tolist(),
            some[ended].tolist(),
            strict=True,
        ):
            if real:
                found[row] = Hypothesis(tuple(prefix), total, total / penalties[length + 1])
        tokens = torch.cat([tokens, token[:, None]], dim=1)
        if bool(ended.any()):
            going = (~ended).nonzero().squeeze(1)
            rows, tokens, totals = (x.index_select(0, going) for x in (rows, tokens, totals))
            if len(going):
                constraints.select(going)
                continuation.select(going)
    return found

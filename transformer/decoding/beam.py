"""Beam search, batched over sentences.

B sentences still searched, W width (rows per sentence), R = B x W rows, V vocabulary, t tokens so far.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.special import BOS, EOS
from .hypothesis import Hypothesis
from .limits import Constraints, Limits
from .next_token import NextToken
from .penalties import penalty_table
from .ranking import best_sums

# Dropping a sentence costs a copy of the others' cross-attention; it is done for an eighth of them at once.
_LEAVING = 8


class _Finished:
    """The n best finished hypotheses of a sentence; of equal scores, the one found first."""

    def __init__(self, n_best: int) -> None:
        self.n_best = n_best
        self.best: list[Hypothesis] = []

    def wants(self, score: float) -> bool:
        return score > self.worst

    def add(self, hypothesis: Hypothesis) -> None:
        insort(self.best, hypothesis, key=lambda h: -h.score)
        del self.best[self.n_best :]

    @property
    def worst(self) -> float:
        """The score to beat: -inf until n are there."""
        return self.best[-1].score if len(self.best) == self.n_best else -torch.inf


@torch.inference_mode()
def beam_search(
    model: NextToken,
    source: Tensor,
    limits: Sequence[Limits],
    *,
    beam: int,
    n_best: int = 1,
    length_penalty: str = "none",
    alpha: float = 1.0,
    stop_early: bool = True,
) -> list[list[Hypothesis]]:
    """The `n_best` best hypotheses found for each sentence, best first; fewer where fewer exist.

    Source (B, S), right-padded. At each step the `beam` best continuations of a sentence survive; those that
    end in EOS leave the beam as finished hypotheses, the others are continued. So `beam` 1 is greedy search
    under every length penalty. Of equal continuations the earlier beam's, then the lower token's wins.

    A sentence is done when no living hypothesis can still enter its n best. Let l be the best living
    log-probability and M the longest length with EOS. A finished descendant has log p <= l, because each
    token adds a log-probability <= 0, and length n <= M, so that penalty(n) <= penalty(M), because penalties
    never fall. As l <= 0,

        score = log p / penalty(n)  <=  l / penalty(n)  <=  l / penalty(M).

    When l / penalty(M) is not above the worst kept score, going on changes nothing. All three steps are also
    true of rounded floating-point numbers, so that `stop_early=False` finds the same, only later.

    A list is empty only where every continuation has probability 0. Raises CheckpointError on NaN.
    Source: the optimal stopping of Huang, Zhao and Ma 2017, arXiv 1809.00069, for these penalties.
    """
    device = source.device
    finished = [_Finished(n_best) for _ in limits]
    if not limits:
        return []
    constraints = Constraints(limits, model.vocabulary, device)
    penalties = penalty_table(length_penalty, alpha, max(limit.cap for limit in limits) + 1)
    ceiling = torch.tensor([penalties[limit.cap + 1] for limit in limits], dtype=torch.float64, device=device)

    sentences = list(range(len(limits)))  # which sentence each of the B is
    worst = torch.full((len(limits),), -torch.inf, dtype=torch.float64, device=device)
    scores = torch.zeros(len(limits), 1, dtype=torch.float64, device=device)  # (B, W) log p; -inf: dead
    tokens = torch.full((len(limits), 1), BOS, device=device)  # (R, 1 + t)
    continuation = model.start(source)

    while sentences:
        length = tokens.shape[1] - 1
        log_probs = constraints.apply(continuation.step(tokens[:, -1]), length)
        scores, origin, chosen = best_sums(log_probs, scores, beam)

        ended = (chosen == EOS) & scores.isfinite()
        if bool(ended.any()):
            ends = ended.nonzero()
            _collect(finished, sentences, ends, scores[ended], tokens[origin[ended]], penalties[length + 1])
            for b in {int(b) for b in ends[:, 0].tolist()}:
                worst[b] = finished[sentences[b]].worst
            scores = scores.masked_fill(ended, -torch.inf)

        best = scores.amax(dim=1)
        done = best / ceiling <= worst if stop_early else best == -torch.inf
        staying = int((~done).sum())
        if staying == 0:
            break
        scores = scores.masked_fill(done[:, None], -torch.inf)

        alive = scores.isfinite()
        slots = (~alive).long().argsort(dim=1, stable=True)[:, : int(alive.sum(1).max())]
        if (len(sentences) - staying) * _LEAVING >= len(sentences):
            stay = (~done).nonzero().squeeze(1)
            sentences = [sentences[b] for b in stay.tolist()]
            constraints.select(stay)
            ceiling, worst = ceiling.index_select(0, stay), worst.index_select(0, stay)
            scores, chosen, origin, slots = (x.index_select(0, stay) for x in (scores, chosen, origin, slots))
        scores = scores.gather(1, slots)
        rows = origin.gather(1, slots).flatten()
        if len(rows) != len(tokens) or not torch.equal(rows, torch.arange(len(rows), device=device)):
            continuation.select(rows)
            tokens = tokens.index_select(0, rows)
        tokens = torch.cat([tokens, chosen.gather(1, slots).view(-1, 1)], dim=1)

    return [pool.best for pool in finished]


def _collect(
    finished: list[_Finished],
    sentences: list[int],
    ends: Tensor,
    log_probabilities: Tensor,
    prefixes: Tensor,
    penalty: float,
) -> None:
    """Put the hypotheses that have just ended into their sentences' pools, best first within a sentence."""
    found = zip(ends[:, 0].tolist(), log_probabilities.tolist(), prefixes[:, 1:].tolist(), strict=True)
    for b, log_probability, tokens in found:
        pool = finished[sentences[b]]
        score = log_probability / penalty
        if pool.wants(score):
            pool.add(Hypothesis(tuple(tokens), log_probability, score))

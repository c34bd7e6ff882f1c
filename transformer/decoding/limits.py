"""What a target may be: its shortest and longest length, how it must begin, and what it never contains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.special import BOS, EOS, PAD, UNK

BANNED = (PAD, UNK, BOS)


@dataclass(frozen=True)
class Limits:
    """Bounds of one sentence's target. Lengths count tokens without EOS; the prefix's are among them.

    At the longest length EOS is all that may follow, at its true log-probability: a hypothesis always ends
    in EOS. The prefix may hold any token, even one that search never chooses. Where bounds contradict each
    other the prefix outranks the longest length, and that the shortest.
    """

    longest: int
    shortest: int = 0
    prefix: tuple[int, ...] = ()

    @property
    def cap(self) -> int:
        return max(self.longest, len(self.prefix))


class Constraints:
    """The limits of all sentences of a search, applied to (B x width, V) log-probabilities in place."""

    def __init__(self, limits: Sequence[Limits], vocabulary: int, device: torch.device) -> None:
        self.device = device
        banned = [token for token in BANNED if token < vocabulary]
        self.banned = torch.tensor(banned, device=device)
        longest_prefix = max(len(limit.prefix) for limit in limits)
        # -1 where a sentence's prefix has no such column
        padded = [[*limit.prefix, *[-1] * (longest_prefix - len(limit.prefix))] for limit in limits]
        self.prefix = torch.tensor(padded, dtype=torch.int64, device=device).view(len(limits), longest_prefix)
        self.longest = torch.tensor([limit.cap for limit in limits], device=device)
        self.shortest = torch.tensor([min(limit.shortest, limit.cap) for limit in limits], device=device)
        self._bounds()

    def _bounds(self) -> None:
        """When is there nothing to do? Kept on the host, so that most steps need not ask the device."""
        self._first_end = int(self.longest.min()) if len(self.longest) else 0
        self._last_ban = int(self.shortest.max()) if len(self.shortest) else 0

    def select(self, sentences: Tensor) -> None:
        """Keep these sentences."""
        self.prefix, self.longest, self.shortest = (
            self.prefix.index_select(0, sentences),
            self.longest.index_select(0, sentences),
            self.shortest.index_select(0, sentences),
        )
        self._bounds()

    def apply(self, log_probs: Tensor, length: int) -> Tensor:
        """Write -inf over what may not follow `length` tokens. log_probs (B x width, V), changed in place."""
        rows, vocabulary = log_probs.shape
        width = rows // len(self.longest)
        forced = None
        if length < self.prefix.shape[1]:
            forced = self.prefix[:, length].repeat_interleave(width)
            only = log_probs.gather(1, forced.clamp(min=0)[:, None])
        log_probs.index_fill_(1, self.banned, -torch.inf)
        if length < self._last_ban:
            log_probs[(length < self.shortest).repeat_interleave(width), EOS] = -torch.inf
        if length >= self._first_end:
            ending = (length >= self.longest).repeat_interleave(width)
            others = torch.arange(vocabulary, device=self.device) != EOS
            log_probs.masked_fill_(ending[:, None] & others, -torch.inf)
        if forced is not None:
            log_probs.masked_fill_((forced >= 0)[:, None], -torch.inf)
            chosen = forced.clamp(min=0)[:, None]
            log_probs.scatter_(
                1, chosen, torch.where((forced >= 0)[:, None], only, log_probs.gather(1, chosen))
            )
        return log_probs

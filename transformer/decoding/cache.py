"""What a decoder remembers between steps: its own columns (columns.py), the memory, and its norms' states.

R rows (hypotheses), B sentences, H heads, K head width, S source length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..modules.attention import KeysValues
from .columns import SelfAttentionCache


class CrossAttentionCache:
    """Keys and values (B, H, S, K) of the memory, projected once per sentence and never again.

    Where each sentence has as many rows as the others, in order, its rows share them. Otherwise they are
    gathered, when the rows change and not at each step.
    """

    held = None  # the source's mask tells

    def __init__(self) -> None:
        self._kept: KeysValues | None = None
        self._of_rows: KeysValues | None = None
        self._sentence: Tensor | None = None

    def extend(self, project: Callable[[], KeysValues]) -> KeysValues:
        """Keys and values (B, H, S, K), or (R, H, S, K); `project` is called once only."""
        if self._kept is None:
            self._kept = tuple(each.contiguous() for each in project())  # type: ignore[assignment]
        assert self._kept is not None
        if self._of_rows is None:
            keys, values = self._kept
            rows = self._sentence
            self._of_rows = (
                self._kept if rows is None else (keys.index_select(0, rows), values.index_select(0, rows))
            )
        return self._of_rows

    def assign(self, sentence: Tensor | None) -> None:
        """Row i attends to sentence `sentence[i]`, counted among those kept. None: equally many rows each."""
        self._sentence, self._of_rows = sentence, None

    def keep(self, sentences: Tensor) -> None:
        """Forget all sentences but these; `assign` has to follow."""
        if self._kept is not None:
            keys, values = self._kept
            self._kept = keys.index_select(0, sentences), values.index_select(0, sentences)
        self._of_rows = None


class LayerCache:
    """The two caches of one decoder layer."""

    def __init__(self, window: int | None = None) -> None:
        self.self_attention = SelfAttentionCache(window)
        self.cross_attention = CrossAttentionCache()


class NormStates:
    """What causal norms keep between steps: for each place one tensor (R, ...)."""

    def __init__(self) -> None:
        self._states: dict[int, Tensor] = {}

    def get(self, place: int) -> Tensor | None:
        return self._states.get(place)

    def put(self, place: int, state: Tensor) -> None:
        self._states[place] = state

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was."""
        self._states = {place: state.index_select(0, rows) for place, state in self._states.items()}


class DecoderCache:
    """The caches of all decoder layers, of the last `window` columns only where there is one.

    It begins with one row per sentence. `select` reorders, repeats and drops rows. Beams that change places
    within their sentence leave the cross-attention untouched; it shrinks when sentences leave for good.
    """

    def __init__(
        self,
        layers: int,
        sentences: int,
        device: torch.device | str = "cpu",
        window: int | None = None,
    ) -> None:
        self.layers = [LayerCache(window) for _ in range(layers)]
        self.norms = NormStates()
        self.sentence = torch.arange(sentences, device=device)
        self.sentences = sentences
        self.gathered: Tensor | None = None  # `sentence`, unless all have equally many rows, in order

    @property
    def length(self) -> int:
        """Target columns that every layer has seen."""
        return self.layers[0].self_attention.length

    def as_attended(self, mask: Tensor) -> Tensor:
        """A mask of the sentences kept (B, ...), as cross-attention takes it: with the rows of its keys."""
        return mask if self.gathered is None else mask.index_select(0, self.gathered)

    def select(self, rows: Tensor) -> Tensor | None:
        """Row i becomes what row `rows[i]` was; rows (R',) int64.

        Returns the sentences kept, as indices among those kept before, when some have left; else None.
        """
        before, after = self.sentence, self.sentence.index_select(0, rows)
        sentences, in_order_before, kept = self.sentences, self.gathered is None, None
        if not torch.equal(before, after):
            present, numbered = torch.unique(after, return_inverse=True)
            if len(present) < self.sentences:
                kept, after, self.sentences = present, numbered, len(present)
            each = len(after) // max(self.sentences, 1)
            in_order = torch.arange(self.sentences, device=after.device).repeat_interleave(each)
            self.gathered = None if torch.equal(after, in_order) else after
            for layer in self.layers:
                if kept is not None:
                    layer.cross_attention.keep(kept)
                layer.cross_attention.assign(self.gathered)
        for layer in self.layers:
            if in_order_before and self.gathered is None:
                layer.self_attention.select_within(rows, sentences, kept)
            else:
                layer.self_attention.select(rows)
        self.norms.select(rows)
        self.sentence = after
        return kept

"""What a decoder remembers between steps: keys and values, grown in place and reordered by rows.

R rows (hypotheses), B sentences, H heads, K head width, S source length, L columns held.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..modules.attention import KeysValues

_BLOCK = 8  # columns that a buffer grows by


def _whole_blocks(x: Tensor) -> Tensor:
    """Keys or values (B, H, S, K) with columns of zeros, on a CPU, up to a whole block."""
    missing = -x.shape[2] % _BLOCK if x.device.type == "cpu" else 0
    return F.pad(x, (0, 0, 0, missing)).contiguous()


class SelfAttentionCache:
    """Keys and values of all columns so far, in two buffers (R, H, C, K) that grow by some columns at a time.

    A step writes its column and copies nothing else; growing copies an eighth of what attention reads anyway.
    Reordering copies rows into spare buffers of the same shape, and the two change places. A head's columns
    lie side by side, as its products with the query read them.
    On a CPU one column gets the whole buffers, with `held` to tell the columns from those to come, which are
    0: products of whole blocks take half the time of others.
    With a `window` N the buffers end at N columns and become rings: column t is at t mod N, in the place of
    one that nobody sees any more. `length` counts all columns, also those forgotten.
    """

    def __init__(self, window: int | None = None) -> None:
        self.length, self.window = 0, window
        self.held: Tensor | None = None
        self._buffers: list[Tensor] = []
        self._spares: list[Tensor] = []

    def extend(self, project: Callable[[], KeysValues]) -> KeysValues:
        """Append the projected columns (R, H, n, K) and return all: keys and values (R, H, L + n, K) or more.

        `held` (1, 1, 1, C) is True for those of the C returned that hold one; None where all do.
        Beyond the window one column gets the N of the ring, in any order; several get those held before, in
        order, and themselves.
        """
        new = project()
        start, self.length, self.held = self.length, self.length + new[0].shape[2], None
        if self.window is not None and self.length > self.window:
            self._make_room(new[0], self.window, start)
            keys, values = (_slide(ring, each, start) for ring, each in zip(self._buffers, new, strict=True))
            return keys, values
        self._make_room(new[0], self.length, start)
        for buffer, each in zip(self._buffers, new, strict=True):
            buffer[:, :, start : self.length] = each
        if new[0].shape[2] == 1 and new[0].device.type == "cpu":
            capacity = self._buffers[0].shape[2]
            if self.length < capacity:
                self.held = (torch.arange(capacity) < self.length)[None, None, None]
            return self._buffers[0], self._buffers[1]
        keys, values = (buffer[:, :, : self.length] for buffer in self._buffers)
        return keys, values

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was."""
        if not self._buffers:
            return
        buffers = self._buffers
        if not self._spares or len(self._spares[0]) < len(rows):
            self._spares = [buffer.new_empty(len(rows), *buffer.shape[1:]) for buffer in buffers]
        self._buffers = [
            torch.index_select(buffer, 0, rows, out=spare[: len(rows)])
            for buffer, spare in zip(buffers, self._spares, strict=True)
        ]
        self._spares = buffers

    def _make_room(self, like: Tensor, columns: int, held: int) -> None:
        """Larger buffers when they hold fewer than `columns` columns."""
        if not self._buffers or self._buffers[0].shape[2] < columns:
            rows, heads, _, width = like.shape
            capacity = columns + -columns % _BLOCK
            capacity = capacity if self.window is None else min(capacity, self.window)
            larger = [like.new_empty(rows, heads, capacity, width) for _ in range(2)]
            for new in larger:
                new[:, :, held:] = 0
            for new, old in zip(larger, self._buffers, strict=False):
                new[:, :, :held] = old[:, :, :held]
            self._buffers, self._spares = larger, []
        assert len(self._buffers[0]) == len(like), "rows of the cache and of the step differ"


def _slide(ring: Tensor, new: Tensor, start: int) -> Tensor:
    """Write columns start, start + 1, ... (R, H, n, K) over the oldest of the ring (R, H, N, K)."""
    window, count = ring.shape[2], new.shape[2]
    if count == 1:
        ring[:, :, start % window] = new[:, :, 0]
        return ring
    columns = torch.arange(max(start - window, 0), start + count, device=new.device) % window
    seen = torch.cat((ring.index_select(2, columns[:-count]), new), 2)
    ring[:, :, columns[-window:]] = seen[:, :, -window:]
    return seen


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
        """Keys and values (B, H, S, K), or (R, H, S, K), in whole blocks; `project` is called once only."""
        if self._kept is None:
            self._kept = tuple(_whole_blocks(each) for each in project())  # type: ignore[assignment]
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
        kept = None
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
            layer.self_attention.select(rows)
        self.norms.select(rows)
        self.sentence = after
        return kept

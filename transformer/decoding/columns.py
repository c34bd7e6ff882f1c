"""Keys and values of the target's columns so far, between steps of decoding.

R rows (hypotheses), B sentences, W rows of a sentence, H heads, K head width, L columns that a row has had, C
columns of a buffer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..modules.attention import KeysValues

BLOCK = 8  # columns that a buffer grows by
_APART = 8  # times as many columns as a row has: by estimate, products with all cost what copies would


class SelfAttentionCache:
    """Keys and values of all columns so far, in two buffers (R, H, C, K) that grow by some columns at a time.

    A step writes its column and copies nothing else; growing copies an eighth of what attention reads
    anyway. Reordering copies rows into spare buffers of the same shape, and the two change places. Where all
    sentences have equally many rows, more than one, on a CPU, those of each share columns (`SharedColumns`).
    With a `window` N the buffers end at N columns and become rings: column t is at t mod N, in the place of
    one that nobody sees any more. `length` counts all columns of a row, also those forgotten.
    """

    def __init__(self, window: int | None = None) -> None:
        self.length, self.window = 0, window
        self.held: Tensor | None = None
        self._buffers: list[Tensor] = []
        self._spares: list[Tensor] = []
        self._shared: SharedColumns | None = None

    def extend(self, project: Callable[[], KeysValues]) -> KeysValues:
        """Append the projected columns (R, H, n, K) and return all: keys and values (R, H, L + n, K).

        Of shared columns they are (B, H, C, K), and `held` (B, 1, W, C) is True for a row's own; else None.
        Beyond the window one column gets the N of the ring, in any order; several get those held before, in
        order, and themselves.
        """
        new = project()
        if self._shared is not None and (new[0].shape[2] > 1 or not self._shared.make_room()):
            self._part(torch.arange(len(new[0])))
        if self._shared is not None:
            self.length += 1
            self.held, shared = self._shared.append(new)
            return shared
        start, self.length, self.held = self.length, self.length + new[0].shape[2], None
        if self.window is not None and self.length > self.window:
            self._make_room(new[0], self.window, start)
            keys, values = (_slide(ring, each, start) for ring, each in zip(self._buffers, new, strict=True))
            return keys, values
        self._make_room(new[0], self.length, start)
        for buffer, each in zip(self._buffers, new, strict=True):
            buffer[:, :, start : self.length] = each
        keys, values = (buffer[:, :, : self.length] for buffer in self._buffers)
        return keys, values

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was."""
        if self._shared is not None:
            self._part(rows)
            return
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

    def select_within(self, rows: Tensor, before: int, kept: Tensor | None) -> None:
        """`select` where sentences have equally many rows each, in order, before and after.

        There were `before` sentences, of which those in `kept` stay; None: all.
        """
        after = before if kept is None else len(kept)
        alone = len(rows) <= after or not self._buffers or len(self._buffers[0]) != before
        if self._shared is None and (alone or self.window is not None or rows.device.type != "cpu"):
            self.select(rows)
            return
        if self._shared is None:
            self._shared = SharedColumns(self._buffers, self.length)
            self._buffers, self._spares = [], []
        self._shared.select(rows, kept)

    def _part(self, rows: Tensor) -> None:
        """From shared columns to those of each row; row i gets those of row `rows[i]`."""
        assert self._shared is not None
        self._buffers, self._shared = self._shared.of_rows(rows), None

    def _make_room(self, like: Tensor, columns: int, held: int) -> None:
        """Larger buffers when they hold fewer than `columns` columns."""
        if not self._buffers or self._buffers[0].shape[2] < columns:
            rows, heads, _, width = like.shape
            capacity = columns + -columns % BLOCK
            capacity = capacity if self.window is None else min(capacity, self.window)
            larger = [like.new_empty(rows, heads, capacity, width) for _ in range(2)]
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


class SharedColumns:
    """Keys and values (B, H, C, K) of columns that the rows of a sentence share: each row is a path through.

    A step appends W columns, one of each row, and `seen` (B, W, C) tells which are a row's own past, in
    order. So rows change places, multiply and leave without a key being copied. When the buffers grow,
    columns that no row sees any more are left out: mostly rows soon agree on all but their last columns. By
    torch's operators each row's products are with all columns, and a key that is not finite reaches all rows
    of its sentence; in C a row's are with its own.
    """

    def __init__(self, buffers: list[Tensor], held: int) -> None:
        """Of sentences with one row each, whose first `held` columns are taken."""
        self.buffers, self.used = buffers, held
        sentences, _, capacity, _ = buffers[0].shape
        self.seen = (torch.arange(capacity) < held).repeat(sentences, 1, 1)

    def append(self, new: KeysValues) -> tuple[Tensor, KeysValues]:
        """Append a column of each row (R, H, 1, K). Which ones a row sees (B, 1, W, C), and all."""
        width = self.seen.shape[1]
        start, self.used = self.used, self.used + width
        for buffer, each in zip(self.buffers, new, strict=True):
            buffer[:, :, start : self.used] = each.view(-1, width, *each.shape[1::2]).transpose(1, 2)
        self.seen[:, :, start : self.used].diagonal(dim1=1, dim2=2).fill_(True)
        keys, values = (buffer[:, :, : self.used] for buffer in self.buffers)
        return self.seen[:, None, :, : self.used], (keys, values)

    def make_room(self) -> bool:
        """For a column more of each row; False where rows have so little in common that they should part."""
        if self.used + self.seen.shape[1] > self.seen.shape[2]:
            count = int(self.seen.any(1).sum(1).max())
            if count > _APART * int(self.seen[0, 0].sum()):
                return False
            self._grow(count)
        return True

    def select(self, rows: Tensor, kept: Tensor | None) -> None:
        """Row i becomes what row `rows[i]` was, of the same sentence; only sentences in `kept` stay."""
        if kept is not None:
            self.buffers = [buffer.index_select(0, kept) for buffer in self.buffers]
        seen, sentences = self.seen.flatten(0, 1).index_select(0, rows), len(self.buffers[0])
        self.seen = seen.view(sentences, len(rows) // max(sentences, 1), seen.shape[1])

    def of_rows(self, rows: Tensor) -> list[Tensor]:
        """Keys and values (R', H, L, K) of the columns that each of these rows sees, in order."""
        sentence, seen = rows // self.seen.shape[1], self.seen.flatten(0, 1).index_select(0, rows)
        columns = _first(seen, int(self.seen[0, 0].sum()))
        return [buffer[sentence[:, None], :, columns].transpose(1, 2).contiguous() for buffer in self.buffers]

    def _grow(self, count: int) -> None:
        """Room for some steps more, after the `count` columns at most that are still seen."""
        self.used = count
        columns = _first(self.seen.any(1), count)[:, None]  # (B, 1, C')
        sentences, heads, capacity, width = self.buffers[0].shape
        room = self.used + BLOCK * self.seen.shape[1]
        places = torch.arange(sentences * heads).view(sentences, heads, 1) * capacity + columns
        for i, buffer in enumerate(self.buffers):
            self.buffers[i] = larger = buffer.new_empty(sentences, heads, room, width)
            taken = buffer.view(-1, width).index_select(0, places.flatten())
            larger[:, :, : self.used] = taken.view(*places.shape, width)
        seen = self.seen.gather(2, columns.expand(-1, self.seen.shape[1], -1))
        self.seen = F.pad(seen, (0, room - self.used))


def _first(chosen: Tensor, count: int) -> Tensor:
    """`count` columns of each row of booleans: those chosen, then others, each kind in order."""
    return (~chosen).byte().argsort(dim=-1, stable=True)[..., :count]

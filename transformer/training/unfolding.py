"""How much a pickle unfolds to, found without loading it.

A pickle names a container that it holds again by a reference: 60 lists, each of which holds the one before it
twice, are 500 bytes, and 10^18 values to whoever walks through them. Loading walks, too: a tuple that is a
key is hashed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence

DEEPEST = 50  # containers within each other
LARGEST = 8, 100_000  # values a byte of the pickle, and beside them
TEXT = 64  # characters that count as a value
# The operations that torch's loader of plain values knows. How many of the last values each takes (0: all
# since the mark) to make a new one of them, or to put them into the one before them.
_VALUES = {
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "GLOBAL"),
    *("BINUNICODE", "SHORT_BINSTRING", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
}
_MADE_OF = {"TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "BINPERSID": 1, "NEWOBJ": 2, "REDUCE": 2}
_PUT_INTO = {"APPEND": 1, "APPENDS": 0, "SETITEM": 2, "SETITEMS": 0, "BUILD": 1}


class _Value:
    """How many values it unfolds to, how deep they lie, and whether it is held in several places."""

    def __init__(self, size: int) -> None:
        self.size, self.depth, self.shared = size, 0, False

    def take(self, parts: Sequence[_Value], keyed: bool) -> None:
        if self.shared and parts:
            raise ValueError("it changes what it refers to")  # whoever holds it would have to be counted anew
        if keyed:  # a walk names each value by all keys above it
            self.size += sum(key.size * value.size for key, value in zip(*[iter(parts)] * 2, strict=True))
        else:
            self.size += sum(part.size for part in parts)
        self.depth = max(self.depth, *(part.depth + 1 for part in parts), 0)


def require_bounded(pickle: bytes) -> None:
    """ValueError if it unfolds to far more than it has bytes or nests deeper, or is not of plain values.

    KeyError or IndexError, as the loader raises, for one that takes what is not there.
    """
    most = LARGEST[0] * len(pickle) + LARGEST[1]
    stack: list[_Value] = []
    marks: list[int] = []
    known: dict[object, _Value] = {}
    for operation, argument, _ in pickletools.genops(pickle):
        name = operation.name
        if name in _VALUES:
            stack.append(_Value(1 + (len(argument) // TEXT if isinstance(argument, str) else 0)))
        elif name in _MADE_OF or name in _PUT_INTO:
            count = _MADE_OF.get(name) or _PUT_INTO.get(name)
            begin = len(stack) - count if count else marks.pop()
            parts = stack[begin:]
            del stack[begin:]
            if name in _MADE_OF:
                stack.append(_Value(1))
            stack[-1].take(parts, name.startswith("SETITEM"))
            if stack[-1].depth > DEEPEST:
                raise ValueError("nested too deeply")
            if stack[-1].size > most:
                raise ValueError("it unfolds to far more than it holds")
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            known[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            known[argument].shared = True
            stack.append(known[argument])
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"its operation {name} is none of plain values")

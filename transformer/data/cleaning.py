"""Characters that no vocabulary should hold: control characters and unusual white space."""

from __future__ import annotations

import re

_ODD = re.compile("[\x00-\x1f\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u2581\u3000\ufeff]")
_SPACES = re.compile("[\t\n\x0b\x0c\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_REPLACED = {c: None for c in (*range(0x20), *range(0x7F, 0xA0), 0xFEFF)}
_TRANSLATION: dict[int, str | None] = {
    **_REPLACED,
    # U+2581 is SentencePiece's own sign for a space; as text it would come back as one.
    0x2581: "_",
    **{c: " " for c in range(0x3001) if _SPACES.match(chr(c))},
}


def clean(text: str) -> str:
    """Take out control characters and turn odd white space into spaces; all else stays."""
    return text.translate(_TRANSLATION) if _ODD.search(text) else text

"""A finished sentence pair."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A sentence pair and the combinations of meanings it is made of."""

    english: str
    german: str
    combinations: tuple[str, ...]


def sentence(english: str, german: str, combinations: tuple[str, ...], end: str = ".") -> Example:
    """Both sides with a capital letter, punctuation at the word before it, and an end mark."""

    def finish(text: str) -> str:
        text = text.replace(" ,", ",")
        return text[0].upper() + text[1:] + end

    return Example(finish(english), finish(german), combinations)

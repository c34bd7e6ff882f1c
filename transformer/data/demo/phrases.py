"""Noun phrases, each said in English and in German (in every case) from one meaning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .inflection import (
    CASES,
    POSSESSIVES,
    PRONOUNS,
    adjective_ending,
    article,
    decline,
    der_word,
    ein_word,
    number,
)
from .lexicon import Adjective, Noun


def join(*words: str) -> str:
    """The words with single spaces; a comma stands at the word before it."""
    return " ".join(word for word in words if word).replace(" ,", ",")


@dataclass(frozen=True)
class Phrase:
    """Something that can be subject or object. `german` holds nominative, accusative, dative, genitive.

    `person` is 0 I, 1 you, 2 he, 3 we, 4 they; `name` identifies its meaning for the held-out split.
    """

    english: str
    english_object: str
    german: tuple[str, str, str, str]
    person: int
    name: str
    definite: bool = True
    pronoun: bool = False

    def case(self, case: str) -> str:
        return self.german[CASES.index(case)]


NOTHING = Phrase("", "", ("",) * 4, 2, "?", definite=True, pronoun=True)
WHO = Phrase("who", "", ("wer", "wen", "wem", ""), 2, "who")


def gap(person: int, name: str) -> Phrase:
    """The place a relative or question word has left empty."""
    return Phrase("", "", ("",) * 4, person, name, pronoun=True)


def pronoun(english: str) -> Phrase:
    accusative, person, ich, mich, mir = PRONOUNS[english]
    return Phrase(english, accusative, (ich, mich, mir, ""), person, english, pronoun=True)


def proper(name: str) -> Phrase:
    return Phrase(name, name, (name, name, name, name + "s"), 2, name)


@lru_cache(maxsize=1 << 16)
def noun_phrase(
    noun: Noun,
    determiner: str,
    adjective: Adjective | None = None,
    *,
    plural: bool = False,
    count: int = 0,
    owner: Phrase | None = None,
    negated: bool = False,
) -> Phrase:
    """`determiner`: the, this, every, a, no, bare, many, count, owner, or a possessive (my, ...).

    `negated` says `kein` for `a` and for a bare noun: the English verb carries the *not*.
    """
    agreement = "p" if plural else noun.gender
    adjective_english = adjective.english if adjective else ""
    head_english = join(adjective_english, noun.english_plural if plural else noun.english)
    indefinite = "kein" if negated or determiner == "no" else "ein"
    after, ends = "", "weak"
    if (
        determiner == "a"
        or (determiner == "bare" and negated)
        or determiner in POSSESSIVES
        or determiner == "no"
    ):
        ends = "mixed"
    elif determiner in ("bare", "many", "count") or (
        determiner == "owner" and owner and owner.english == owner.name
    ):
        ends = "strong"

    def opening(case: str) -> str:
        if determiner == "the":
            return article(agreement, case)
        if determiner in ("this", "every"):
            return der_word({"this": "dies", "every": "jed"}[determiner], agreement, case)
        if determiner in ("a", "no"):
            return ein_word(indefinite, agreement, case)
        if determiner in POSSESSIVES:
            return ein_word(POSSESSIVES[determiner], agreement, case)
        if determiner == "bare":
            return ein_word("kein", agreement, case) if negated else ""
        if determiner == "many":
            return der_word("viel", agreement, case)
        if determiner == "count":
            return number(count)[1]
        assert owner is not None, determiner
        return owner.case("gen") if ends == "strong" else article(agreement, case)

    if determiner == "owner" and owner is not None and ends == "weak":
        after = owner.case("gen")
    forms = []
    for case in CASES:
        described = adjective.stem + adjective_ending(ends, agreement, case) if adjective else ""
        forms.append(join(opening(case), described, decline(noun, plural, case), after))
    if determiner == "a":
        opening_english = "an" if head_english[0] in "aeiou" else "a"
    elif determiner == "this":
        opening_english = "these" if plural else "this"
    elif determiner == "count":
        opening_english = number(count)[0]
    elif determiner == "owner":
        assert owner is not None, determiner
        opening_english = f"{owner.english}'s"
    else:
        opening_english = "" if determiner == "bare" else determiner
    english = join(opening_english, head_english)
    definite = determiner not in ("a", "no", "bare", "many", "count", "every")
    return Phrase(
        english, english, (forms[0], forms[1], forms[2], forms[3]), 4 if plural else 2, noun.english, definite
    )

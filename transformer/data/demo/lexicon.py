"""What the grammar knows of each word: gender, plural, principal parts, comparatives."""

from __future__ import annotations

from dataclasses import dataclass

from .words import (
    ADJECTIVE_TABLES,
    CITIES,
    COUNT_NOUN_TABLES,
    DEPARTURE_TABLE,
    MASS_NOUN_TABLES,
    NAMES,
    PLACE_TABLE,
    VERB_TABLE,
)

__all__ = ["CITIES", "NAMES", "NOUNS", "PLACES", "TRAVEL_VERBS", "VERBS", "adjectives_of"]


@dataclass(frozen=True, eq=False)
class Noun:
    """`gender` is m, f or n; `kind` a group of nouns; `weak` the n-declension (der Junge, den Jungen)."""

    english: str
    english_plural: str
    german: str
    german_plural: str
    gender: str
    kind: str
    weak: bool = False
    mass: bool = False


@dataclass(frozen=True, eq=False)
class Place:
    """A noun with the prepositions German chooses: where (dative), where to (accusative, or zu + dative)."""

    noun: Noun
    english_at: str
    german_at: str
    german_to: str


@dataclass(frozen=True, eq=False)
class Verb:
    """`particle` is an English adverb that a pronoun precedes (*picks me up*), `tail` a fixed rest
    (*waits for*); `changed` is the stem of du and er (*sieh-*), `prefix` the separable prefix,
    `auxiliary` haben or sein.

    `frame`: `i` no object, `a` accusative, `d` dative, `b` both, `p` preposition, `g` a goal.
    `objects`: the kinds of noun that make a sensible object; `preposition`: German, with its case.
    """

    english: str
    english_past: str
    english_participle: str
    particle: str
    tail: str
    german: str
    changed: str
    prefix: str
    german_participle: str
    auxiliary: str
    reflexive: bool
    stative: bool
    frame: str
    objects: str = ""
    preposition: str = ""
    case: str = ""


@dataclass(frozen=True, eq=False)
class Adjective:
    """`stem` takes endings (teur-), `german` stands alone (teuer); comparatives are empty where unused."""

    english: str
    german: str
    stem: str
    english_comparative: str = ""
    german_comparative: str = ""


_ADJECTIVE_GROUP = {"person": "person", "animal": "animal", "food": "food", "meal": "food",
                    "drink": "food", "place": "place", "text": "text", "transport": "place"}  # fmt: skip


def _space(word: str) -> str:
    return word.replace("_", " ")


def _cells(table: str) -> list[str]:
    return [cell.strip() for line in table.splitlines() for cell in line.split("|") if cell.strip()]


def _nouns() -> dict[str, tuple[Noun, ...]]:
    nouns = {}
    for kind, table in COUNT_NOUN_TABLES.items():
        rows = [[_space(word) for word in cell.split()] for cell in _cells(table)]
        nouns[kind] = tuple(Noun(r[0], r[1], r[2], r[3], r[4], kind, weak=len(r) == 6) for r in rows)
    for kind, table in MASS_NOUN_TABLES.items():
        rows = [cell.split() for cell in _cells(table)]
        nouns[kind] = tuple(Noun(r[0], "", r[1], "", r[2], kind, mass=True) for r in rows)
    return nouns


def _places() -> tuple[Place, ...]:
    rows = [cell.split() for cell in _cells(PLACE_TABLE)]
    return tuple(Place(Noun(r[0], "", r[1], "", r[2], "place"), r[3], r[4], r[5]) for r in rows)


def _verb(line: str) -> Verb:
    english, past, german, changed, participle, auxiliary, frame, objects = line.split("; ")
    head, _, particle = english.replace("!", "").partition("|")
    head, _, tail = head.partition(" ")
    english_past, english_participle = past.split()
    prefix, _, bare = german.removeprefix("sich ").rpartition("+")
    kind, preposition, case = [*frame.split(), "", ""][:3]
    return Verb(
        english=head,
        english_past=english_past,
        english_participle=english_participle,
        particle=particle,
        tail=tail,
        german=bare,
        changed="" if changed == "-" else changed,
        prefix=prefix,
        german_participle=participle,
        auxiliary="sein" if auxiliary == "s" else "haben",
        reflexive=german.startswith("sich "),
        stative="!" in english,
        frame=kind,
        objects="" if objects == "-" else objects,
        preposition=preposition,
        case=case,
    )


def _verbs(table: str) -> tuple[Verb, ...]:
    return tuple(_verb(line.strip()) for line in table.strip().splitlines())


def _adjectives(table: str) -> tuple[Adjective, ...]:
    adjectives = []
    for cell in _cells(table):
        english, german, stem, more, mehr = (part.strip() for part in cell.split(";"))
        adjectives.append(Adjective(english, german, german if stem == "-" else stem, more, mehr))
    return tuple(adjectives)


NOUNS = _nouns()
PLACES = _places()
VERBS = _verbs(VERB_TABLE)
TRAVEL_VERBS = _verbs(DEPARTURE_TABLE)
_BY_GROUP = {group: _adjectives(table) for group, table in ADJECTIVE_TABLES.items()}


def adjectives_of(noun: Noun) -> tuple[Adjective, ...]:
    """The adjectives that make sense with a noun."""
    return _BY_GROUP[_ADJECTIVE_GROUP.get(noun.kind, "thing")]

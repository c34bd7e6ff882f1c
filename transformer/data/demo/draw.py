"""Draw the parts of a sentence: noun phrases, times, places, clauses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from .clauses import Clause, Copula
from .inflection import PRONOUNS, clock, number
from .lexicon import CITIES, NAMES, NOUNS, PLACES, VERBS, Adjective, Noun, Place, Verb, adjectives_of
from .phrases import Phrase, join, noun_phrase, pronoun, proper

T = TypeVar("T")
Pair = tuple[str, str]

_DAYS = (("Monday", "Montag"), ("Tuesday", "Dienstag"), ("Wednesday", "Mittwoch"), ("Thursday", "Donnerstag"),
         ("Friday", "Freitag"), ("Saturday", "Samstag"), ("Sunday", "Sonntag"))  # fmt: skip
_MONTHS = (("January", "Januar"), ("March", "März"), ("May", "Mai"), ("July", "Juli"), ("October", "Oktober"),
           ("December", "Dezember"))  # fmt: skip
_PRESENT = (("today", "heute"), ("every day", "jeden Tag"), ("in the morning", "am Morgen"),
            ("in the evening", "am Abend"), ("at the weekend", "am Wochenende"), ("in winter", "im Winter"),
            ("in summer", "im Sommer"), ("now", "jetzt"))  # fmt: skip
_FUTURE = (("tomorrow", "morgen"), ("next week", "nächste Woche"), ("soon", "bald"),
           ("tomorrow evening", "morgen Abend"))  # fmt: skip
_PAST = (("yesterday", "gestern"), ("last week", "letzte Woche"), ("yesterday evening", "gestern Abend"),
         ("last year", "letztes Jahr"))  # fmt: skip
_UNITS = (("minutes", "Minuten"), ("days", "Tagen"), ("weeks", "Wochen"), ("years", "Jahren"))
_OFTEN = (
    ("often", "oft"),
    ("always", "immer"),
    ("rarely", "selten"),
    ("sometimes", "manchmal"),
    ("never", "nie"),
)
PEOPLE = NOUNS["person"]
_COMPARED = tuple(n for nouns in NOUNS.values() for n in nouns) + tuple(place.noun for place in PLACES)
OBJECTS = {v: tuple(n for kind in v.objects.split() for n in NOUNS.get(kind, ())) for v in VERBS}

_TENSES = (
    "present", "present", "present", "progressive", "past", "past", "past", "already", "yet", "likes",
    "can", "must", "wants to", "may", "should", "will", "will", "would like to",
)  # fmt: skip

_WILLED = ("progressive", "already", "likes", "yet", "wants to", "may", "would like to")


class Draw:
    """Chance, words, adverbials and clauses; the same seed gives the same draws everywhere.

    Only `random.Random.random` is used: its stream is promised to stay, `choice`'s is not.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    # Chance

    def _pick(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]

    def _chance(self, probability: float) -> bool:
        return self._random() < probability

    def _between(self, low: int, high: int) -> int:
        return low + int(self._random() * (high - low + 1))

    # Words

    def _adjective(self, noun: Noun, probability: float = 0.3) -> Adjective | None:
        return self._pick(adjectives_of(noun)) if self._chance(probability) else None

    def _person(self, *, every: bool = True) -> Phrase:
        """A person as subject."""
        roll = self._random()
        if roll < 0.3:
            return pronoun(self._pick(tuple(PRONOUNS)))
        if roll < 0.42:
            return proper(self._pick(NAMES))
        noun = self._pick(PEOPLE)
        if every and roll < 0.46:
            return noun_phrase(noun, self._pick(("every", "no")))
        return self._described(noun)

    def _known_person(self) -> Phrase:
        roll = self._random()
        if roll < 0.3:
            return pronoun(self._pick(tuple(PRONOUNS)))
        if roll < 0.42:
            return proper(self._pick(NAMES))
        return self._known(self._pick(PEOPLE))

    def _known(self, noun: Noun) -> Phrase:
        """A definite noun phrase: the, this, my, Anna's, the teacher's."""
        roll = self._random()
        adjective = self._adjective(noun)
        plural = not noun.mass and noun.kind != "place" and self._chance(0.2)
        if roll < 0.6 or noun.mass:
            return noun_phrase(noun, "the", adjective, plural=plural)
        if roll < 0.7:
            return noun_phrase(noun, "this", adjective, plural=plural)
        if roll < 0.9:
            possessive = self._pick(("my", "your", "his", "her", "our", "their"))
            return noun_phrase(noun, possessive, adjective, plural=plural)
        if roll < 0.95:
            return noun_phrase(noun, "owner", adjective, plural=plural, owner=proper(self._pick(NAMES)))
        owner = self._pick(PEOPLE)
        return noun_phrase(noun, "owner", adjective, plural=plural, owner=noun_phrase(owner, "the"))

    def _described(self, noun: Noun) -> Phrase:
        """Any noun phrase that can be subject."""
        if self._chance(0.7):
            return self._known(noun)
        return self._new(noun, negated=False)

    def _new(self, noun: Noun, *, negated: bool) -> Phrase:
        """An indefinite noun phrase; under negation only those that take `kein`."""
        adjective, roll = self._adjective(noun), self._random()
        if noun.mass:
            return noun_phrase(noun, "bare", adjective, negated=negated)
        if roll < 0.65:
            return noun_phrase(noun, "a", adjective, negated=negated)
        if negated:
            return noun_phrase(noun, "bare", adjective, plural=True, negated=True)
        if roll < 0.8:
            return noun_phrase(noun, "bare", adjective, plural=True)
        if roll < 0.93:
            return noun_phrase(noun, "count", adjective, plural=True, count=self._between(2, 12))
        return noun_phrase(noun, "many", adjective, plural=True)

    def _object(self, noun: Noun, *, negated: bool) -> Phrase:
        if noun.kind == "person" and self._chance(0.5):
            return self._known_person()
        return self._known(noun) if self._chance(0.5) else self._new(noun, negated=negated)

    # Adverbials

    def _hour(self) -> tuple[int, int]:
        return self._between(1, 12), self._between(0, 11) * 5

    def _time(self, tense: str, *, negated: bool) -> tuple[Pair, str]:
        """A time that goes with the tense, and the combination a clock time is."""
        roll = self._random()
        if tense in ("progressive", "already", "yet", "likes"):
            return ("", ""), ""
        if roll < 0.3 and not negated:
            hour, minute = self._hour()
            english, german = clock(hour, minute)
            return (f"at {english}", f"um {german}"), f"{hour}:{minute}"
        if roll < 0.6:
            day, tag = self._pick(_DAYS)
            if self._chance(0.3):
                part, teil = self._pick((("morning", "morgen"), ("evening", "abend")))
                return (f"on {day} {part}", f"am {tag}{teil}"), ""
            return (f"on {day}", f"am {tag}"), ""
        if roll < 0.7:
            month, monat = self._pick(_MONTHS)
            return (f"in {month}", f"im {monat}"), ""
        if tense == "present" or (tense not in ("past", "will") and self._chance(0.5)):
            return self._pick(_PRESENT), ""
        count = self._between(2, 12)
        unit, einheit = self._pick(_UNITS)
        if tense == "past":
            ago = (f"{number(count)[0]} {unit} ago", f"vor {number(count)[1]} {einheit}")
            return (ago if self._chance(0.4) else self._pick(_PAST)), ""
        later = (f"in {number(count)[0]} {unit}", f"in {number(count)[1]} {einheit}")
        return (later if self._chance(0.4) else self._pick(_FUTURE)), ""

    def _at(self, place: Place) -> Pair:
        return self._preposition(place, place.english_at, place.german_at, "dat")

    def _to(self, place: Place) -> Pair:
        return self._preposition(place, "to", place.german_to, "dat" if place.german_to == "zu" else "acc")

    def _preposition(self, place: Place, english: str, german: str, case: str) -> Pair:
        """`in the old garden`, `im alten Garten`: in, an and zu melt with dem, das and der."""
        phrase = noun_phrase(place.noun, "the", self._adjective(place.noun, 0.15))
        words = f"{german} {phrase.case(case)}"
        for full, short in (("in dem ", "im "), ("in das ", "ins "), ("an dem ", "am "), ("an das ", "ans "),
                            ("zu dem ", "zum "), ("zu der ", "zur ")):  # fmt: skip
            if words.startswith(full):
                words = short + words[len(full) :]
        return join(english, phrase.english), words

    # Clauses

    def _clause(
        self,
        subject: Phrase | None = None,
        *,
        tenses: Sequence[str] = (),
        verb: Verb | None = None,
        plain: bool = False,
        affirm: bool = False,
        to_place: bool = False,
    ) -> tuple[Clause, tuple[str, ...]]:
        """A clause and its combinations. `plain` leaves out times and most places, `affirm` negations."""
        tense = self._pick(tenses or _TENSES)
        verb = verb or self._pick(VERBS)
        whole = subject is None
        subject = subject or self._person()
        if verb.stative and tense in _WILLED:
            tense = "present"
        if verb.english == verb.english_past and tense == "past":
            tense = "can"
        refusable = not subject.german[0].startswith(("kein", "jede"))
        negated = (
            tense not in ("must", "already", "may", "likes", "would like to")
            and refusable
            and not affirm
            and self._chance(0.15)
        )
        if tense == "yet":
            negated = True
            if not refusable:
                tense, negated = "already", False
        patient = recipient = None
        if verb.frame in "adbp":
            noun = self._pick(OBJECTS[verb])
            new_allowed = tense != "yet" and verb.frame != "p"
            patient = self._object(noun, negated=negated) if new_allowed else self._known_object(noun)
            patient = self._not_oneself(subject, patient, noun)
        if verb.frame == "b":
            recipient = self._not_oneself(subject, self._known_person(), self._pick(PEOPLE))
        place: Pair = ("", "")
        where = ""
        if verb.frame == "g" or (verb.frame == "i" and verb.objects and (verb.stative or self._chance(0.6))):
            place, where = self._where(verb, to_place=to_place)
        elif verb.frame == "a" and not plain and self._chance(0.12):
            place = self._at(self._pick(PLACES))
        time, hour = ("", ""), ""
        often: Pair = ("", "")
        if not plain and not (verb.stative and tense == "present") and self._chance(0.5):
            time, hour = self._time(tense, negated=negated)
        elif tense == "present" and not negated and refusable and whole and self._chance(0.25):
            often = self._pick(_OFTEN)
        clause = Clause(
            subject, verb, tense, patient, recipient, time, place, often, negated,
            to_recipient=self._chance(0.4), where=where,
        )  # fmt: skip
        return clause, (clause.combination, hour) if hour else (clause.combination,)

    def _known_object(self, noun: Noun) -> Phrase:
        return self._known_person() if noun.kind == "person" and self._chance(0.5) else self._known(noun)

    def _not_oneself(self, subject: Phrase, other: Phrase, noun: Noun) -> Phrase:
        """`I see me` is not said; neither are `we` and `me` together."""
        same = (
            subject.pronoun
            and other.pronoun
            and (subject.name == other.name or {subject.name, other.name} <= {"I", "we"})
        )
        return noun_phrase(noun, "the") if same else other

    def _where(self, verb: Verb, *, to_place: bool) -> tuple[Pair, str]:
        if not to_place and self._pick(verb.objects.split()) == "city":
            city, stadt = self._pick(CITIES)
            going = verb.frame == "g"
            return (f"{'to' if going else 'in'} {city}", f"{'nach' if going else 'in'} {stadt}"), city
        place = self._pick(PLACES)
        return (self._to(place) if verb.frame == "g" else self._at(place)), place.noun.english

    def _quality(self, noun: Noun, subject: Phrase) -> Adjective:
        """An adjective to say of the subject, other than one it already has (*the old car is old*)."""
        said = subject.english.split()
        return self._pick([a for a in adjectives_of(noun) if a.english not in said])

    def _copula(self, *, people: bool = False) -> Copula:
        noun = self._pick(PEOPLE if people else _COMPARED)
        past, negated = self._chance(0.25), self._chance(0.15)
        subject = self._known_person() if noun.kind == "person" else self._known(noun)
        adjective = self._quality(noun, subject)
        predicate, name = (adjective.english, adjective.german), adjective.english
        others = [n for n in NOUNS.get(noun.kind, ()) if n.english != subject.name]
        if adjective.english_comparative and others and self._chance(0.35):
            other = self._pick(others)
            phrase = noun_phrase(other, "the")
            predicate = (
                f"{adjective.english_comparative} than {phrase.english}",
                f"{adjective.german_comparative} als {phrase.case('nom')}",
            )
            name = f"{adjective.english_comparative} {other.english}"
        return Copula(subject, predicate, name, past, negated)

"""Clauses, each said in English and in German from one meaning: the word order of both lives here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .inflection import REFLEXIVE, conjugate, imperative, participle, third_person
from .lexicon import Verb
from .phrases import Phrase, join


class Said(Protocol):
    """What every kind of clause can do, so that sentences can combine them freely."""

    @property
    def combination(self) -> str: ...
    def english(self) -> str: ...
    def english_question(self, front: str = "") -> str: ...
    def german(self, front: str | None = None) -> str: ...
    def german_last(self, opener: str) -> str: ...


# tense: (english auxiliary for he, for the others; german auxiliary)
_MODALS = {
    "can": ("can", "can", "können"),
    "must": ("must", "must", "müssen"),
    "may": ("may", "may", "dürfen"),
    "should": ("should", "should", "sollten"),
    "will": ("will", "will", "werden"),
    "would like to": ("would like to", "would like to", "möchten"),
    "wants to": ("wants to", "want to", "wollen"),
}


@dataclass(frozen=True)
class Clause:
    """Subject, verb, objects and adverbials; `time`, `place` and `often` are (English, German) pairs."""

    subject: Phrase
    verb: Verb
    tense: str = "present"
    object: Phrase | None = None
    recipient: Phrase | None = None
    time: tuple[str, str] = ("", "")
    place: tuple[str, str] = ("", "")
    often: tuple[str, str] = ("", "")
    negated: bool = False
    to_recipient: bool = False
    where: str = ""

    @property
    def combination(self) -> str:
        """Who does what to what (or where): the unit the held-out split is made of."""
        verb = join(self.verb.english, self.verb.particle, self.verb.tail)
        return f"{self.subject.name}|{verb}|{self.object.name if self.object else self.where}"

    # English

    def _auxiliary(self) -> tuple[str, str]:
        """(auxiliary with its agreement, form of the verb); the auxiliary is empty in plain statements."""
        he = self.subject.person == 2
        verb = self.verb.english
        if self.tense == "progressive":
            return ("am", "is", "are")[0 if self.subject.person == 0 else 1 if he else 2], participle(verb)
        if self.tense == "past":
            return "did", verb
        if self.tense in ("already", "yet"):
            return "has" if he else "have", self.verb.english_participle
        if self.tense in _MODALS and self.tense != "wants to":
            return self.tense.split()[0], verb
        return "does" if he else "do", verb

    def _english_rest(self, verb: str) -> str:
        """The verb with objects and adverbials: *picks me up at the station on Monday*."""
        v, patient = self.verb, self.object
        if patient is None:
            words = join(verb, v.particle, v.tail)
        elif self.recipient is not None:
            if self.to_recipient:
                words = join(verb, patient.english_object, "to", self.recipient.english_object)
            else:
                words = join(verb, self.recipient.english_object, patient.english_object)
        elif patient.pronoun:
            words = join(verb, v.tail, patient.english_object, v.particle)
        else:
            words = join(verb, v.particle, v.tail, patient.english_object)
        return join(words, self.place[0], self.time[0])

    def _wish(self) -> str:
        return {"wants to": "want to", "likes": "like to", "would like to": "like to"}.get(self.tense, "")

    def english(self) -> str:
        """The statement: *the man does not often buy apples at the market*."""
        auxiliary, verb = self._auxiliary()
        he, adverb = self.subject.person == 2, self.often[0]
        if self.tense in ("already", "yet"):
            adverb = "already" if self.tense == "already" else "not yet"
        wish = self._wish()
        if self.negated and self.tense != "yet":
            refused = "cannot" if auxiliary == "can" else f"{auxiliary} not"
            return join(self.subject.english, refused, wish, self._english_rest(verb))
        if auxiliary in ("do", "does"):
            auxiliary = ""
            if wish:
                wish = f"{third_person(wish.split()[0])} to" if he else wish
            elif he:
                verb = third_person(verb)
        elif auxiliary == "did":
            auxiliary, verb = "", self.verb.english_past
        return join(self.subject.english, auxiliary, adverb, wish, self._english_rest(verb))

    def english_question(self, front: str = "") -> str:
        auxiliary, verb = self._auxiliary()
        adverb = "already" if self.tense == "already" else self.often[0]
        return join(front, auxiliary, self.subject.english, adverb, self._wish(), self._english_rest(verb))

    def english_infinitive(self) -> str:
        return self._english_rest(self.verb.english)

    # German

    def _finite(self) -> str:
        person = self.subject.person
        if self.tense in _MODALS:
            return conjugate(_MODALS[self.tense][2], person)
        if self.tense in ("past", "already", "yet"):
            return conjugate(self.verb.auxiliary, person)
        return conjugate(self.verb.german, person, self.verb.changed)

    def _closing(self) -> str:
        """What stands at the end of a main clause besides the prefix: participle or infinitive."""
        if self.tense in _MODALS:
            return self.verb.prefix + self.verb.german
        return self.verb.german_participle if self.tense in ("past", "already", "yet") else ""

    def _middle(self, with_time: bool = True) -> str:
        """Pronouns, recipient, known objects, time, adverb, new objects, nicht, preposition, place.

        A known object stands before the time and a new one after it: *kauft den Apfel am Montag*, but
        *kauft am Montag einen Apfel*.
        """
        v, patient = self.verb, self.object
        governed = known = new = ""
        if patient is not None:
            case = {"d": "dat", "p": v.case}.get(v.frame, "acc")
            if v.frame == "p":
                governed = join(v.preposition, patient.case(case))
            elif patient.definite:
                known = patient.case(case)
            else:
                new = patient.case(case)
        refuse = "nicht" if self.negated and not new.startswith("kein") else ""
        adverb = {"progressive": "gerade", "already": "schon", "yet": "noch", "likes": "gern"}.get(
            self.tense, ""
        )
        return join(
            REFLEXIVE[self.subject.person] if v.reflexive else "",
            self.recipient.case("dat") if self.recipient else "",
            known, self.time[1] if with_time else "", self.often[1], adverb, new, refuse,
            governed, self.place[1],
        )  # fmt: skip

    def german(self, front: str | None = None) -> str:
        """The main clause: `front` or the subject, then the finite verb, ..., then prefix and closing."""
        simple = not self._closing()
        end = self.verb.prefix if simple else self._closing()
        fronted = front is not None and front == self.time[1] and bool(front)
        subject = self.subject.case("nom")
        if front is None:
            return join(subject, self._finite(), self._middle(), end)
        return join(front, self._finite(), subject, self._middle(with_time=not fronted), end)

    def german_last(self, opener: str) -> str:
        """The subordinate clause: the finite verb stands last, its prefix joined to it again."""
        closing = self._closing()
        last = join(closing, self._finite()) if closing else self.verb.prefix + self._finite()
        return join(opener, self.subject.case("nom"), self._middle(), last)

    def german_command(self) -> str:
        """`mach das Fenster auf`."""
        return join(imperative(self.verb), self._middle(), self.verb.prefix)

    def german_infinitive(self) -> str:
        """`das Fenster aufzumachen`: zu stands between prefix and verb."""
        v = self.verb
        return join(self._middle(), f"{v.prefix}zu{v.german}" if v.prefix else f"zu {v.german}")


@dataclass(frozen=True)
class Copula:
    """Subject and predicate: *the car is expensive*, *the farmer was older than the baker*."""

    subject: Phrase
    predicate: tuple[str, str]
    name: str
    past: bool = False
    negated: bool = False

    @property
    def combination(self) -> str:
        return f"{self.subject.name}|is|{self.name}"

    def _be(self) -> str:
        person = self.subject.person
        if self.past:
            return "was" if person in (0, 2) else "were"
        return ("am", "are", "is", "are", "are")[person]

    def _sein(self) -> str:
        if self.past:
            return ("war", "warst", "war", "waren", "waren")[self.subject.person]
        return conjugate("sein", self.subject.person)

    def english(self) -> str:
        return join(self.subject.english, self._be(), "not" if self.negated else "", self.predicate[0])

    def english_question(self, front: str = "") -> str:
        return join(front, self._be(), self.subject.english, self.predicate[0])

    def _rest(self) -> str:
        return join("nicht" if self.negated else "", self.predicate[1])

    def german(self, front: str | None = None) -> str:
        if front is None:
            return join(self.subject.case("nom"), self._sein(), self._rest())
        return join(front, self._sein(), self.subject.case("nom"), self._rest())

    def german_last(self, opener: str) -> str:
        return join(opener, self.subject.case("nom"), self._rest(), self._sein())

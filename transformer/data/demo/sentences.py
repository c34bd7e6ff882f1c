"""Compose sentences: statements, questions, subordinate clauses, commands, prices, times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .clauses import Clause, Copula, Said
from .draw import OBJECTS, PEOPLE, Draw
from .example import Example, sentence
from .inflection import article, clock, conjugate, number, third_person
from .lexicon import CITIES, NOUNS, PLACES, TRAVEL_VERBS, VERBS, Noun
from .phrases import NOTHING, WHO, Phrase, gap, noun_phrase, pronoun

_REPORTS = (
    ("know", "wissen"), ("hope", "hoffen"), ("believe", "glauben"), ("say", "sagen"), ("think", "denken"),
)  # fmt: skip
_WEATHER = (
    ("it is raining", "es regnet"), ("it is snowing", "es schneit"),
    ("the sun is shining", "die Sonne scheint"),
)  # fmt: skip
_ATTEMPTS = (
    ("try", "versuchen", ""), ("hope", "hoffen", ""), ("forget", "vergessen", "vergiss"),
    ("promise", "versprechen", "versprich"),
)  # fmt: skip
_CLOCK_OPENINGS = (("it is", "es ist"), ("it is already", "es ist schon"), ("it is only", "es ist erst"))
_PRICED = tuple(n for k in ("text", "device", "vehicle", "clothing", "parcel", "thing") for n in NOUNS[k])
_INFINITIVES = tuple(v for v in VERBS if v.frame in "abg" and not v.stative)
_GOING = tuple(v for v in VERBS if v.frame == "g" and "place" in v.objects)
_TRANSITIVE = tuple(v for v in VERBS if v.frame in "ad")
_RELATED = tuple(v for v in _TRANSITIVE if not v.tail and not all(n.mass for n in OBJECTS[v]))

_ASKED = (
    "present", "present", "past", "past", "can", "must", "will", "may", "wants to", "progressive", "should",
)  # fmt: skip
_SIMPLE = (
    "present", "present", "past", "can", "must", "wants to", "will", "progressive", "already", "likes",
)  # fmt: skip
_CONDITION = ("present", "present", "can", "must", "wants to")
_CONJUNCTIONS = (
    ("because", "weil", _SIMPLE), ("although", "obwohl", _SIMPLE), ("when", "wenn", _CONDITION),
    ("if", "wenn", _CONDITION), ("while", "während", _CONDITION), ("before", "bevor", _CONDITION),
)  # fmt: skip


class Writer(Draw):
    """Draws examples: `example()` picks a kind of sentence by its weight and fills it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._kinds: list[Callable[[], Example]] = []
        for kind, weight in (
            (self.statement, 36), (self.question, 10), (self.wh_question, 10), (self.subordinate, 14),
            (self.reported, 8), (self.relative, 8), (self.purpose, 5), (self.command, 4),
            (self.description, 5), (self.price, 4), (self.age, 3), (self.time, 3), (self.there_is, 4),
            (self.joined, 4), (self.departure, 4),
        ):  # fmt: skip
            self._kinds += [kind] * weight

    def example(self) -> Example:
        return self._pick(self._kinds)()

    def statement(self) -> Example:
        """Sometimes the time comes first, and the verb stays second: *am Montag kauft der Bauer ...*."""
        clause, parts = self._clause()
        if clause.time[0] and self._chance(0.4):
            return sentence(_time_first(clause), clause.german(clause.time[1]), parts)
        return sentence(clause.english(), clause.german(), parts)

    def question(self) -> Example:
        if self._chance(0.15):
            copula = replace(self._copula(), negated=False)
            return sentence(copula.english_question(), copula.german(""), (copula.combination,), "?")
        clause, parts = self._clause(self._person(every=False), tenses=_ASKED, affirm=True)
        return sentence(clause.english_question(), clause.german(""), parts, "?")

    def wh_question(self) -> Example:
        """*Wann kaufst du ...?*, *Wer kauft ...?*, *Was kauft ...?*, *Wem hilft ...?*."""
        roll = self._random()
        if roll < 0.45:
            front, word = self._pick((("when", "wann"), ("why", "warum"), ("where", "wo")))
            subject, verb = self._person(every=False), self._pick(_TRANSITIVE if front == "where" else VERBS)
            clause, parts = self._clause(subject, tenses=_ASKED, plain=True, affirm=True, verb=verb)
            return sentence(clause.english_question(front), clause.german(word), parts, "?")
        verb = self._pick(_TRANSITIVE)
        if roll < 0.7:
            clause, parts = self._clause(WHO, tenses=_ASKED, affirm=True, verb=verb)
            return sentence(clause.english(), replace(clause, subject=NOTHING).german("wer"), parts, "?")
        clause, parts = self._clause(self._person(every=False), tenses=_ASKED, affirm=True, verb=verb)
        thing = verb.frame == "a" and self._pick(OBJECTS[verb]).kind != "person"
        front = "what" if thing else "whom"
        word = "was" if thing else "wem" if verb.frame == "d" else "wen"
        clause = replace(clause, object=gap(2, front))
        return sentence(
            clause.english_question(front), clause.german(word), (clause.combination, *parts[1:]), "?"
        )

    def subordinate(self) -> Example:
        """*..., weil das Kind schläft* and *Wenn das Kind schläft, liest die Frau*."""
        opener, word, tenses = self._pick(_CONJUNCTIONS)
        main: Clause | Copula
        if tenses is _SIMPLE and self._chance(0.6):
            main = self._copula(people=True)
            parts: tuple[str, ...] = (main.combination,)
        else:
            main, parts = self._clause(tenses=_SIMPLE, plain=True)
        if self._chance(0.15):
            inner_english, weather = self._pick(_WEATHER)
            inner_german = f"{word} {weather}"
        else:
            inner, inner_parts = self._clause(
                tenses=tenses, plain=self._chance(0.6), affirm=tenses is _CONDITION
            )
            inner_english, inner_german = inner.english(), inner.german_last(word)
            parts = (*inner_parts, *parts)
        if self._chance(0.5):
            english = f"{opener} {inner_english}, {main.english()}"
            return sentence(english, main.german(f"{inner_german} ,"), parts)
        return sentence(
            f"{main.english()} {opener} {inner_english}", f"{main.german()}, {inner_german}", parts
        )

    def reported(self) -> Example:
        """*Ich weiß, dass ...* and *Anna fragt, ob ...*."""
        speaker = self._person(every=False)
        he, subject = speaker.person == 2, speaker.case("nom")
        inner: Said
        if self._chance(0.2):
            inner = self._copula()
            parts: tuple[str, ...] = (inner.combination,)
        else:
            inner, parts = self._clause(plain=self._chance(0.5))
        if self._chance(0.3):
            if self._chance(0.5):
                english, german = "asks" if he else "ask", conjugate("fragen", speaker.person)
            else:
                english = "does not know" if he else "do not know"
                german = f"{conjugate('wissen', speaker.person)} nicht"
            return sentence(
                f"{speaker.english} {english} whether {inner.english()}",
                f"{subject} {german}, {inner.german_last('ob')}",
                parts,
            )
        verb, word = self._pick(_REPORTS)
        return sentence(
            f"{speaker.english} {third_person(verb) if he else verb} that {inner.english()}",
            f"{subject} {conjugate(word, speaker.person)}, {inner.german_last('dass')}",
            parts,
        )

    def relative(self) -> Example:
        """*Die Frau, die das Auto kauft, ist müde*; *das Buch, das ich lese, ist alt*."""
        plural = self._chance(0.2)
        if self._chance(0.5):
            noun = self._pick(PEOPLE)
            missing = gap(4 if plural else 2, noun.english)
            clause, parts = self._clause(missing, tenses=_SIMPLE, plain=True)
            english, case = "who", "nom"
        else:
            verb = self._pick(_RELATED)
            noun = self._pick([n for n in OBJECTS[verb] if not n.mass])
            subject = self._known_person()
            clause, _ = self._clause(subject, tenses=_SIMPLE, plain=True, affirm=True, verb=verb)
            clause = replace(clause, object=gap(2, noun.english))
            parts = (clause.combination,)
            english = "whom" if noun.kind == "person" else "that"
            case = "dat" if verb.frame == "d" else "acc"
        head = noun_phrase(noun, "the", self._adjective(noun, 0.15), plural=plural)
        opener = "denen" if plural and case == "dat" else article("p" if plural else noun.gender, case)
        described = replace(
            head,
            english=f"{head.english} {english} {clause.english()}",
            german=(f"{head.case('nom')}, {clause.german_last(opener)} ,", "", "", ""),
        )
        copula = self._plain_copula(noun, described)
        return sentence(copula.english(), copula.german(), (*parts, copula.combination))

    def _plain_copula(self, noun: Noun, subject: Phrase) -> Copula:
        adjective = self._quality(noun, subject)
        predicate = adjective.english, adjective.german
        return Copula(subject, predicate, adjective.english, past=self._chance(0.2))

    def purpose(self) -> Example:
        """*Er geht auf den Markt, um einen Apfel zu kaufen*; *er versucht, das Fenster aufzumachen*."""
        subject = self._person(every=False)
        attempt = self._chance(0.6)
        verb = self._pick(_INFINITIVES)
        while not attempt and verb.frame == "g":
            verb = self._pick(_INFINITIVES)
        aim, parts = self._clause(subject, tenses=("present",), plain=True, affirm=True, verb=verb)
        if attempt:
            english, word, changed = self._pick(_ATTEMPTS)
            english = third_person(english) if subject.person == 2 else english
            german = conjugate(word, subject.person, changed)
            return sentence(
                f"{subject.english} {english} to {aim.english_infinitive()}",
                f"{subject.case('nom')} {german}, {aim.german_infinitive()}",
                parts,
            )
        tenses = ("present", "will", "must")
        main, main_parts = self._clause(
            subject, tenses=tenses, plain=True, affirm=True, verb=self._pick(_GOING), to_place=True
        )
        english = f"{main.english()} to {aim.english_infinitive()}"
        return sentence(english, f"{main.german()}, um {aim.german_infinitive()}", (*main_parts, *parts))

    def command(self) -> Example:
        verb = self._pick(_INFINITIVES)
        clause, parts = self._clause(pronoun("you"), tenses=("present",), plain=True, affirm=True, verb=verb)
        english, german = clause.english_infinitive(), clause.german_command()
        if self._chance(0.5):
            return sentence(f"please {english}", f"bitte {german}", parts)
        return sentence(english, german, parts, "!")

    def description(self) -> Example:
        copula = self._copula()
        return sentence(copula.english(), copula.german(), (copula.combination,))

    def price(self) -> Example:
        noun, roll = self._pick(_PRICED), self._between(2, 108)
        amount = roll if roll < 100 else (roll - 99) * 100
        english, german = number(amount)
        subject = self._known(noun)
        verb = ("costs", "kostet") if subject.person == 2 else ("cost", "kosten")
        return sentence(
            f"{subject.english} {verb[0]} {english} euros",
            f"{subject.case('nom')} {verb[1]} {german} Euro",
            (f"{noun.english}|costs|{amount}",),
        )

    def age(self) -> Example:
        subject, years = self._known_person(), self._between(2, 99)
        english, german = number(years)
        predicate = f"{english} years old", f"{german} Jahre alt"
        copula = Copula(subject, predicate, f"age {years}", self._chance(0.2))
        return sentence(copula.english(), copula.german(), (copula.combination,))

    def time(self) -> Example:
        hour, minute = self._hour()
        english, german = clock(hour, minute)
        opening, beginning = self._pick(_CLOCK_OPENINGS)
        return sentence(f"{opening} {english}", f"{beginning} {german}", (f"{hour}:{minute}",))

    def there_is(self) -> Example:
        """*There are three dogs in the garden*: *im Garten sind drei Hunde*."""
        noun, place = self._pick(PEOPLE + NOUNS["animal"]), self._pick(PLACES)
        phrase, (where, wo) = self._new(noun, negated=False), self._at(place)
        be, sein = ("is", "ist") if phrase.person == 2 else ("are", "sind")
        return sentence(
            f"there {be} {phrase.english} {where}",
            f"{wo} {sein} {phrase.case('nom')}",
            (f"{noun.english}|is|{place.noun.english}",),
        )

    def joined(self) -> Example:
        first, parts = self._clause(tenses=_SIMPLE, plain=True)
        second, more = self._clause(tenses=_SIMPLE, plain=True)
        link, word = self._pick(((", but", ", aber"), (" and", " und")))
        return sentence(
            f"{first.english()}{link} {second.english()}",
            f"{first.german()}{word} {second.german()}",
            (*parts, *more),
        )

    def departure(self) -> Example:
        """*Der Zug nach Wien fährt um halb acht ab*."""
        noun, verb, (city, stadt) = (
            self._pick(NOUNS["transport"]),
            self._pick(TRAVEL_VERBS),
            self._pick(CITIES),
        )
        link, word = self._pick((("to", "nach"), ("from", "aus")))
        phrase = noun_phrase(noun, "the", plural=self._chance(0.15))
        subject = replace(
            phrase,
            english=f"{phrase.english} {link} {city}",
            german=(f"{phrase.case('nom')} {word} {stadt}", "", "", ""),
        )
        tense = self._pick(("present", "present", "past", "will", "must"))
        hour, minute = self._hour()
        english, german = clock(hour, minute)
        clause = Clause(subject, verb, tense, time=(f"at {english}", f"um {german}"), where=city)
        parts = (clause.combination, f"{hour}:{minute}")
        if self._chance(0.25):
            asked = replace(clause, time=("", ""))
            return sentence(asked.english_question("when"), asked.german("wann"), parts[:1], "?")
        if self._chance(0.2):
            return sentence(_time_first(clause), clause.german(clause.time[1]), parts)
        return sentence(clause.english(), clause.german(), parts)


def _time_first(clause: Clause) -> str:
    return f"{clause.time[0]}, {replace(clause, time=('', '')).english()}"

"""Inflect English and German words: agreement, case endings, numbers and clock times spelled out."""

from __future__ import annotations

from functools import cache

from .lexicon import Noun, Verb

CASES = ("nom", "acc", "dat", "gen")
Agreement = str  # m, f, n or p (plural)

# Endings of der-words (dies-, jed-, viel-) by agreement and case.
_DER = {
    "m": ("er", "en", "em", "es"),
    "f": ("e", "e", "er", "er"),
    "n": ("es", "es", "em", "es"),
    "p": ("e", "e", "en", "er"),
}
_ARTICLE = {
    "m": ("der", "den", "dem", "des"),
    "f": ("die", "die", "der", "der"),
    "n": ("das", "das", "dem", "des"),
    "p": ("die", "die", "den", "der"),
}
# Ein-words (ein, kein, mein) lack an ending in three places, where the adjective shows the gender instead.
_EIN = {**_DER, "m": ("", "en", "em", "es"), "n": ("", "", "em", "es")}
_WEAK = {
    "m": ("e", "en", "en", "en"),
    "f": ("e", "e", "en", "en"),
    "n": ("e", "e", "en", "en"),
    "p": ("en",) * 4,
}
_MIXED = {**_WEAK, "m": ("er", "en", "en", "en"), "n": ("es", "es", "en", "en")}
_STRONG = {**_DER, "m": ("er", "en", "em", "en"), "n": ("es", "es", "em", "en")}
_ADJECTIVE = {"weak": _WEAK, "mixed": _MIXED, "strong": _STRONG}

PRONOUNS = {
    # english: (english object, agreement index, german nom, acc, dat)
    "I": ("me", 0, "ich", "mich", "mir"),
    "you": ("you", 1, "du", "dich", "dir"),
    "he": ("him", 2, "er", "ihn", "ihm"),
    "she": ("her", 2, "sie", "sie", "ihr"),
    "we": ("us", 3, "wir", "uns", "uns"),
    "they": ("them", 4, "sie", "sie", "ihnen"),
}
REFLEXIVE = ("mich", "dich", "sich", "uns", "sich")
POSSESSIVES = {"my": "mein", "your": "dein", "his": "sein", "her": "ihr", "our": "unser", "their": "ihr"}

# ich, du, er; wir and sie share the fourth form.
IRREGULAR = {
    "sein": ("bin", "bist", "ist", "sind"),
    "haben": ("habe", "hast", "hat", "haben"),
    "werden": ("werde", "wirst", "wird", "werden"),
    "können": ("kann", "kannst", "kann", "können"),
    "müssen": ("muss", "musst", "muss", "müssen"),
    "dürfen": ("darf", "darfst", "darf", "dürfen"),
    "sollten": ("sollte", "solltest", "sollte", "sollten"),
    "wollen": ("will", "willst", "will", "wollen"),
    "möchten": ("möchte", "möchtest", "möchte", "möchten"),
    "wissen": ("weiß", "weißt", "weiß", "wissen"),
}

_ONES = {
    "en": [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ],
    "de": [
        "null",
        "ein",
        "zwei",
        "drei",
        "vier",
        "fünf",
        "sechs",
        "sieben",
        "acht",
        "neun",
        "zehn",
        "elf",
        "zwölf",
        "dreizehn",
        "vierzehn",
        "fünfzehn",
        "sechzehn",
        "siebzehn",
        "achtzehn",
        "neunzehn",
    ],
}
_TENS = {
    "en": ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"],
    "de": ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"],
}


def number(value: int) -> tuple[str, str]:
    """`21 -> ("twenty-one", "einundzwanzig")`, for 2 to 99 and whole hundreds up to 900."""
    assert 2 <= value < 100 or value in range(100, 1000, 100), value
    if value >= 100:
        return f"{_ONES['en'][value // 100]} hundred", f"{_ONES['de'][value // 100]}hundert"
    if value < 20:
        return _ONES["en"][value], _ONES["de"][value]
    tens, ones = divmod(value, 10)
    english, german = _TENS["en"][tens - 2], _TENS["de"][tens - 2]
    if ones:
        return f"{english}-{_ONES['en'][ones]}", f"{_ONES['de'][ones]}und{german}"
    return english, german


def clock(hour: int, minute: int) -> tuple[str, str]:
    """`(7, 30) -> ("half past seven", "halb acht")`: German counts the half hour towards the next."""
    assert 1 <= hour <= 12, hour
    after = hour % 12 + 1

    def names(h: int) -> tuple[str, str]:
        return _ONES["en"][h], "eins" if h == 1 else _ONES["de"][h]

    (this_en, this_de), (next_en, next_de) = names(hour), names(after)
    if minute == 0:
        return f"{this_en} o'clock", f"{_ONES['de'][hour]} Uhr"
    if minute == 30:
        return f"half past {this_en}", f"halb {next_de}"
    if minute in (15, 45):
        return (
            (f"a quarter past {this_en}", f"Viertel nach {this_de}")
            if minute == 15
            else (f"a quarter to {next_en}", f"Viertel vor {next_de}")
        )
    if minute < 30:
        english, german = number(minute)
        return f"{english} past {this_en}", f"{german} nach {this_de}"
    english, german = number(60 - minute)
    return f"{english} to {next_en}", f"{german} vor {next_de}"


def article(agreement: Agreement, case: str) -> str:
    return _ARTICLE[agreement][CASES.index(case)]


def der_word(stem: str, agreement: Agreement, case: str) -> str:
    return stem + _DER[agreement][CASES.index(case)]


def ein_word(stem: str, agreement: Agreement, case: str) -> str:
    return stem + _EIN[agreement][CASES.index(case)]


def adjective_ending(declension: str, agreement: Agreement, case: str) -> str:
    """`declension` is weak (after der), mixed (after ein) or strong (no article)."""
    return _ADJECTIVE[declension][agreement][CASES.index(case)]


@cache
def decline(noun: Noun, plural: bool, case: str) -> str:
    if plural:
        form = noun.german_plural
        return form + "n" if case == "dat" and form[-1] not in "ns" else form
    if noun.weak and case != "nom":
        return noun.german_plural
    if case == "gen" and noun.gender != "f":
        vowels = sum(
            1 for i, c in enumerate(noun.german.lower())
            if c in "aeiouäöü" and (i == 0 or noun.german[i - 1].lower() not in "aeiouäöü")
        )  # fmt: skip
        return noun.german + ("es" if vowels == 1 else "s")
    return noun.german


@cache
def conjugate(infinitive: str, person: int, changed: str = "") -> str:
    """The present tense; `person` 0 ich, 1 du, 2 er, 3 wir, 4 sie. `changed` is the stem of du and er."""
    if infinitive in IRREGULAR:
        return IRREGULAR[infinitive][min(person, 3)]
    if person >= 3:
        return infinitive
    stem = infinitive[:-2] if infinitive.endswith("en") else infinitive[:-1]
    if person == 0:
        return stem + "e"
    if changed:
        stem = changed
    elif stem[-1] in "td":
        stem += "e"
    if person == 1:
        return stem + ("t" if stem[-1] in "sßz" else "st")
    return stem + "t"


def imperative(verb: Verb) -> str:
    """`lesen -> lies`, `machen -> mach`, `warten -> warte`: e to i stays changed, a to ä does not."""
    stem = verb.german[:-2] if verb.german.endswith("en") else verb.german[:-1]
    if verb.changed and "i" in verb.changed:
        return verb.changed
    return stem + "e" if stem.endswith(("t", "d", "ig", "er")) else stem


def third_person(verb: str) -> str:
    """`go -> goes`, `carry -> carries`, `visit -> visits`."""
    if verb == "have":
        return "has"
    if verb.endswith(("s", "sh", "ch", "x", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


_DOUBLED = frozenset({"get", "put", "run", "swim", "travel"})


def participle(verb: str) -> str:
    """`swim -> swimming`, `write -> writing`, `see -> seeing`."""
    if verb in _DOUBLED:
        return verb + verb[-1] + "ing"
    if verb.endswith("e") and not verb.endswith("ee"):
        return verb[:-1] + "ing"
    return verb + "ing"

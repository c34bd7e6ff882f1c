"""The demo corpus: its promises as data, and its German checked by rules written apart from the grammar."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys

import pytest

from transformer.core.errors import DataError
from transformer.data.demo import demo_examples, demo_pairs
from transformer.data.demo.clauses import Clause
from transformer.data.demo.inflection import clock, conjugate, decline, number, participle, third_person
from transformer.data.demo.lexicon import NOUNS, PLACES, VERBS, Noun, Verb
from transformer.data.demo.phrases import noun_phrase, pronoun

SPLITS = ("train", "valid", "test")

# Gender by gender, as a dictionary lists them; the lexicon is not consulted.
DICTIONARY = {
    "m": """
        Mann Lehrer Arzt Nachbar Student Freund Gast Vater Bruder Onkel Sohn Kollege Bäcker Bauer
        Polizist Kellner Junge Hund Vogel Brief Roman Apfel Kuchen Computer Fernseher Schrank Koffer
        Mantel Rock Hut Schal Schlüssel Tisch Stuhl Regenschirm Teller Bleistift Zug Bus Käse Reis
        Tee Kaffee Wein Saft Garten Bahnhof Flughafen Markt Park Strand See Wald Hafen""",
    "f": """
        Frau Krankenschwester Mutter Schwester Tante Großmutter Tochter Königin Katze Kuh Zeitung
        Geschichte Kartoffel Birne Wurst Lampe Waschmaschine Tür Schublade Kiste Tasche Jacke
        Fahrkarte Blume Flasche Uhr Landkarte Fähre Suppe Milch Küche Schule Bibliothek Stadt Kirche
        Brücke Bäckerei""",
    "n": """
        Kind Mädchen Pferd Kaninchen Buch Gedicht Ei Brötchen Radio Auto Fahrrad Boot Motorrad
        Fenster Geschenk Kleid Hemd Bild Messer Glas Schiff Brot Fleisch Wasser Büro Kino Theater
        Hotel Restaurant Krankenhaus Dorf Museum""",
}
GENDERS = {word: gender for gender, listed in DICTIONARY.items() for word in listed.split()}

MODALS = {
    "kann", "kannst", "können", "muss", "musst", "müssen", "darf", "darfst", "dürfen", "will", "willst",
    "wollen",
    "sollte", "solltest", "sollten", "möchte", "möchtest", "möchten", "werde", "wirst", "wird", "werden",
}  # fmt: skip
CONJUNCTIONS = (("because", "weil"), ("that", "dass"), ("whether", "ob"), ("although", "obwohl"))
SUBJECT = {"I": "ich", "you": "du", "he": "er", "she": "sie", "we": "wir", "they": "sie"}


def words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text)


def simple(english: str) -> bool:
    """Whether a sentence is one main clause."""
    joined = r", |\b(and|because|although|when|if|while|before|that|whether|who|whom|to (open|close|turn))\b"
    return english.endswith(".") and not re.search(joined, english)


def verb(english: str) -> Verb:
    return next(v for v in VERBS if " ".join(w for w in (v.english, v.particle, v.tail) if w) == english)


def noun(english: str) -> Noun:
    return next(n for nouns in NOUNS.values() for n in nouns if n.english == english)


@pytest.fixture(scope="module")
def everything() -> list[tuple[str, str]]:
    return [pair for split in SPLITS for pair in demo_pairs(split)]


# As data


def test_sizes_and_distinctness(everything: list[tuple[str, str]]) -> None:
    assert len(demo_pairs("train")) >= 20_000
    assert len(demo_pairs("valid")) == len(demo_pairs("test")) == 500
    assert len(set(everything)) == len(everything)


def test_every_process_writes_the_same_corpus(everything: list[tuple[str, str]]) -> None:
    code = (
        "import hashlib; from transformer.data.demo import demo_pairs;"
        "pairs = [p for s in ('train', 'valid', 'test') for p in demo_pairs(s)];"
        "print(hashlib.sha256(repr(pairs).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == hashlib.sha256(repr(everything).encode()).hexdigest()


def test_an_english_sentence_has_one_german_translation(everything: list[tuple[str, str]]) -> None:
    assert len({english for english, _ in everything}) == len(everything)


def test_a_held_out_sentence_holds_a_combination_no_training_sentence_holds() -> None:
    trained = {c for example in demo_examples("train") for c in example.combinations}
    tuned = {c for example in demo_examples("valid") for c in example.combinations}
    for split, seen in (("valid", trained), ("test", trained)):
        for example in demo_examples(split):  # type: ignore[arg-type]
            assert set(example.combinations) - seen, example
    for example in demo_examples("test"):
        assert set(example.combinations) - trained - tuned, example


def test_every_held_out_word_was_seen_in_training() -> None:
    seen = [set(), set()]  # type: list[set[str]]
    for pair in demo_pairs("train"):
        for side in (0, 1):
            seen[side] |= set(words(pair[side].lower()))
    for split in ("valid", "test"):
        for pair in demo_pairs(split):  # type: ignore[arg-type]
            for side in (0, 1):
                assert set(words(pair[side].lower())) <= seen[side], pair


def test_it_cannot_be_solved_by_copying(everything: list[tuple[str, str]]) -> None:
    names = {"Anna", "Maria", "Julia", "Eva", "Peter", "Paul", "Martin", "Oskar", "Berlin", "Hamburg"}
    shared = sum(len(set(words(e)) & set(words(g)) - names) for e, g in everything)
    assert shared < 0.2 * len(everything)
    assert not any(re.search(r"\d", e + g) for e, g in everything)


def test_sentences_are_written_as_sentences(everything: list[tuple[str, str]]) -> None:
    for pair in everything:
        for side in pair:
            assert re.fullmatch(r"[A-ZÄÖÜ][^.?!]*[.?!]", side), side
            assert side == " ".join(side.split()), side
            assert not re.search(r" ,|,,|,[.?!]", side), side
        assert pair[0][-1] == pair[1][-1], pair
        assert 2 <= len(pair[0].split()) <= 30, pair


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'dev'.*train, valid, test"):
        demo_pairs("dev")  # type: ignore[arg-type]


# German, corpus-wide


def test_the_lexicon_has_the_genders_of_the_dictionary() -> None:
    nouns = [n for group in NOUNS.values() for n in group] + [place.noun for place in PLACES]
    assert {n.german: n.gender for n in nouns} == GENDERS


def test_every_singular_subject_has_the_article_of_its_gender(everything: list[tuple[str, str]]) -> None:
    """`Der|Die|Das NOUN` that opens a sentence is a nominative; the noun decides which."""
    plurals = {n.german_plural for group in NOUNS.values() for n in group}
    checked = 0
    for _, german in everything:
        opening = re.match(r"(Der|Die|Das|Ein|Eine|Jeder|Jede|Jedes) ([A-ZÄÖÜ]\w+)\b", german)
        if not opening or opening[2] not in GENDERS or (opening[1] == "Die" and opening[2] in plurals):
            continue
        gender, determiner = GENDERS[opening[2]], opening[1]
        allowed = {"m": ("Der", "Ein", "Jeder"), "f": ("Die", "Eine", "Jede"), "n": ("Das", "Ein", "Jedes")}[
            gender
        ]
        assert determiner in allowed, german
        checked += 1
    assert checked > 1000


def test_adjectives_after_ein_and_der_show_the_gender_once(everything: list[tuple[str, str]]) -> None:
    """Nominative at the start of a sentence: der alte, das alte; ein alter, eine alte, ein altes."""
    ending = {"Der": "e", "Das": "e", "Eine": "e", "Einm": "er", "Einn": "es"}
    checked = 0
    for _, german in everything:
        opening = re.match(r"(Der|Das|Ein|Eine) ([a-zäöüß]+) ([A-ZÄÖÜ]\w+)\b", german)
        if not opening or opening[3] not in GENDERS:
            continue
        determiner, adjective, head = opening.groups()
        key = determiner + GENDERS[head] if determiner == "Ein" else determiner
        stem = adjective.removesuffix(ending[key])
        assert stem != adjective, german
        checked += 1
    assert checked > 500


def test_prepositions_take_their_case(everything: list[tuple[str, str]]) -> None:
    """After mit and von the dative, after für and über the accusative; places melt: im, ins, am, zum, zur."""
    for _, german in everything:
        assert not re.search(r"\b(mit|von) (das|die|einen|ein|mich|dich|ihn)\b", german), german
        assert not re.search(r"\b(für|über) (dem|einem|einer|mir|dir|ihm)\b", german), german
        assert not re.search(r"\b(in dem|in das|an dem|zu dem|zu der)\b", german), german


def test_a_modal_stands_second_and_its_infinitive_last(everything: list[tuple[str, str]]) -> None:
    checked = 0
    for english, german in everything:
        match = re.match(r"(I|You|He|She|We|They) (can|must|may|should|will) ", english)
        if match and simple(english) and not re.search(r" to \w+ .* to ", english) and ", um " not in german:
            said = words(german)
            assert said[0].lower() == SUBJECT[match[1].lower() if match[1] != "I" else "I"], german
            assert said[1] in MODALS, german
            assert said[-1].endswith("n"), german
            checked += 1
    assert checked > 200


def test_the_finite_verb_stands_second_after_a_fronted_time(everything: list[tuple[str, str]]) -> None:
    checked = 0
    for english, german in everything:
        match = re.match(
            r"On (\w+day), (I|you|he|she|we|they) (can|must|may|should|will|wants? to|would)\b", english
        )
        if not match:
            continue
        said = words(german)
        assert said[0] == "Am", german
        assert said[2] in MODALS, german
        assert said[3] == SUBJECT[match[2]], german
        checked += 1
    assert checked > 20


def test_the_finite_verb_stands_last_in_a_subordinate_clause(everything: list[tuple[str, str]]) -> None:
    """..., weil X den Apfel kaufen muss; ..., dass X den Apfel gekauft hat."""
    checked = 0
    for english, german in everything:
        for conjunction, translation in (
            ("because", "weil"),
            ("that", "dass"),
            ("whether", "ob"),
            ("although", "obwohl"),
        ):
            inner = re.search(
                rf"\b{conjunction} (I|you|he|she|we|they) (can|must|may|should|will|wants? to)\b", english
            )
            clause = re.search(rf", {translation} ([^,]*)\.$", german)
            if not inner or not clause:
                continue
            said = words(clause[1])
            assert said[0] == SUBJECT[inner[1]], german
            assert said[-1] in MODALS, german
            assert said[-2].endswith("n"), german
            assert not MODALS & set(said[:-1]), german
            checked += 1
    assert checked > 100


def test_a_fronted_subordinate_clause_is_followed_by_the_finite_verb(
    everything: list[tuple[str, str]],
) -> None:
    checked = 0
    for english, german in everything:
        match = re.match(
            r"(?:Because|If|When|Although|While|Before) [^,]*, (I|you|he|she|we|they) (can|must|will) ",
            english,
        )
        if match:
            first = words(german.split(", ", 1)[1])
            assert first[0] in MODALS, german
            assert first[1] == SUBJECT[match[1]], german
            checked += 1
    assert checked > 50


def test_a_separable_prefix_stands_at_the_end_of_a_simple_main_clause(
    everything: list[tuple[str, str]],
) -> None:
    prefixes = {
        "turns on": "ein", "turns off": "aus", "opens": "auf", "closes": "zu", "takes off": "aus",
        "calls": "an",
        "invites": "ein", "throws away": "weg", "brings back": "zurück", "unpacks": "aus", "wakes up": "auf",
    }  # fmt: skip
    checked = 0
    for english, german in everything:
        match = re.search(rf"\b({'|'.join(prefixes)}) ", english)
        if match and simple(english):
            assert words(german)[-1] == prefixes[match[1]], german
            checked += 1
    assert checked > 50


def test_an_infinitive_of_purpose_puts_zu_between_prefix_and_verb(everything: list[tuple[str, str]]) -> None:
    checked = 0
    for english, german in everything:
        if re.search(
            r"\b(tries|hopes|forgets|promises) to (open|close|turn on|turn off|throw away|unpack)\b", english
        ):
            assert re.search(r"(auf|zu|ein|aus|weg)zu(machen|schalten|werfen|packen)\.$", german), german
            checked += 1
    assert checked > 10


# German, word by word


@pytest.mark.parametrize(
    ("value", "english", "german"),
    [
        (2, "two", "zwei"),
        (12, "twelve", "zwölf"),
        (16, "sixteen", "sechzehn"),
        (17, "seventeen", "siebzehn"),
        (21, "twenty-one", "einundzwanzig"),
        (30, "thirty", "dreißig"),
        (67, "sixty-seven", "siebenundsechzig"),
        (300, "three hundred", "dreihundert"),
    ],
)
def test_numbers_are_spelled_out(value: int, english: str, german: str) -> None:
    assert number(value) == (english, german)


@pytest.mark.parametrize(
    ("hour", "minute", "english", "german"),
    [
        (1, 0, "one o'clock", "ein Uhr"),
        (7, 30, "half past seven", "halb acht"),
        (12, 30, "half past twelve", "halb eins"),
        (8, 45, "a quarter to nine", "Viertel vor neun"),
        (3, 20, "twenty past three", "zwanzig nach drei"),
        (12, 55, "five to one", "fünf vor eins"),
        (1, 15, "a quarter past one", "Viertel nach eins"),
    ],
)
def test_clock_times_are_said_as_people_say_them(hour: int, minute: int, english: str, german: str) -> None:
    assert clock(hour, minute) == (english, german)


@pytest.mark.parametrize(
    ("infinitive", "changed", "forms"),
    [
        ("kaufen", "", "kaufe kaufst kauft kaufen kaufen"),
        ("arbeiten", "", "arbeite arbeitest arbeitet arbeiten arbeiten"),
        ("lesen", "lies", "lese liest liest lesen lesen"),
        ("laden", "läd", "lade lädst lädt laden laden"),
        ("putzen", "", "putze putzt putzt putzen putzen"),
        ("erinnern", "", "erinnere erinnerst erinnert erinnern erinnern"),
        ("essen", "iss", "esse isst isst essen essen"),
        ("reisen", "", "reise reist reist reisen reisen"),
    ],
)
def test_the_present_tense_is_conjugated(infinitive: str, changed: str, forms: str) -> None:
    assert [conjugate(infinitive, person, changed) for person in range(5)] == forms.split()


@pytest.mark.parametrize(
    ("english", "plural", "forms"),
    [
        ("boy", False, "der Junge|den Jungen|dem Jungen|des Jungen"),
        ("man", False, "der Mann|den Mann|dem Mann|des Mannes"),
        ("child", True, "die Kinder|die Kinder|den Kindern|der Kinder"),
        ("car", True, "die Autos|die Autos|den Autos|der Autos"),
        ("woman", True, "die Frauen|die Frauen|den Frauen|der Frauen"),
    ],
)
def test_nouns_are_declined(english: str, plural: bool, forms: str) -> None:
    assert "|".join(noun_phrase(noun(english), "the", plural=plural).german) == forms
    assert decline(noun(english), plural, "acc") == forms.split("|")[1].split()[1]


def test_english_verbs_agree() -> None:
    assert [third_person(v) for v in ("go", "watch", "carry", "play", "have", "see")] == [
        "goes", "watches", "carries", "plays", "has", "sees"
    ]  # fmt: skip
    assert [participle(v) for v in ("swim", "write", "see", "get", "open")] == [
        "swimming", "writing", "seeing", "getting", "opening"
    ]  # fmt: skip


def test_one_clause_is_said_in_every_order() -> None:
    window = noun_phrase(noun("window"), "the")
    clause = Clause(pronoun("he"), verb("open"), "present", window, time=("on Monday", "am Montag"))
    assert clause.english() == "he opens the window on Monday"
    assert clause.english_question() == "does he open the window on Monday"
    assert clause.german() == "er macht das Fenster am Montag auf"
    assert clause.german("am Montag") == "am Montag macht er das Fenster auf"
    assert clause.german("") == "macht er das Fenster am Montag auf"
    assert clause.german_last("weil") == "weil er das Fenster am Montag aufmacht"
    assert clause.german_infinitive() == "das Fenster am Montag aufzumachen"


def test_negation_is_kein_for_new_objects_and_nicht_for_known_ones() -> None:
    def said(phrase: str, *, kein: bool) -> str:
        patient = noun_phrase(noun("apple"), phrase, negated=kein)
        return Clause(pronoun("she"), verb("eat"), "past", patient, negated=True).german()

    assert said("the", kein=True) == "sie hat den Apfel nicht gegessen"
    assert said("a", kein=True) == "sie hat keinen Apfel gegessen"

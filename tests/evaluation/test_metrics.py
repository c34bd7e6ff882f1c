"""Corpus scores: sacreBLEU's own numbers, signatures, refusals and warnings."""

from __future__ import annotations

import json

import pytest
import sacrebleu

from transformer.core.errors import DataError
from transformer.evaluation.metrics import corpus_metrics, reference_warnings

REFERENCES = ["Der Hund schläft im Garten.", "Die Frau kauft am Montag einen Apfel.", "Es ist halb acht."]
HYPOTHESES = ["Der Hund schläft in dem Garten.", "Die Frau kauft einen Apfel am Montag.", "Es ist halb acht."]


def test_scores_are_those_of_sacrebleus_functions() -> None:
    metrics = corpus_metrics(HYPOTHESES, REFERENCES)
    assert metrics.bleu == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert metrics.chrf == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert metrics.ter == sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES]).score
    assert 0 < metrics.bleu < 100


def test_a_perfect_translation_scores_100_and_0() -> None:
    metrics = corpus_metrics(REFERENCES, REFERENCES)
    assert metrics.bleu == pytest.approx(100)
    assert metrics.chrf == pytest.approx(100)
    assert metrics.ter == 0


def test_signatures_say_13a_and_cased() -> None:
    signatures = corpus_metrics(HYPOTHESES, REFERENCES).signatures
    assert "tok:13a" in signatures["bleu"]
    assert "case:mixed" in signatures["bleu"]
    assert f"version:{sacrebleu.__version__}" in signatures["bleu"]
    assert "nc:6" in signatures["chrf"]
    assert "nw:0" in signatures["chrf"]
    assert set(signatures) == {"bleu", "chrf", "ter"}


def test_case_counts() -> None:
    assert corpus_metrics([REFERENCES[0].lower()], REFERENCES[:1]).bleu < 100


def test_scores_print_with_their_signatures_and_are_json() -> None:
    metrics = corpus_metrics(HYPOTHESES, REFERENCES)
    lines = str(metrics).splitlines()
    assert [line.split()[0] for line in lines] == ["BLEU", "chrF2", "TER"]
    assert f"{metrics.bleu:.2f}" in lines[0]
    assert metrics.signatures["bleu"] in lines[0]
    assert json.loads(json.dumps(metrics.to_dict()))["sentences"] == 3


def test_ter_is_left_out_when_not_asked_for() -> None:
    metrics = corpus_metrics(HYPOTHESES, REFERENCES, ter=False)
    assert metrics.ter is None
    assert "ter" not in metrics.to_dict()
    assert "TER" not in str(metrics)


def test_empty_translations_score_0_without_failing() -> None:
    metrics = corpus_metrics(["", "", ""], REFERENCES)
    assert metrics.bleu == 0
    assert metrics.ter == pytest.approx(100)


def test_a_different_number_of_lines_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match="2 translations but 3 references"):
        corpus_metrics(HYPOTHESES[:2], REFERENCES)


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        corpus_metrics([], [])


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        ("Das ist Peter &apos;s Hund.", "&apos;"),
        ("ein gut @-@ bekannter Mann", "@-@"),
        ("der Schläf@@ er", "@@"),
    ],
)
def test_marks_of_tokenizers_are_reported(line: str, mark: str) -> None:
    (warning,) = reference_warnings([*REFERENCES, line])
    assert mark in warning
    assert "line 4" in warning


def test_spaced_punctuation_is_reported_and_scores_stay() -> None:
    tokenised = ["Der Hund schläft .", "Die Frau , die schläft , ist alt ."]
    metrics = corpus_metrics(tokenised, tokenised)
    assert len(metrics.warnings) == 1
    assert "2 of 2 lines" in metrics.warnings[0]
    assert metrics.bleu == pytest.approx(100)


def test_untouched_text_is_not_reported() -> None:
    french = ["Qui est là ? Pierre !", "Voici : « oui »."]
    assert reference_warnings(REFERENCES + french) == []
    assert reference_warnings(["plain text."] * 200 + ["R&amp;D happens."]) == []

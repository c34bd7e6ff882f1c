"""Text to text: as many lines out as in, in their order, whatever they hold and however they are batched."""

from __future__ import annotations

import json
import math
import time
from itertools import count, islice

import pytest
import torch
from decoding_toys import Letters, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.core.errors import CheckpointError, ConfigError, DataError
from transformer.decoding import SEARCHES, DecodeConfig, Translator

TOKENIZER = Letters()
MODEL = tiny(TOKENIZER.size, seed=2)
LINES = [
    "hello world",
    "",
    "a",
    "the quick brown fox",
    "  ",
    "lorem ipsum dolor",
    "b c d",
    "\t",
    "zz",
    "hello world",
]
ODD = [
    "a\u2028b",
    "\u2028",
    "\x85",
    "c\x85d",
    "lone\rreturn",
    "\r",
    "nul\0here",
    "\ufeffbom",
    "\ud800lone",
    "\u3000",
    "漢字",
]


def translator(**options: object) -> Translator:
    options = {"max_length": 8, "beam": 3, **options}
    return Translator([MODEL], TOKENIZER, TOKENIZER, DecodeConfig(**options))


def texts(lines: list[str], **options: object) -> list[str]:
    return [t.text for t in translator(**options).translate(lines)]


@pytest.mark.parametrize("search", SEARCHES)
def test_a_translation_does_not_depend_on_its_batch(search: str) -> None:
    expected = texts(LINES, search=search)
    for batch_tokens in (1, 60, 100_000):
        for chunk_lines in (1, 3, 1000):
            assert texts(LINES, search=search, batch_tokens=batch_tokens, chunk_lines=chunk_lines) == expected
    assert len(set(expected)) > 4


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(len(LINES))))
def test_a_translation_does_not_depend_on_the_order_of_lines(order: list[int]) -> None:
    expected = texts(LINES)
    assert texts([LINES[i] for i in order]) == [expected[i] for i in order]


def test_beam_one_is_greedy_search() -> None:
    assert texts(LINES, beam=1) == texts(LINES, search="greedy")


def test_the_first_of_several_translations_is_the_translation() -> None:
    several = list(translator(n_best=3).translate(LINES))
    assert [t.text for t in several] == texts(LINES)
    for t in several:
        assert len(t.hypotheses) == (0 if t.status == "blank" else 3)
        assert [h.score for h in t.hypotheses] == sorted((h.score for h in t.hypotheses), reverse=True)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    first, again, other = (texts(LINES, search="sampling", seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first[0] != first[-1], "equal lines at different places are drawn anew"


@settings(max_examples=25, deadline=None)
@given(lines=st.lists(st.one_of(st.sampled_from(LINES + ODD), st.text(max_size=12)), max_size=8))
def test_as_many_lines_come_out_as_go_in(lines: list[str]) -> None:
    translations = list(translator(max_length=3).translate(iter(lines)))
    assert [t.source for t in translations] == lines
    assert [t.number for t in translations] == list(range(len(lines)))
    for t in translations:
        assert "\n" not in t.text
        if not t.source.strip():
            assert (t.text, t.status, t.hypotheses) == ("", "blank", ())


def test_a_blank_line_is_answered_without_asking_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODEL, "encode", None)  # calling it would raise
    assert texts(["", " ", "\u3000", "\x85", "\u2028", "\t\r"]) == [""] * 6


def test_a_line_of_100000_words_is_cut_reported_and_cheap() -> None:
    tokenizer, line = Letters(), "word " * 100_000
    t = Translator([MODEL], tokenizer, tokenizer, DecodeConfig(max_source_length=20, max_length=5))
    start = time.process_time()
    cut, short = t.translate([line, "word"])
    assert time.process_time() - start < 5
    assert tokenizer.encoded_characters < 2_000
    assert (cut.status, cut.source_tokens, short.status) == ("truncated", 20, "ok")
    assert cut.source is line
    assert "line 1" in cut.warning
    assert short.warning is None
    assert cut.text == t.translate(["word " * 4]).__next__().text


def test_a_word_after_endless_spaces_is_translated() -> None:
    assert texts([" " * 300_000 + "word"]) == texts(["word"])


def test_learned_positions_limit_source_and_target() -> None:
    model = tiny(TOKENIZER.size, positions="learned", max_length=6, seed=2)
    t = Translator([model], TOKENIZER, TOKENIZER, DecodeConfig(min_length=5))
    (translation,) = t.translate(["abcdefghi"])
    assert (translation.status, translation.source_tokens) == ("truncated", 5)
    assert len(translation.hypotheses[0].tokens) == 5


def test_lines_are_read_as_they_are_needed() -> None:
    endless = (f"line {'abc'[i % 3]}" for i in count())
    t = translator(chunk_lines=2)
    assert [x.number for x in islice(t.translate(endless), 5)] == [0, 1, 2, 3, 4]
    assert next(endless) == "line a"  # six were read


def test_huge_lines_make_small_chunks() -> None:
    read = []

    def lines():
        for i in range(9):
            read.append(i)
            yield "a" * 3_000_000

    next(translator(max_source_length=4).translate(lines()))
    assert len(read) == 2


def test_a_translation_begins_with_its_prefix() -> None:
    prefixes = ["xy", "", "q", "abc de", "z", "", "the", "", "", "fox"]
    for search in SEARCHES:
        for t, prefix in zip(translator(search=search).translate(LINES, prefixes), prefixes, strict=True):
            assert t.text.startswith(prefix if t.status != "blank" else "")


@pytest.mark.parametrize("prefixes", [[], ["a"], ["a"] * 9, ["a"] * 11])
def test_each_line_needs_its_prefix(prefixes: list[str]) -> None:
    with pytest.raises(DataError, match="equally many"):
        list(translator().translate(LINES, prefixes))


def test_a_prefix_beyond_the_longest_translation_is_refused_with_its_line() -> None:
    with pytest.raises(DataError, match="line 2"):
        list(translator().translate(["a", "b"], ["", "toolongforit"]))


def test_scoring_a_translation_gives_the_score_it_was_found_with() -> None:
    lines = [line for line in LINES if line.strip()]
    for options in ({}, {"length_penalty": "wu", "alpha": 0.6}, {"length_penalty": "none", "n_best": 2}):
        t = translator(**options)
        for found in t.translate(lines):
            for h in found.hypotheses:
                if t.target_tokenizer.encode(h.text) != [TOKENIZER.alphabet.index(p) for p in h.tokens]:
                    continue  # text that is cut into other subwords than those it was written with
                (score,) = t.score([found.source], [h.text])
                assert score.log_probability == pytest.approx(h.log_probability, rel=1e-9)
                assert score.score == pytest.approx(h.score, rel=1e-9)
                assert sum(score.token_log_probabilities) == score.log_probability
                assert len(score.token_log_probabilities) == len(score.tokens) + 1


def test_a_score_says_where_its_source_was_cut() -> None:
    t = translator(max_source_length=4)
    cut, blank, whole = t.score(["abcdefgh", " ", "abcd"], ["x", "x", "x"])
    assert [(s.number, s.status, s.source_tokens) for s in (cut, blank, whole)] == [
        (0, "truncated", 4),
        (1, "blank", 0),
        (2, "ok", 4),
    ]
    assert cut.log_probability == whole.log_probability
    assert "line 1" in cut.warning
    assert blank.warning is whole.warning is None
    assert cut.to_dict()["status"] == "truncated"


def test_a_model_that_answers_nan_scores_nothing() -> None:
    model = tiny(TOKENIZER.size)
    torch.nn.init.constant_(model.output_weight, math.nan)
    broken = Translator([model], TOKENIZER, TOKENIZER)
    with pytest.raises(CheckpointError, match="diverged"):
        list(broken.score(["a"], ["b"]))


def test_scores_do_not_depend_on_their_batch() -> None:
    targets = [str(line[::-1]) for line in LINES]
    together = list(translator(max_length=30).score(LINES, targets))
    alone = list(translator(max_length=30, batch_tokens=1).score(LINES, targets))
    for a, b, line in zip(together, alone, LINES, strict=True):
        assert a.source == line
        assert a.tokens == b.tokens
        assert a.token_log_probabilities == pytest.approx(b.token_log_probabilities, rel=1e-9)


def test_everything_becomes_json() -> None:
    t = translator(n_best=2)
    for item in (*t.translate(LINES), *t.score(["a"], ["b"])):
        assert json.loads(json.dumps(item.to_dict(), allow_nan=False)) == item.to_dict()


def test_models_work_in_evaluation_mode_and_get_their_mode_back() -> None:
    expected = texts(LINES)
    MODEL.train()
    try:
        assert texts(LINES) == expected
        assert MODEL.training
    finally:
        MODEL.eval()


def test_two_models_alike_translate_as_one() -> None:
    both = Translator([MODEL, MODEL], TOKENIZER, TOKENIZER, DecodeConfig(max_length=8, beam=3))
    assert [t.text for t in both.translate(LINES)] == texts(LINES)


def test_two_models_that_differ_average_their_probabilities() -> None:
    other = tiny(TOKENIZER.size, seed=9)
    config = DecodeConfig(max_length=8, beam=3)
    together, one, two = (
        Translator(models, TOKENIZER, TOKENIZER, config) for models in ([MODEL, other], [MODEL], [other])
    )
    found = [t for t in together.translate(LINES) if t.hypotheses]
    sources, targets = [t.source for t in found], [t.text for t in found]
    members = zip(one.score(sources, targets), two.score(sources, targets), strict=True)
    for joint, pair in zip(together.score(sources, targets), members, strict=True):
        columns = zip(*(score.token_log_probabilities for score in pair), strict=True)
        expected = [math.log(sum(map(math.exp, column)) / 2) for column in columns]
        assert joint.token_log_probabilities == pytest.approx(expected, rel=1e-9)
    voted = [t.text for t in together.translate(LINES)]
    assert voted not in ([t.text for t in single.translate(LINES)] for single in (one, two))


def test_models_and_tokenizers_have_to_agree() -> None:
    other = tiny(TOKENIZER.size + 1)
    with pytest.raises(CheckpointError, match="model 2 has a source vocabulary of 32"):
        Translator([MODEL, other], TOKENIZER, TOKENIZER)


def test_bf16_translates() -> None:
    model = tiny(TOKENIZER.size).float()
    t = Translator([model], TOKENIZER, TOKENIZER, DecodeConfig(precision="bf16", max_length=6))
    assert len(list(t.translate(LINES))) == len(LINES)


def test_output_stays_on_one_line_though_the_vocabulary_holds_line_feeds() -> None:
    tokenizer = Letters("\n\r\u2028")
    t = Translator([tiny(tokenizer.size)], tokenizer, tokenizer, DecodeConfig(min_length=5, max_length=5))
    for translation in t.translate(["\r \u2028", "a"]):
        assert "\n" not in translation.text
        assert not translation.text.endswith("\r")


def test_decoding_leaves_no_gradients_and_no_inference_mode() -> None:
    generator = translator(chunk_lines=1).translate(LINES)
    next(generator)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_the_minimum_length_outranks_the_limit_from_the_sources_length() -> None:
    t = translator(min_length=12, max_length=14, max_length_ratio=0, max_length_extra=0)
    for translation in t.translate(["ab", "a"]):
        assert 12 <= len(translation.hypotheses[0].tokens) <= 14


def test_a_minimum_length_beyond_learned_positions_is_refused() -> None:
    model = tiny(TOKENIZER.size, positions="learned", max_length=20)
    with pytest.raises(ConfigError, match=r"decode\.min_length"):
        Translator([model], TOKENIZER, TOKENIZER, DecodeConfig(min_length=30))

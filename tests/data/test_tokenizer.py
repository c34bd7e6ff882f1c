"""Subword models: plain text stays plain text, sizes that cannot be, determinism, sampling."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sentences import sentences

from transformer.core.errors import DataError
from transformer.core.special import BOS, EOS, PAD, UNK
from transformer.data import tokenizer as module
from transformer.data.cleaning import clean
from transformer.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizers, train_tokenizers

KINDS = ["bpe", "unigram", "char"]


def train(
    directory: Path, pairs: list[tuple[str, str]] | None = None, **options: object
) -> tuple[Tokenizer, Tokenizer]:
    config = TokenizerConfig.model_validate({"vocab_size": 80, **options})
    pairs = sentences(200) if pairs is None else pairs
    return train_tokenizers(config, lambda: pairs, len(pairs), directory)


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train(tmp_path_factory.mktemp("tokenizer"), type=request.param)[0]


def test_decode_inverts_encode(trained: Tokenizer) -> None:
    for source, target in sentences(20, seed=5):
        for text in (source, target):
            ids = trained.encode(text)
            assert min(ids) > EOS
            assert trained.decode(ids) == text
            assert trained.decode([BOS, *ids, EOS, PAD]) == text
            assert "".join(trained.pieces(ids)).replace("▁", " ").strip() == text


def test_a_batch_encodes_as_its_lines(trained: Tokenizer) -> None:
    texts = ["", "the red cat.", " ", "a\tdog\u2028sees\x85two", "x" * 50]
    assert trained.encode_batch(texts) == [trained.encode(text) for text in texts]
    assert trained.encode_batch([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_spells_a_control_symbol_stays_text(tmp_path: Path, kind: str) -> None:
    odd = ["x</s>y<unk>z <s> </s>", "<pad>", "a <s>b</s> c", "</s>", "<unk><unk>"]
    tokenizer, _ = train(
        tmp_path, [(text, text) for text in odd] * 20 + sentences(60), type=kind, vocab_size=60
    )
    for text in odd:
        ids = tokenizer.encode(text)
        assert not {PAD, UNK, BOS, EOS} & set(ids)
        assert tokenizer.decode(ids) == text


def test_no_text_reaches_a_control_id_but_unk(trained: Tokenizer) -> None:
    for text in ("\x01<s>", "\x01</s>\x01<pad>", "\x00\x01\x02", "<s>\x00</s>"):
        assert not {PAD, BOS, EOS} & set(trained.encode(text))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_any_text_encodes_and_white_space_is_all_that_changes(text: str) -> None:
    tokenizer = every_character()
    ids = tokenizer.encode(text)
    assert not {PAD, UNK, BOS, EOS} & set(ids)
    assert tokenizer.decode(ids) == re.sub(" +", " ", clean(text)).strip(" ")


_KEPT: list[Tokenizer] = []


def every_character() -> Tokenizer:
    """A model that spells what it does not know in bytes."""
    if not _KEPT:
        lines = (side for pair in sentences(200) for side in pair)
        config = TokenizerConfig.model_validate({"byte_fallback": True})
        _KEPT.append(Tokenizer(module._train(lines, "text", "bpe", 400, config)))
    return _KEPT[0]


def test_clean_changes_white_space_and_control_characters_only() -> None:
    assert clean("a\tb\xa0c\u2028d\x85e\rf\u3000g") == "a b c d e f g"
    assert clean("a\x00b\ufeffc\x7fd") == "abcd"
    assert clean("½ ﬁ Å É\u200d…") == "½ ﬁ Å É\u200d…"


def test_plain_keeps_what_nfkc_rewrites(tmp_path: Path) -> None:
    pairs = [("½ ﬁne", "½ ﬁne")] * 20
    plain, _ = train(tmp_path / "plain", pairs, type="char", vocab_size=20)
    nfkc, _ = train(tmp_path / "nfkc", pairs, type="char", vocab_size=20, normalization="nfkc")
    assert plain.decode(plain.encode("½ ﬁne")) == "½ ﬁne"
    assert nfkc.decode(nfkc.encode("½ ﬁne")) == "1\u20442 fine"


@pytest.mark.parametrize("size", [5000, 10**9, 2**31 - 1, 2**31])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_larger_than_the_text_allows_names_the_largest(
    tmp_path: Path, kind: str, size: int
) -> None:
    with pytest.raises(
        DataError, match=r"larger than the text .* allows: at most [\d,]+; set data\.tokenizer"
    ) as caught:
        train(tmp_path, type=kind, vocab_size=size)
    found = re.search(r"at most ([\d,]+)", str(caught.value))
    assert found
    largest = int(found[1].replace(",", ""))
    assert train(tmp_path, type=kind, vocab_size=largest)[0].size == largest


def test_a_character_model_is_as_large_as_its_alphabet(tmp_path: Path) -> None:
    tokenizer, _ = train(tmp_path, [("abc", "cab")] * 5, type="char", vocab_size=2**31 - 1)
    assert tokenizer.size == 4 + len("▁abc")


def test_a_vocabulary_too_small_for_the_characters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too small .* need \d+; raise data\.tokenizer\.vocab_size"):
        train(tmp_path, vocab_size=10)


def test_blank_text_trains_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="blank lines only"):
        train(tmp_path, [("", " "), ("\u2028", "\x00")])


def test_a_line_of_a_hundred_thousand_words_is_not_lost_to_training_and_encodes(tmp_path: Path) -> None:
    line = " ".join(["quokka", "zebu"] * 50_000)
    tokenizer, _ = train(tmp_path, [(line, "x" * 300_000)], vocab_size=20)
    assert UNK not in tokenizer.encode(line)
    assert tokenizer.decode(tokenizer.encode(line)) == line


def test_training_is_deterministic_and_joint_or_separate(tmp_path: Path) -> None:
    for kind in ("bpe", "unigram"):
        first, again = (train(tmp_path / f"{kind}{i}", type=kind)[0] for i in range(2))
        assert first.digest == again.digest
    source, target = train(tmp_path / "s", joint=False, source_vocab_size=60, target_vocab_size=70)
    assert (source.size, target.size) == (60, 70)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["source.model", "target.model"]
    assert [t.digest for t in load_tokenizers(tmp_path / "s")] == [source.digest, target.digest]
    joint = load_tokenizers(tmp_path / "bpe0")
    assert joint[0] is joint[1]


def test_a_large_corpus_is_sampled_evenly() -> None:
    pairs = [(str(i), str(i)) for i in range(1000)]
    for wanted in (1, 7, 999, 1000, 5000):
        taken = [int(source) for source, _ in module._spread(pairs, 1000, wanted)]
        assert len(taken) == min(wanted, 1000)
        gaps = set(np.diff(taken).tolist())
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_broken_or_foreign_model_file_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    path = tmp_path / "joint.model"
    whole = path.read_bytes()
    for content in (b"", b"not a model", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"joint\.model: not a SentencePiece model"):
            load_tokenizers(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="no tokenizer here"):
        load_tokenizers(tmp_path)
    with pytest.raises(DataError, match="cannot read"):
        Tokenizer.load(path)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sampling_is_a_function_of_text_and_seed_in_any_thread_and_order(tmp_path: Path, kind: str) -> None:
    tokenizer, _ = train(tmp_path, type=kind)
    text = "the small dog finds three old letters under the garden window."
    drawn = [tokenizer.sample(text, 0.2, seed) for seed in range(30)]
    assert len({tuple(ids) for ids in drawn}) > 5
    assert all(tokenizer.decode(ids) == text for ids in drawn)
    assert [tokenizer.sample(text, 0.2, seed) for seed in reversed(range(30))] == drawn[::-1]
    elsewhere: list[list[list[int]]] = []

    def work() -> None:
        elsewhere.append([tokenizer.sample(text, 0.2, seed) for seed in range(30)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert elsewhere == [drawn] * 4
    assert tokenizer.sample(text, 0.2, 2**63 - 1) == tokenizer.sample(text, 0.2, 2**63 - 1)


def test_options_that_do_not_fit_together_are_refused() -> None:
    for options, message in (
        ({"source_vocab_size": 50}, "joint: false"),
        ({"type": "char", "sampling": 0.1}, "one segmentation"),
        ({"sampling": 1.0}, "below 1"),
        ({"vocab_size": 4}, "greater than or equal to 5"),
        ({"character_coverage": 0.9799}, "greater than or equal to 0.98"),
        ({"character_coverage": 1.0001}, "less than or equal to 1"),
        ({"byte_fallback": True, "vocab_size": 260}, "256 bytes leave no room"),
        ({"byte_fallback": True, "joint": False, "target_vocab_size": 40}, "256 bytes leave no room"),
    ):
        with pytest.raises(ValidationError, match=message):
            TokenizerConfig.model_validate(options)


@pytest.mark.parametrize("coverage", [0.98, 1.0])
def test_sentencepiece_takes_the_coverages_at_the_ends_and_none_beyond(
    tmp_path: Path, coverage: float
) -> None:
    assert train(tmp_path, character_coverage=coverage)[0].size == 80
    beyond = TokenizerConfig().model_copy(update={"character_coverage": 2 * coverage - 0.99})
    pairs = sentences(200)
    with pytest.raises(DataError, match="SentencePiece cannot train on"):
        train_tokenizers(beyond.model_copy(update={"vocab_size": 80}), lambda: pairs, 200, tmp_path)


def test_training_says_nothing_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    assert capfd.readouterr() == ("", "")

"""Preparation: filters are reported, the cache is whole and shared, memory stays flat, bad text refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from sentences import sentences

from transformer.core.errors import DataError
from transformer.core.special import EOS, UNK
from transformer.data import cache, encoding, report, scanning
from transformer.data.checksums import checked, read_checked
from transformer.data.corpus import BOM
from transformer.data.dataset import DataConfig, Prepared, prepare, read_parallel
from transformer.data.encoded import EncodedCorpus

Section = Callable[..., DataConfig]


@pytest.fixture
def ready(tmp_path: Path) -> Callable[..., Prepared]:
    def make(config: DataConfig, run: str = "run", seed: int = 1, log: list[str] | None = None) -> Prepared:
        return prepare(config, tmp_path / run, seed, (log if log is not None else []).append)

    return make


def texts(prepared: Prepared, corpus: EncodedCorpus) -> list[tuple[str, str]]:
    tokenizers = prepared.source_tokenizer, prepared.target_tokenizer
    pairs = (corpus.pair(i) for i in range(len(corpus)))
    return [(tokenizers[0].decode(s.tolist()), tokenizers[1].decode(t.tolist())) for s, t in pairs]


def test_encoded_text_is_the_text(section: Section, ready: Callable[..., Prepared], tmp_path: Path) -> None:
    prepared = ready(section())
    assert texts(prepared, prepared.train) == sentences(300)
    assert texts(prepared, prepared.valid) == sentences(20, seed=1)
    source, target = prepared.train.pair(7)
    assert source.dtype == np.uint16
    assert prepared.train.source_lengths[7] == len(source) + 1
    assert prepared.train.target_lengths[7] == len(target) + 1
    assert sorted(path.name for path in (tmp_path / "run/tokenizer").iterdir()) == [
        "joint.model",
        "trained_from.json",
    ]


def test_wide_vocabularies_get_wide_ids() -> None:
    from transformer.data.encoded import id_type

    assert [id_type(size) for size in (5, 65_536, 65_537, 2**31)] == ["uint16", "uint16", "uint32", "uint32"]


def test_every_filter_is_counted_with_file_and_line(section: Section, ready: Callable[..., Prepared]) -> None:
    long, short = "the red cat " * 30, "a"
    odd = [
        ("", "tac"),
        ("cat", " "),
        ("", "\u2028"),
        (long, long[::-1]),
        (long[:96], short),
        ("same", "same"),
    ]
    good = [pair for pair in sentences(300) if pair[0] != pair[1]]
    config = section(good + odd, max_length=80, drop_copies=True)
    prepared = ready(config)
    train = prepared.report.train
    assert (train.read, train.kept, len(prepared.train)) == (len(good) + 6, len(good), len(good))
    assert train.reasons == {
        reason: 1
        for reason in (
            report.EMPTY_SOURCE,
            report.EMPTY_TARGET,
            report.EMPTY_BOTH,
            report.TOO_LONG,
            report.RATIO,
            report.COPY,
        )
    }
    assert train.examples[report.EMPTY_TARGET] == [f"{config.train[0]}, line {len(good) + 2}: 'cat'"]
    assert json.loads(json.dumps(prepared.report.as_dict()))["train"]["reasons"] == train.reasons
    assert "dropped: 1 pairs" in prepared.report.text()
    assert texts(prepared, prepared.train) == good


def test_validation_keeps_every_pair_and_says_what_was_cut(
    section: Section, write: Callable[..., str], ready: Callable[..., Prepared]
) -> None:
    pairs = [("the cat.", "eht tac."), ("", "tac"), ("the red cat " * 30, "tac"), ("dog", "")]
    config = section(valid=write("odd", pairs), max_length=20)
    prepared = ready(config)
    assert len(prepared.valid) == len(pairs)
    assert prepared.valid.source_lengths.max() == 20
    assert prepared.valid.pair(1)[0].tolist() == []
    reasons = prepared.report.valid.reasons
    assert (reasons[report.TOO_LONG], reasons[report.EMPTY_SOURCE], reasons[report.EMPTY_TARGET]) == (1, 1, 1)
    assert "kept, cut to the limit: 1 pairs" in prepared.report.text()


def test_odd_lines_of_the_training_text_are_reported_and_lose_nothing(
    section: Section, tmp_path: Path, ready: Callable[..., Prepared]
) -> None:
    config = section()
    odd = (
        b"\xef\xbb\xbfthe\xe2\x80\xa8cat\r\na\xc2\x85dog\ntwo\rbirds\nred\x00tree\nbad \xff byte\n"
        + b"word " * 100_000
    )
    (tmp_path / "more.en").write_bytes(odd)
    (tmp_path / "more.de").write_bytes(b"eht tac\na god\nowt sdrib\nder eert\ndab etyb\ndrow\n")
    config = config.model_copy(update={"train": (*config.train, str(tmp_path / "more"))})
    prepared = ready(config)
    train = prepared.report.train
    assert (train.read, train.kept) == (306, 305)
    assert train.reasons == {report.TOO_LONG: 1}
    assert train.examples[report.TOO_LONG][0].startswith(f"{tmp_path / 'more'}, line 6: 'word word")
    text = prepared.report.text()
    for expected in ("a byte order mark", "invalid UTF-8, replaced by U+FFFD: line 5", "NUL", "a separator"):
        assert expected in text
    assert [source for source, _ in texts(prepared, prepared.train)][300:304] == [
        "the cat",
        "a dog",
        "two birds",
        "redtree",
    ]


def test_what_is_odd_is_said_of_these_files_and_not_of_the_cached_ones(
    section: Section, ready: Callable[..., Prepared]
) -> None:
    config = section()
    text = Path(f"{config.valid}.en")
    plain = text.read_bytes()
    assert ready(config).report.valid.oddities == []
    text.write_bytes(b"\xef\xbb\xbf" + plain)
    again = ready(config).report.valid
    assert [BOM in note for note in again.oddities] == [True]
    text.write_bytes(plain)
    assert ready(config).report.valid.oddities == []


def test_percentages_are_written_as_people_write_them() -> None:
    split = report.SplitReport("train", read=1, source_tokens=1, source_unknown=1)
    split.add(report.COPY, "x, line 1", "a")
    text = "\n".join(split.lines())
    assert "(100 %)" in text
    assert "  100 % of the source tokens" in text


def test_a_second_run_reuses_tokenizer_and_ids(
    section: Section, ready: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = section()
    first = ready(config)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(encoding, "_encode", never)
    monkeypatch.setattr("transformer.data.vocabulary.train_tokenizers", never)
    log: list[str] = []
    second = ready(config, run="another", seed=2, log=log)
    assert second.source_tokenizer.digest == first.source_tokenizer.digest
    assert texts(second, second.train) == texts(first, first.train)
    assert second.report == first.report
    assert any("from the cache" in line for line in log)


def test_changed_text_or_options_are_not_taken_from_the_cache(
    section: Section, ready: Callable[..., Prepared]
) -> None:
    first = ready(section())
    changed = ready(section(sentences(299)), run="changed")
    assert len(changed.train) == 299
    assert changed.source_tokenizer.digest != first.source_tokenizer.digest
    shorter = ready(section(max_length=10), run="shorter")
    assert len(shorter.train) < 300


def test_a_damaged_cache_entry_is_made_again(
    section: Section, tmp_path: Path, ready: Callable[..., Prepared]
) -> None:
    config = section()
    whole = texts(first := ready(config), first.train)
    for path in (tmp_path / "cache").rglob("*"):
        if path.name in ("source.ids.values", "joint.model"):
            path.write_bytes(path.read_bytes()[:10])
    again = ready(config, run="another")
    assert texts(again, again.train) == whole


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_or_a_lost_byte_of_any_file_of_the_cache_is_found(
    section: Section, tmp_path: Path, ready: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "_SETTLED", -60.0)
    config = section(tokenizer={"sampling": 0.1})
    whole = texts(first := ready(config), first.train)
    unread = "state.json"  # of what was begun; the entry is finished
    found = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    files = sorted(path for path in found if path.name != unread and path.suffix != ".lock")
    assert {path.suffix for path in files} == {".values", ".offsets", ".counts", ".json", ".model"}
    kept = {path: path.read_bytes() for path in files}
    for number, path in enumerate(files * 2):
        if number < len(files):
            flipped(path, 97 * number + 1)
        else:
            path.write_bytes(path.read_bytes()[:-1])
        log: list[str] = []
        again = ready(config, f"run{number}", log=log)
        assert texts(again, again.train) == whole, path.name
        assert sum("is damaged, or of another version" in line for line in log) == 1, path.name
        assert {file: file.read_bytes() for file in files} == kept
    ready(config, "last", log=(log := []))
    assert not any("made anew" in line for line in log)


def test_encoded_text_of_another_number_of_pairs_is_made_anew(
    section: Section, tmp_path: Path, ready: Callable[..., Prepared]
) -> None:
    """An older version kept what it had read of text that was changed meanwhile."""
    config = section()
    whole = texts(first := ready(config), first.train)
    (meta,) = (p for p in (tmp_path / "cache/encoded").glob("*/meta.json") if '"pairs": 300' in p.read_text())
    values = read_checked(meta)
    values["report"]["read"] = 150
    meta.write_text(checked(values))
    again = ready(config, log=(log := []))
    assert texts(again, again.train) == whole
    assert sum("made anew" in line for line in log) == 1


def test_a_cache_without_checksums_is_made_anew_with_a_note(
    section: Section, tmp_path: Path, ready: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "_SETTLED", -60.0)
    config = section()
    first = ready(config)
    (tokenizer,) = (tmp_path / "cache/tokenizers").glob("*/meta.json")
    tokenizer.unlink()
    for path in (tmp_path / "cache/texts").iterdir():
        values = json.loads(path.read_text())
        del values["checksum"]
        path.write_text(json.dumps(values))
    again = ready(config, "again", log=(log := []))
    assert again.source_tokenizer.digest == first.source_tokenizer.digest
    assert again.digests == first.digests
    assert sum("another version of this program: it is made anew" in line for line in log) == 3, log
    ready(config, "last", log=(log := []))
    assert not any("made anew" in line for line in log)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("source.ids.values", b"\xff\xff", r"pair \d+ has the source id 65535, and the vocabulary ends at"),
        ("target.ids.values", b"\xff\xff", r"pair \d+ has the target id 65535, and the vocabulary ends at"),
        ("source.ids.offsets", b"\0" * 7 + b"\x80", "bytes at byte"),
        ("target.text.offsets", b"\xff" * 16, "0 bytes at byte -1 "),
        ("target.ids.values", b"", "are not there"),
        ("source.text.values", b"\xff\xff", "no UTF-8"),
    ],
)
def test_what_is_damaged_while_it_is_in_use_is_named_and_not_trained_on(
    section: Section, tmp_path: Path, ready: Callable[..., Prepared], name: str, content: bytes, words: str
) -> None:
    prepared = ready(section(tokenizer={"sampling": 0.1}) if "text" in name else section())
    (path,) = (path for path in (tmp_path / "cache/encoded").rglob(name) if path.stat().st_size > 2000)
    with open(path, "r+b") as file:
        file.seek(800)
        file.write(content) if content else file.truncate()
    with pytest.raises(DataError, match=words) as caught:
        list(prepared.stream(2000).epoch(1))
    assert f"{path.parent} is damaged" in str(caught.value)
    assert "delete that directory" in str(caught.value)


def test_the_run_keeps_its_own_tokenizer(
    section: Section, tmp_path: Path, ready: Callable[..., Prepared]
) -> None:
    first = ready(section())
    shutil.rmtree(tmp_path / "cache")
    log: list[str] = []
    later = ready(section(sentences(280, seed=9)), log=log)
    assert later.source_tokenizer.digest == first.source_tokenizer.digest
    assert any("text has changed" in line for line in log)
    with pytest.raises(
        DataError, match=r"other options: vocab_size = 90 \(was 120\); use another run directory"
    ):
        ready(section(tokenizer={"vocab_size": 90}))


def test_another_runs_tokenizer_can_be_used(
    section: Section, tmp_path: Path, ready: Callable[..., Prepared]
) -> None:
    first = ready(section())
    config = section(sentences(50, seed=4), tokenizer={"path": str(tmp_path / "run")})
    second = ready(config, run="second")
    assert second.source_tokenizer.digest == first.source_tokenizer.digest
    assert (tmp_path / "second/tokenizer/joint.model").is_file()


def test_separate_tokenizers_serve_their_own_side(section: Section, ready: Callable[..., Prepared]) -> None:
    prepared = ready(section(tokenizer={"joint": False, "source_vocab_size": 80, "target_vocab_size": 90}))
    assert (prepared.source_tokenizer.size, prepared.target_tokenizer.size) == (80, 90)
    assert texts(prepared, prepared.train) == sentences(300)
    assert prepared.report.text().startswith("vocabulary: 80 source and 90 target pieces")


@pytest.mark.usefixtures("starts_warm")
def test_two_processes_prepare_the_same_at_once(section: Section, tmp_path: Path) -> None:
    program = (
        "import sys, hashlib, pathlib\n"
        "from transformer.data.dataset import DataConfig, prepare\n"
        "config = DataConfig.model_validate_json(sys.argv[1])\n"
        "p = prepare(config, pathlib.Path(sys.argv[2]), 3, lambda text: None)\n"
        "order = [batch.source.tolist() for batch in p.stream(200).epoch(5)]\n"
        "print(p.source_tokenizer.digest, hashlib.sha256(repr(order).encode()).hexdigest(), len(p.valid))\n"
    )
    config = section(tokenizer={"sampling": 0.1}).model_dump_json()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, config, str(tmp_path / f"run{seed}")],
            env=os.environ | {"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] != ""
    entries = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_dir()]
    assert len([name for name in entries if len(name) == 32]) == 3  # one tokenizer, two splits
    assert not [name for name in entries if name.startswith(".")]


def test_an_entry_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fetch(tmp_path, "key", fail, lambda entry: True)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    entry, made = cache.fetch(tmp_path, "key", lambda folder: None, lambda entry: True)
    assert made
    assert cache.fetch(tmp_path, "key", fail, lambda entry: True) == (entry, False)


def test_a_cache_that_cannot_be_written_is_a_clear_error(
    section: Section, tmp_path: Path, ready: Callable[..., Prepared]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write the data cache .*set data\.cache"):
        ready(section(cache=str(tmp_path / "file")))


def test_memory_does_not_grow_with_the_corpus(
    section: Section, ready: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_CHUNK", 500)
    peaks = []
    for copies in (1, 8):
        config = section(sentences(1000) * copies, tokenizer={"training_lines": 200})
        tracemalloc.start()
        prepared = ready(config, run=f"run{copies}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(prepared.train) == 1000 * copies
    # The lengths, 8 bytes a pair (and as much again while they are made), are all that may grow.
    assert peaks[1] - peaks[0] < 7_000 * 40


def test_sampled_subwords_are_fresh_each_epoch_and_exact_on_resume(
    section: Section, ready: Callable[..., Prepared]
) -> None:
    config = section(tokenizer={"sampling": 0.2, "sampling_side": "source"})
    prepared = ready(config)
    stream = prepared.stream(300)

    def ids(epoch: int, start: int = 0, prefetch: int = 0) -> list[list[list[int]]]:
        stream = ready(config, run="again").stream(300, prefetch=prefetch)
        return [batch.source.tolist() for batch in stream.epoch(epoch, start)]

    whole = [batch.source.tolist() for batch in stream.epoch(2)]
    assert ids(2, start=3) == whole[3:]
    assert ids(2, start=3, prefetch=2) == whole[3:]
    index = 5
    drawn = (
        {tuple(prepared.sampler.pair(epoch, index)[0].tolist()) for epoch in range(10)}
        if prepared.sampler
        else {()}
    )
    assert len(drawn) > 3
    assert {prepared.source_tokenizer.decode(ids) for ids in drawn} == {sentences(300)[index][0]}
    for batch in stream.epoch(1):
        for row, place in enumerate(batch.indices.tolist()):
            target = batch.target_out[row]
            assert target[: target.tolist().index(EOS)].tolist() == prepared.train.pair(place)[1].tolist()


def test_a_sampled_segmentation_never_exceeds_the_limit(
    section: Section, ready: Callable[..., Prepared]
) -> None:
    prepared = ready(section(tokenizer={"sampling": 0.9}, max_length=20))
    for batch in prepared.stream(300).epoch(0):
        assert batch.source.shape[1] <= 20
        assert batch.target_in.shape[1] <= 20


def test_text_that_is_mostly_unknown_is_refused_with_its_characters(
    section: Section, tmp_path: Path, ready: Callable[..., Prepared]
) -> None:
    ready(section())
    foreign = [("日本語 の 文", "eine Äußerung")] * 30
    config = section(foreign, tokenizer={"path": str(tmp_path / "run")})
    with pytest.raises(DataError, match=r"of the source tokens \(en\) are unknown.*characters: .*日"):
        ready(config, run="foreign")
    allowed = ready(config.model_copy(update={"max_unknown": 0.9}), run="allowed")
    assert UNK in allowed.train.pair(0)[0]
    assert "of the source tokens are unknown" in allowed.report.text()


@pytest.mark.parametrize("size", [10_000, 2**31 - 1])
def test_a_vocabulary_the_text_cannot_fill_is_refused_in_prepare(
    section: Section, ready: Callable[..., Prepared], size: int
) -> None:
    with pytest.raises(DataError, match="larger than the text of the two sides allows: at most"):
        ready(section(tokenizer={"vocab_size": size}))


def test_nothing_left_after_filtering_says_why(section: Section, ready: Callable[..., Prepared]) -> None:
    pairs = [("the red cat sees two birds", "eht der tac sees owt sdrib")] * 20
    config = section(pairs, max_length=2, tokenizer={"vocab_size": 25})
    with pytest.raises(
        DataError, match=r"no training pair is left after filtering:\n.*\n.*a side is too long"
    ):
        ready(config)


def test_every_missing_file_is_found_before_work_begins(
    section: Section, tmp_path: Path, ready: Callable[..., Prepared]
) -> None:
    for key in ("train", "valid", "test"):
        value = str(tmp_path / "trian")
        config = section(**{key: {"x": value} if key == "test" else value})
        with pytest.raises(DataError, match=r"trian\.en"):
            ready(config)
        assert not (tmp_path / "cache").exists()


def test_the_section_refuses_what_makes_no_sense() -> None:
    for values, message in (
        ({"source": "de"}, "both 'de'"),
        ({"source": "fr"}, r"demo \(train, valid\) has en and de"),
        ({"train": "data/x"}, "valid needs the prefix"),
        ({"train": []}, "at least 1"),
        ({"source": False}, "in quotes"),
        ({"train": [True]}, "expected text"),
        ({"trian": "x"}, "Extra inputs"),
        ({"max_length": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            DataConfig.model_validate(values)
    assert DataConfig.model_validate({"train": "a", "valid": "b"}).train == ("a",)
    assert DataConfig.model_validate({"train": ["a", "c"], "valid": "b"}).train == ("a", "c")
    assert DataConfig.model_validate(DataConfig().model_dump(mode="json")) == DataConfig()


def test_every_field_of_the_section_is_described() -> None:
    from transformer.data.tokenizer import TokenizerConfig

    for model in (DataConfig, TokenizerConfig):
        assert all(field.description for field in model.model_fields.values())


def test_the_validation_text_lines_up_with_the_encoded_pairs(
    section: Section, ready: Callable[..., Prepared]
) -> None:
    config = section()
    prepared = ready(config)
    assert texts(prepared, prepared.valid) == read_parallel(config.valid, "en", "de", "valid")


def test_validation_text_of_blank_lines_only_is_refused(
    section: Section, ready: Callable[..., Prepared], tmp_path: Path
) -> None:
    for language in ("en", "de"):
        (tmp_path / f"blank.{language}").write_text("\n \n\n")
    with pytest.raises(DataError, match="validation text holds blank lines only"):
        ready(section(valid=str(tmp_path / "blank")))

"""Line integrity, and a clear error for every file that cannot be read."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.core.errors import DataError
from transformer.data import corpus
from transformer.data.corpus import Oddities, lines_of, read_lines, read_pairs, read_parallel

ODD = ["a\u2028b", "c\x85d", "e\rf", "g\x0bh\x0ci", "j\u2029k", "l\x00m", "", " ", "\x1c\x1d\x1e"]


def test_only_newline_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.en"
    path.write_bytes("".join(text + "\n" for text in ODD).encode())
    assert list(read_lines(path)) == ODD


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b), min_size=1, max_size=20), st.booleans()
)
def test_as_many_lines_come_out_as_newlines_say(rows: list[bytes], ends_in_newline: bool) -> None:
    data = b"\n".join(rows) + (b"\n" if ends_in_newline else b"")
    expected = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # a UTF-16 mark, which another test is about
        data = b"x" + data
    assert len(list(lines_of(io.BytesIO(data), "x"))) == expected


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12), max_size=12))
def test_text_survives_up_to_one_trailing_cr(rows: list[str]) -> None:
    data = "".join(row + "\n" for row in rows).encode()
    expected = [row.removesuffix("\r") for row in rows]
    if expected:
        expected[0] = rows[0].removeprefix("\ufeff").removesuffix("\r")
    assert list(lines_of(io.BytesIO(data), "x")) == expected


def test_crlf_loses_one_cr_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "x.en"
    path.write_bytes(b"one\r\ntwo\r\r\nthree\r")
    assert list(read_lines(path)) == ["one", "two\r", "three"]


def test_gz_and_plain_text_read_the_same(tmp_path: Path) -> None:
    data = "".join(text + "\n" for text in ODD).encode()
    (tmp_path / "x.en").write_bytes(data)
    (tmp_path / "y.en.gz").write_bytes(gzip.compress(data))
    assert list(read_lines(tmp_path / "x.en")) == list(read_lines(tmp_path / "y.en.gz"))


def test_bom_nul_and_invalid_bytes_are_reported_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.en"
    path.write_bytes(b"\xef\xbb\xbffirst\nb\xffad\nnu\x00l\nfine\n\xc3\ncr\rcr\n")
    oddities = Oddities("x.en")
    assert list(read_lines(path, oddities)) == ["first", "b\ufffdad", "nu\x00l", "fine", "\ufffd", "cr\rcr"]
    assert oddities.lines == {corpus.BOM: [1], corpus.INVALID: [2, 5], corpus.NUL: [3], corpus.SEPARATOR: [6]}
    assert "x.en: 2 lines with invalid UTF-8, replaced by U+FFFD: lines 2, 5" in oddities.messages()


def test_only_the_first_odd_lines_are_named() -> None:
    oddities = Oddities("x")
    assert len(list(lines_of(io.BytesIO(b"\xff\n" * 100), "x", oddities))) == 100
    assert oddities.messages() == [f"x: 100 lines with {corpus.INVALID}: lines 1, 2, 3, 4, 5, ..."]


def test_a_missing_file_says_what_was_tried_and_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "val.en.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"valid\.en \(nor valid\.en\.gz\).*has val\.en\.gz"):
        read_parallel(str(tmp_path / "valid"), "en", "de")
    with pytest.raises(DataError, match=r"directory .*nowhere does not exist"):
        read_parallel(str(tmp_path / "nowhere" / "train"), "en", "de")


@pytest.mark.parametrize("name", ["x.en", "x.en.gz"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    with pytest.raises(DataError, match="the file is empty"):
        list(read_lines(tmp_path / name))


@pytest.mark.parametrize("longer", [0, 1])
def test_sides_of_different_length_name_the_line_without_partner(tmp_path: Path, longer: int) -> None:
    counts = {"en": 3, "de": 3}
    counts[("en", "de")[longer]] = 5
    for language, count in counts.items():
        (tmp_path / f"x.{language}").write_text("word\n" * count)
    with pytest.raises(DataError, match=r"has 3 lines, .* has 5; line 4 of .*x\." + ("en", "de")[longer]):
        list(read_pairs(str(tmp_path / "x"), "en", "de"))


@pytest.mark.parametrize("cut", [5, 40])
def test_a_compressed_file_cut_short_is_an_error(tmp_path: Path, cut: int) -> None:
    packed = gzip.compress("".join(f"line {i * i}\n" for i in range(500)).encode())
    (tmp_path / "x.en.gz").write_bytes(packed[:-cut])
    with pytest.raises(DataError, match=r"x\.en\.gz: the compressed file is cut short"):
        list(read_lines(tmp_path / "x.en.gz"))


def test_a_damaged_compressed_file_is_an_error(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"some text\n" * 100))
    packed[-6] ^= 0xFF
    (tmp_path / "y.en.gz").write_bytes(packed)
    with pytest.raises(DataError, match="not a sound gzip file"):
        list(read_lines(tmp_path / "y.en.gz"))


def test_the_bytes_and_not_the_name_say_whether_a_file_is_compressed(tmp_path: Path) -> None:
    (tmp_path / "x.en").write_bytes(gzip.compress(b"some text\n") + gzip.compress(b"and more\n"))
    (tmp_path / "y.en.gz").write_bytes(b"some text\nand more\n")
    for name in ("x.en", "y.en.gz"):
        assert list(read_lines(tmp_path / name)) == ["some text", "and more"]


def test_utf16_text_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "x.en").write_bytes("text\n".encode("utf-16"))
    with pytest.raises(DataError, match="convert it to UTF-8"):
        list(read_lines(tmp_path / "x.en"))


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LONGEST_LINE", 100)
    assert len(list(lines_of(io.BytesIO(b"x" * 99 + b"\n" + b"y" * 100), "x"))) == 2
    with pytest.raises(DataError, match="x: line 2 is longer than 100 bytes"):
        list(lines_of(io.BytesIO(b"x\n" + b"y" * 101), "x"))


def test_a_lenient_reader_cuts_a_line_without_end_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LONGEST_LINE", 100)
    monkeypatch.setattr(corpus, "_PIECE", 7)
    for long in ("y" * 101, "y" * 1000, "é" * 70, "y" + "é" * 70, "漢" * 50, "𝄞" * 40 + "y"):
        oddities = Oddities("x")
        data = f"a\n{long}\nb\n{long}".encode()
        read = list(lines_of(io.BytesIO(data), "x", oddities, strict=False))
        assert (len(read), read[0], read[2]) == (4, "a", "b")
        for line in (read[1], read[3]):
            assert long.startswith(line)
            assert len(line.encode()) > 96
        assert oddities.lines == {corpus.TOO_LONG: [2, 4]}
        assert "cut short: lines 2, 4" in oddities.messages()[0]


def test_a_line_that_just_fits_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LONGEST_LINE", 100)
    oddities = Oddities("x")
    read = lines_of(io.BytesIO(b"y" * 100 + b"\nb\n" + b"z" * 100), "x", oddities)
    assert list(read) == ["y" * 100, "b", "z" * 100]
    assert not oddities.counts


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_lenient_reader_notes_utf16_and_goes_on(encoding: str) -> None:
    data = "\ufefftext\nmore\n".encode(encoding)
    oddities = Oddities("x")
    assert len(list(lines_of(io.BytesIO(data), "x", oddities, strict=False))) >= data.count(b"\n")
    assert oddities.lines[corpus.UTF16] == [1]
    assert "iconv" in oddities.messages()[0]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b), min_size=1, max_size=20))
def test_no_bytes_stop_a_lenient_reader(rows: list[bytes]) -> None:
    for mark in (b"", b"\xff\xfe", b"\xfe\xff"):
        data = mark + b"\n".join(rows) + b"\n"
        assert len(list(lines_of(io.BytesIO(data), "x", Oddities("x"), strict=False))) == len(rows)


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.en").mkdir()
    with pytest.raises(DataError, match=r"no such file: .*x\.en"):
        read_parallel(str(tmp_path / "x"), "en", "de")
    with pytest.raises(DataError, match="cannot read"):
        list(read_lines(tmp_path / "x.en"))


def test_pairs_are_the_lines_of_both_files(write: Callable[..., str]) -> None:
    pairs = [(text, text[::-1]) for text in ODD]
    assert read_parallel(write("x", pairs), "en", "de") == pairs
    assert read_parallel(write("x", pairs), "de", "en") == [(b, a) for a, b in pairs]


def test_the_demo_corpus_reads_in_both_directions_and_no_other() -> None:
    forward = read_parallel("demo", "en", "de", "valid")
    assert forward
    assert [(b, a) for a, b in read_parallel("demo", "de", "en", "valid")] == forward
    with pytest.raises(DataError, match="no en-fr"):
        read_parallel("demo", "en", "fr")

"""Hostile and odd input: a documented exit code, one message, as many lines out as in, and nothing runs."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile
import hostile_sizes
import pytest
from fuzz import all_kinds, tried
from fuzz_kinds import JSON, KINDS, Kind
from fuzzing import Answer, Bench, call, require

from transformer.cli.command import command
from transformer.cli.data import main as data
from transformer.cli.demo import main as demo
from transformer.cli.train import main as train
from transformer.cli.translate import main as translate
from transformer.data import corpus, scanning
from transformer.training.checkpoint import CHECKSUM
from transformer.training.history import Line, read_past

CASES = 300
MANY_DIGITS = "0x" + "f" * 5000  # Python reads it, and does not print it


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("hostile")
        patch.chdir(folder)  # where runs and caches are written that nobody named
        yield Bench(folder)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_case_ends_as_documented(bench: Bench, kind: Kind) -> None:
    cases = -(-CASES * kind.share // sum(each.share for each in KINDS))
    count, failures = tried(kind, bench, cases, start=0)
    assert not failures, "\n\n".join(failures.values())
    assert count >= cases // 2, "the generator gave up"


@pytest.mark.slow
def test_ten_thousand_cases_end_as_documented() -> None:
    found = list(all_kinds(11_000, start=2))  # some kinds have fewer cases than their share
    assert {each["kind"]: each["failures"] for each in found if each["failures"]} == {}
    assert sum(each["count"] for each in found) >= 10_000


def test_the_fuzzer_sees_a_crash_a_wrong_code_and_a_lost_line() -> None:
    with pytest.raises(ZeroDivisionError):
        call(lambda argv: 1 // 0, [])
    for answer in (Answer(4, b"", "error: x\n"), Answer(1, b"", ""), Answer(1, b"", "error: x\nerror: y\n")):
        with pytest.raises(AssertionError):
            require(answer, [0, 1])
    with pytest.raises(AssertionError, match="3 lines in, 2 lines out"):
        require(Answer(0, b"a\nb\n", ""), [0], 3)


@pytest.mark.parametrize(
    "fault",
    [hostile.pickles, hostile.tags, hostile.climbing, hostile.places],
    ids=lambda f: f.__name__,
)
def test_nothing_that_is_read_runs_climbs_out_or_is_waited_for(bench: Bench, fault: Any) -> None:
    rows = list(fault(bench))
    assert rows
    assert not [row for row in rows if row[2].startswith("FAILED")]


@pytest.mark.skipif(sys.platform != "linux", reason="measured by wait4")
def test_a_state_that_unfolds_without_bound_ends_a_resumed_run_at_once(bench: Bench) -> None:
    """One of them in a process that can be killed; all of them in test_unfolding.py."""
    try:
        fault, _, outcome = next(hostile.unfolding(bench))
    finally:
        bench.restore()
    assert "2^60" in fault
    assert outcome.startswith("exit code 1, ")


@pytest.mark.parametrize(
    "text",
    [
        "train: {precision: VALUE}",
        "extends: VALUE",
        "decode: VALUE",
        "seed: VALUE",
        "model: {norm: VALUE}",
        "data: {train: [VALUE]}",
    ],
)
@pytest.mark.parametrize("value", [MANY_DIGITS, '"\\ud800"'], ids=["digits", "surrogate"])
def test_a_value_that_cannot_be_printed_or_opened_is_a_configuration_error(
    bench: Bench, text: str, value: str
) -> None:
    file = bench.file("case.yaml", text.replace("VALUE", value).encode())
    answer = require(call(train, [file, "--check"]), [2])
    assert "cannot read" in answer.err
    assert ", line 1" in answer.err


def test_a_number_of_many_digits_on_the_command_line_is_refused(bench: Bench) -> None:
    require(call(train, [str(bench.config), "--check", "--set", f"train.precision={MANY_DIGITS}"]), [2])


def test_a_cache_that_no_file_system_can_name_is_refused(bench: Bench) -> None:
    for name in ('"a\\0b"', '"\\ud800"'):
        text = bench.config.read_text().replace(f"cache: {bench.folder}/cache", f"cache: {name}")
        require(call(data, [bench.file("case.yaml", text.encode())]), [2])


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_configuration_without_end_is_refused(bench: Bench) -> None:
    answer = require(call(train, ["/dev/zero", "--check"]), [2])
    assert "no configuration" in answer.err


@pytest.mark.parametrize("content", JSON[-2:], ids=["lists", "mappings"])
def test_json_nested_too_deeply_is_a_damaged_file(bench: Bench, content: bytes) -> None:
    with bench.damaged(bench.run / "result.json", content):
        require(call(demo, [str(bench.run)]), [1])
    (bench.run / "tokenizer/trained_from.json").write_bytes(content)
    try:
        require(call(train, ["--resume", str(bench.run)]), [1])
    finally:
        bench.restore()
    weights = bench.kept[bench.run / "model.safetensors"]
    (size,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + size])
    header["__metadata__"]["tied"] = content.decode()
    packed = json.dumps(header).encode()
    with bench.damaged(
        bench.run / "model.safetensors", struct.pack("<Q", len(packed)) + packed + weights[8 + size :]
    ):
        require(call(translate, [str(bench.run)], b"one\n"), [1])


@pytest.mark.parametrize(
    "content", ["[1]", "nojson", "null", "[" * 100_000], ids=["list", "text", "null", "deep"]
)
def test_weights_whose_header_names_no_options_are_refused(bench: Bench, content: str) -> None:
    weights = bench.kept[bench.run / "model.safetensors"]
    (size,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + size])
    header["__metadata__"] = {**header["__metadata__"], "model": content}
    header["__metadata__"].pop(CHECKSUM)
    packed = json.dumps(header).encode()
    whole = struct.pack("<Q", len(packed)) + packed + weights[8 + size :]
    with bench.damaged(bench.run / "model.safetensors", whole):
        answer = require(call(translate, [str(bench.run)], b"one\n"), [1])
    assert "names no options of a model" in answer.err


def test_a_run_directory_whose_name_is_no_utf_8_is_refused(bench: Bench) -> None:
    answer = require(call(train, [str(bench.config), "--run-dir", "\udca4"]), [2])
    assert "choose another --run-dir" in answer.err


def test_damaged_lines_of_the_metrics_are_left_out(tmp_path: Path) -> None:
    good = b'{"update": 5, "nll": 3.5, "learning_rate": 0.1}\n'
    bad = (b"\xff\n", b"{\n", b"3\n", b'{"nll": 1}\n', b'{"update": "x", "nll": []}\n', JSON[-1] + b"\n")
    bad = (*bad, b'{"update": 1e999}\n')
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(line + good for line in bad))
    past = read_past(tmp_path / "metrics.jsonl")
    assert past.lines == [Line(5, 3.5, 0.1)] * len(bad)
    assert not past.gradients


@pytest.mark.parametrize(
    "flags",
    [
        ["--beam", "1001"],
        ["--json", "--search", "sampling", "--n-best", "1001"],
        ["--max-length", "100001"],
        ["--batch-tokens", "10000001"],
        ["--set", "decode.chunk_lines=1000001"],
        ["--set", "decode.max_source_length=100001"],
    ],
    ids=lambda flags: flags[-2],
)
def test_numbers_beyond_all_measure_are_refused(bench: Bench, flags: list[str]) -> None:
    answer = require(call(translate, [str(bench.run), *flags], b"one\n"), [2])
    assert "must be less than or equal to" in answer.err


def test_a_search_that_no_memory_holds_is_refused_before_it_starts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformer.decoding.memory.memory_of", lambda device: 100_000)
    assert call(translate, [str(bench.run)], b"one\n").code == 0
    answer = require(call(translate, [str(bench.run), "--beam", "1000"], b"one\n"), [2])
    assert "decode.beam: 1,000 hypotheses of up to 8 subwords" in answer.err
    assert "lower decode.beam, decode.max_length" in answer.err


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nmore")],
    ids=["python", "torch"],
)
def test_a_lack_of_memory_is_one_message(error: Exception) -> None:
    @command
    def main(argv: Any) -> int:
        raise error

    answer = require(call(main, []), [1])
    assert answer.err.count("\n") == 1
    assert "decode.batch_tokens" in answer.err


def test_any_other_runtime_error_is_ours_and_not_hidden() -> None:
    @command
    def main(argv: Any) -> int:
        raise RuntimeError("expected scalar type")

    with pytest.raises(RuntimeError, match="scalar type"):
        call(main, [])


def test_a_pair_that_does_not_fit_is_named_by_its_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Two lines are left out before the pair; the model fails on the one sentence of its length.
    text = "".join(["one two.\n", "\n", "x" * 40 + "\n", "red house sees one small cat.\n", "one two.\n"])
    for side in ("en", "de"):
        bench.file(f"tight.{side}", text.encode())
    config = bench.config.read_text().replace("/train\n", "/tight\n")
    config = config.replace("data:", "data:\n  max_length: 36")
    config = config.replace("vocab_size: 40, type: char", f"path: {bench.run}/tokenizer")
    run = _short_of_memory(monkeypatch, longest=20)
    config = config.replace("cache:", "max_unknown: 0.99\n  cache:")
    answer = run(train, [bench.file("tight.yaml", config.encode()), "--run-dir", str(tmp_path / "run")])
    assert answer.code == 1, answer.err
    assert f"error: {bench.folder}/tight, line 4: update 1: memory does not hold a pair" in answer.err


def _short_of_memory(monkeypatch: pytest.MonkeyPatch, longest: int) -> Callable[..., Answer]:
    from transformer.model.transformer import Transformer

    hidden = Transformer.hidden

    def short(self: Transformer, source: Any, target_in: Any) -> Any:
        if self.training and source.shape[1] > longest:
            raise MemoryError
        return hidden(self, source, target_in)

    monkeypatch.setattr(Transformer, "hidden", short)
    return call


@pytest.mark.skipif(sys.platform != "linux", reason="measured by wait4")
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["plain", "json"])
def test_a_line_of_many_words_is_cut_and_answered(bench: Bench, flags: list[str]) -> None:
    words = b"one\n" + b"red house " * 50_000 + b"\ntwo\n"
    answer = require(call(translate, [str(bench.run), *flags], words), [0], 3)
    assert "line 2: too long" in answer.err


@pytest.mark.parametrize("name", ["a line of 100,000 words", "a line of 1 GB"])
def test_a_long_line_of_the_text_is_left_out_or_refused(bench: Bench, name: str) -> None:
    for config in hostile_sizes.long_text(bench, hostile_sizes.LONG[name]).values():
        answer = require(call(data, [config]), [1 if "GB" in name else 0])
        assert ("is this a text file?" if "GB" in name else "pairs read") in answer.out.decode() + answer.err


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> int:
    """The most bytes that a line may have, made less; still more than a piece that is read at once."""
    most = 1_500_000
    for module in (corpus, scanning):
        assert module.LONGEST_LINE > most > module._PIECE
        monkeypatch.setattr(module, "LONGEST_LINE", most)
    return most


def words(count: int) -> bytes:
    """So many bytes of words."""
    return (b"red house " * (count // 10 + 1))[:count]


@pytest.mark.parametrize("more", [0, 1], ids=["as long", "longer"])
def test_a_line_of_the_text_may_be_as_long_as_the_longest_and_no_longer(
    bench: Bench, longest: int, more: int
) -> None:
    for config in hostile_sizes.long_text(bench, words(longest + more)).values():
        answer = require(call(data, [config]), [more])
        said = f"long.en: line 61 is longer than {longest:,} bytes" if more else "61 pairs read, 60 kept"
        assert said in answer.out.decode() + answer.err


def test_a_line_without_end_is_cut_and_answered(bench: Bench, longest: int) -> None:
    """Words from standard input, and NUL, which is unseen, from a file."""
    for more in (0, 1):
        for line, said in ((words(longest + more), "line 2: too long"), (bytes(longest + more), corpus.NUL)):
            text = b"one\n" + line + b"\ntwo\n" + line
            flags = ["--input", bench.file("long.txt", text)] if said == corpus.NUL else []
            answer = require(call(translate, [str(bench.run), *flags], b"" if flags else text), [0], 4)
            assert (f"2 lines with {corpus.TOO_LONG}: lines 2, 4" in answer.err) == bool(more)
            assert said in answer.err


@pytest.mark.parametrize("flag", ["--prefix", "--score", "--reference"])
def test_a_partner_without_end_is_an_error_that_names_it(bench: Bench, longest: int, flag: str) -> None:
    for more in (0, 1):
        partner = bench.file("partner.txt", b"one\n" + words(longest + more))
        answer = require(call(translate, [str(bench.run), flag, partner], b"one\ntwo\n"), [1])
        assert (corpus.TOO_LONG in answer.err) == bool(more)
        assert f"error: {partner}: line 2" in answer.err


def test_a_header_without_end_is_a_damaged_file(bench: Bench) -> None:
    with hostile_sizes.endless_header(bench):
        answer = require(call(translate, [str(bench.run)], b"one\n"), [1])
    assert "model.safetensors" in answer.err


def test_a_vocabulary_of_next_to_nothing_trains_or_says_what_to_set(bench: Bench) -> None:
    rows = list(hostile.vocabularies(bench))
    assert len(rows) == 5
    assert not [row for row in rows if row[2].startswith("FAILED")]


def test_a_vocabulary_with_a_piece_that_is_no_text_is_refused(bench: Bench) -> None:
    file = bench.run / "tokenizer/joint.model"
    content = bench.kept[file]
    assert b"\n\x01e\x15" in content
    with bench.damaged(file, content.replace(b"\n\x01e\x15", b"\n\x01\x9d\x15")):
        answer = require(call(translate, [str(bench.run)], b"one\n"), [1])
    assert "joint.model: not a SentencePiece model" in answer.err

"""Preparation: several processes give the bytes of one, a killed one goes on, and text is read once."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentences import sentences

from transformer.core.errors import DataError
from transformer.data import chunks, encoding, scanning, workers, writing
from transformer.data.checksums import checked
from transformer.data.config import DataConfig
from transformer.data.corpus import Oddities, lines_of
from transformer.data.dataset import prepare
from transformer.data.meter import Meter
from transformer.data.report import SplitReport
from transformer.data.scanning import Scan, remembered, scan_lines

Section = Callable[..., DataConfig]
ODD = [("", "leer"), ("word " * 400, "zu lang"), ("copy", "copy"), ("a b c d e f g h i j k l", "x")]


@pytest.fixture
def odd_text() -> list[tuple[str, str]]:
    text = sentences(180)
    for place, pair in enumerate(ODD * 3):
        text.insert(place * 13, pair)
    return text


def entries(cache: Path) -> dict[str, str]:
    """Files of the encoded text, and the hash of each."""
    found = (path for path in (cache / "encoded").rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(p.relative_to(cache)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def run(config: DataConfig, folder: Path) -> list[str]:
    log: list[str] = []
    prepare(config, folder, 1, log.append)
    return log


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_CHUNK", 20)
    monkeypatch.setattr(writing.CorpusWriter.__init__, "__defaults__", (0.0,))  # commit after each chunk


@pytest.mark.usefixtures("small", "starts_warm")
@pytest.mark.parametrize("sampling", [0.0, 0.1])
def test_several_processes_write_the_bytes_of_one(
    section: Section,
    tmp_path: Path,
    odd_text: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    sampling: float,
) -> None:
    options = {"tokenizer": {"sampling": sampling}, "drop_copies": True, "max_ratio": 4.0}
    run(section(odd_text, cache=str(tmp_path / "one"), **options), tmp_path / "r1")
    monkeypatch.setattr(encoding, "_WORTHWHILE", 100)
    monkeypatch.setattr(encoding, "usable_cpus", lambda: 3)
    config = section(odd_text, cache=str(tmp_path / "three"), **options)
    log = run(config, tmp_path / "r3")
    assert any("in 3 processes" in line for line in log)
    assert entries(tmp_path / "one") == entries(tmp_path / "three")
    assert len(entries(tmp_path / "one")) == (11 if sampling else 7) + 7


def test_the_report_of_parts_is_that_of_the_whole(section: Section, odd_text: list[tuple[str, str]]) -> None:
    whole, sum_of_parts = SplitReport("train"), SplitReport("train")
    for place in range(8):
        part = SplitReport("train", read=2, kept=1, source_unknown=place)
        for report in (whole, part):
            report.add("odd", f"line {place}", "text")
            report.add(f"odd {place % 3}", f"line {place}", "text")
        sum_of_parts.merge(part)
    whole.read, whole.kept, whole.source_unknown = 16, 8, 28
    assert sum_of_parts == whole


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("at", [0, 1, 4, 9])
def test_preparation_goes_on_where_it_stopped(
    section: Section,
    tmp_path: Path,
    odd_text: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    run(section(odd_text, cache=str(tmp_path / "straight")), tmp_path / "r0")
    config = section(odd_text)
    add, added = writing.CorpusWriter.add, []

    def stop(self: writing.CorpusWriter, *part: object) -> None:
        add(self, *part)  # type: ignore[arg-type]
        added.append(part)
        if len(added) == at + 1:
            for values, _ in self._files.values():
                values.write(b"beyond what is committed")
            raise KeyboardInterrupt

    monkeypatch.setattr(writing.CorpusWriter, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "r1")
    log = run(config, tmp_path / "r1")
    done = min(192, 20 * (at + 1))
    assert any(f"encoding 192 pairs of train, {done} of them done before" in line for line in log), log
    assert len(added) == 10 + 1  # each chunk of the two splits once
    assert entries(tmp_path / "cache") == entries(tmp_path / "straight")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "damage"),
    [("target.ids.values", _cut), ("source.ids.offsets", _flip), ("state.json", _flip)],
)
def test_what_was_begun_and_is_damaged_is_begun_again(
    section: Section,
    tmp_path: Path,
    odd_text: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    run(section(odd_text, cache=str(tmp_path / "straight")), tmp_path / "r0")
    config = section(odd_text)
    with monkeypatch.context() as patch:
        patch.setattr(writing.CorpusWriter, "close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "r1")
    begun = next((tmp_path / "cache/encoded").glob(".*.begun.*"))
    damage(begun / name)
    log = run(config, tmp_path / "r1")
    assert "encoding 192 pairs of train" in log
    assert entries(tmp_path / "cache") == entries(tmp_path / "straight")


KILLED = """
import os, pathlib, signal, sys
from transformer.data import encoding, writing, workers
from transformer.data.dataset import DataConfig, prepare
encoding._CHUNK, encoding._WORTHWHILE, encoding.usable_cpus = 20, 100, lambda: 2
writing.CorpusWriter.__init__.__defaults__ = (0.0,)
add, started = writing.CorpusWriter.add, workers._Worker.__init__
def killed(self, *part):
    add(self, *part)
    if self.report.read >= 60:
        os.kill(os.getpid(), signal.SIGKILL)
def told(self):
    started(self)
    print(self.process.pid, flush=True)
writing.CorpusWriter.add, workers._Worker.__init__ = killed, told
prepare(DataConfig.model_validate_json(sys.argv[1]), pathlib.Path(sys.argv[2]), 1, lambda text: None)
"""


@pytest.mark.usefixtures("small", "starts_warm")
def test_a_killed_preparation_leaves_no_process_and_loses_nothing(
    section: Section, tmp_path: Path, odd_text: list[tuple[str, str]]
) -> None:
    run(section(odd_text, cache=str(tmp_path / "straight")), tmp_path / "r0")
    config = section(odd_text)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, config.model_dump_json(), str(tmp_path / "r1")],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(line) for line in done.stdout.split()]
    assert len(pids) == 2
    for _ in range(100):
        if not [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
            break
        time.sleep(0.1)
    else:
        pytest.fail("processes that encode outlive the one they work for")
    log = run(config, tmp_path / "r1")
    assert any("60 of them done before" in line for line in log), log
    assert entries(tmp_path / "cache") == entries(tmp_path / "straight")


@pytest.mark.usefixtures("small")
def test_a_full_disk_is_a_message_and_what_was_done_is_kept(
    section: Section, tmp_path: Path, odd_text: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, commit = section(odd_text), writing.CorpusWriter.commit

    def full(self: writing.CorpusWriter) -> None:
        if self.report.read >= 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        commit(self)

    with monkeypatch.context() as patch:
        patch.setattr(writing.CorpusWriter, "commit", full)
        with pytest.raises(
            DataError, match=r"No space left on device; set data\.cache .* what is done is kept"
        ):
            run(config, tmp_path / "r")
    assert any("80 of them done before" in line for line in run(config, tmp_path / "r"))


def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer.data.tokenizer import TokenizerConfig, _train

    model = _train(iter(["a b c d e"] * 20), "text", "char", 9, TokenizerConfig(type="char"))
    recipe = chunks.Recipe("train", (model, model), 99, None, False, False, True)
    chunk = [("x", chunks.Pair(1, "a b", "b a"))]
    receive = workers._Worker.receive

    def kill(self: workers._Worker) -> chunks.Part:
        self.process.kill()
        self.process.wait()
        return receive(self)

    with monkeypatch.context() as patch:
        patch.setattr(workers._Worker, "receive", kill)
        with pytest.raises(DataError, match=r"has ended \(exit code -9\).*Start again"):
            list(workers.encode_all(recipe, [chunk] * 200, 2))
    assert [part.report.read for part in workers.encode_all(recipe, [chunk] * 5, 2)] == [1] * 5


LINES = st.lists(
    st.sampled_from(["plain", "", "ä", "a\rb", "end\r", "\x00", "\u2028", "\x85", "x" * 30])
    | st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=5),
    max_size=20,
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, st.booleans(), st.booleans(), st.sampled_from([b"", b"\xff", b"\xef\xbb\xbf"]), st.booleans())
def test_a_scan_in_pieces_finds_what_reading_line_by_line_finds(
    tmp_path: Path, lines: list[str], ended: bool, packed: bool, odd: bytes, last: bool
) -> None:
    text = "\n".join(["first", *lines]).encode() + b"\n" * ended
    text = text + odd if last else odd + text
    path = tmp_path / "text"
    path.write_bytes(gzip.compress(text) if packed else text)
    expected, remarks = hashlib.sha256(), Oddities(str(path))
    count = 0
    for line in lines_of(io.BytesIO(text), str(path), remarks):
        expected.update(line.encode() + b"\n")
        count += 1
    found, notes, read = hashlib.sha256(), Oddities(str(path)), []
    assert scan_lines(path, found, notes, read.append, piece=16) == count
    assert found.digest() == expected.digest()
    assert notes.messages() == remarks.messages()
    assert sum(read) == path.stat().st_size


def test_files_that_have_not_changed_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache, scans = tmp_path / "a.en", tmp_path / "cache", []

    def scan() -> Scan:
        scans.append(file.read_text())
        return Scan(len(scans), "digest", ["a remark"])

    file.write_text("one\n")
    assert remembered(cache, "train", [file], scan) == Scan(1, "digest", ["a remark"])
    assert remembered(cache, "train", [file], scan).count == 2  # it may change within the clock's tick
    monkeypatch.setattr(scanning, "_SETTLED", -60.0)
    first = remembered(cache, "train", [file], scan)
    assert remembered(cache, "train", [file], scan) == first
    assert remembered(cache, "valid", [file], scan) != first
    state = file.stat()
    file.write_text("two\n")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a careless copy does
    assert remembered(cache, "train", [file], scan) != first
    assert scans[-1] == "two\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "{",
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: "7",
        lambda text: '{"a": ' * 900 + "1" + "}" * 900,
        lambda text: '{"checksum": ' + "[" * 900 + "]" * 900 + "}",
        lambda text: '{"count": "x", "digest": 5, "oddities": 7}',
        lambda text: text.replace('"count": 400', '"count": 100'),
        lambda text: text.replace("abcdef", "abcdee"),
        lambda text: text[:-1],
        lambda text: checked({"count": 400}),
    ],
)
def test_what_is_remembered_of_a_text_is_scanned_anew_when_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[str], str]
) -> None:
    monkeypatch.setattr(scanning, "_SETTLED", -60.0)
    file, log = tmp_path / "a.en", list[str]()
    file.write_text("one\n")
    found = Scan(400, "abcdef", ["a remark"])
    assert remembered(tmp_path, "train", [file], lambda: found, log.append) == found
    (entry,) = (tmp_path / "texts").iterdir()
    written = entry.read_text()
    entry.write_text(damage(written))
    assert entry.read_text() != written
    assert log == []
    assert remembered(tmp_path, "train", [file], lambda: found, log.append) == found
    assert log == [f"{entry} is damaged, or of another version of this program: it is made anew"]
    assert entry.read_text() == written


def test_a_meter_says_how_far_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("transformer.data.meter.time.monotonic", lambda: clock[0])
    log: list[str] = []
    with Meter("encoding train", 1000, "pairs", log.append, done=200, seconds=30) as meter:
        for _ in range(8):
            clock[0] += 20
            meter.add(100)
    assert log == [
        "encoding train: 400 of 1,000 pairs (40 %), 5 a second, 2 min left",
        "encoding train: 600 of 1,000 pairs (60 %), 5 a second, 80 s left",
        "encoding train: 800 of 1,000 pairs (80 %), 5 a second, 40 s left",
        "encoding train: 1,000 pairs in 160 s, 5 a second",
    ]

"""Text that changes while it is prepared is refused by name, and nothing that was made of it is kept."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sentences import sentences

from transformer.core.errors import DataError
from transformer.data import dataset, encoding, scanning, splits, vocabulary, writing
from transformer.data.config import DataConfig
from transformer.data.corpus import Pair
from transformer.data.dataset import prepare
from transformer.data.splits import SplitText
from transformer.data.tokenizer import Tokenizer

Section = Callable[..., DataConfig]
Change = Callable[[Path], None]


def run(config: DataConfig, folder: Path) -> list[str]:
    log: list[str] = []
    prepare(config, folder, 1, log.append)
    return log


def kept(cache: Path) -> set[str]:
    """The kinds of what the cache has, finished or begun."""
    return {path.parent.name for path in cache.glob("*/*") if not path.name.endswith(".lock")}


def contents(cache: Path) -> dict[Path, bytes]:
    files = (path for path in cache.glob("*/*/*") if path.is_file())
    return {path.relative_to(cache): path.read_bytes() for path in files}


def fewer(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:40]))


def turned(path: Path) -> None:
    """Same length, lines and time of change, as a copy with its times is."""
    state = path.stat()
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_text(path.read_text().upper())
    other.replace(path)


def grown(path: Path) -> None:
    with path.open("a") as file:
        file.write("one more\n")


CHANGES = [fewer, turned, replaced, grown, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["scanned", "trained", "encoded"])
def test_text_that_changes_is_named_and_nothing_is_kept(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, when: str
) -> None:
    monkeypatch.setattr(scanning, "_SETTLED", -60.0)
    config = section()
    text = tmp_path / "train.de"
    true = text.read_bytes()
    module, name = {
        "scanned": (splits, "scan_lines"),
        "trained": (vocabulary, "train_tokenizers"),
        "encoded": (dataset, "tokenizers_for"),
    }[when]
    before = getattr(module, name)

    def then(*given: Any, **named: Any) -> Any:
        result = before(*given, **named)
        if text.exists() and not changed:
            changed.append(True)
            change(text)
        return result

    changed: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(module, name, then)
        with pytest.raises(DataError, match=r"train\.de: it changed while the data was prepared; give the"):
            run(config, tmp_path / "run")
    there: dict[str, set[str]] = {"scanned": set(), "trained": {"texts"}, "encoded": {"texts", "tokenizers"}}
    assert kept(tmp_path / "cache") == there[when]
    assert (tmp_path / "run/tokenizer").exists() == (when == "encoded")
    text.write_bytes(true)
    run(config, tmp_path / "again")
    found = contents(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    run(config, tmp_path / "straight")
    assert found == contents(tmp_path / "cache") != {}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.usefixtures("starts_warm")
def test_text_that_changes_while_it_is_encoded_is_left_at_the_next_part(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, resumed: bool
) -> None:
    monkeypatch.setattr(encoding, "_CHUNK", 20)
    monkeypatch.setattr(encoding, "_WORTHWHILE", 100)
    monkeypatch.setattr(encoding, "usable_cpus", lambda: workers)
    monkeypatch.setattr(writing.CorpusWriter.__init__, "__defaults__", (0.0,))  # commit after each chunk
    config = section()
    add, added = writing.CorpusWriter.add, []

    def stop(self: writing.CorpusWriter, *part: Any) -> None:
        add(self, *part)
        added.append(self.report.read)
        if len(added) == 2 and resumed:
            raise KeyboardInterrupt
        if len(added) == 4:
            grown(tmp_path / "train.en")

    monkeypatch.setattr(writing.CorpusWriter, "add", stop)
    if resumed:
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    with pytest.raises(DataError, match=r"train\.en: it changed while the data was prepared"):
        run(config, tmp_path / "run")
    assert added[:4] == [20, 40, 60, 80]
    assert len(added) <= 4 + workers  # what was with the processes by then
    assert kept(tmp_path / "cache") == {"tokenizers"}


def test_who_may_read_a_text_is_not_what_it_says(section: Section, tmp_path: Path) -> None:
    config = section()
    text = SplitText(config, config.train, "train")
    text.scan(tmp_path / "other", print)
    for number in range(2):
        (tmp_path / "train.de").chmod(0o600 + number)
        text.require_unchanged()
    turned(tmp_path / "train.de")
    with pytest.raises(DataError, match=r"train\.de: it changed"):
        text.require_unchanged()


def test_what_is_committed_before_the_change_is_found_is_the_true_text(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that is killed before it can delete anything leaves parts of the first text alone."""
    monkeypatch.setattr(encoding, "_CHUNK", 20)
    monkeypatch.setattr(writing.CorpusWriter.__init__, "__defaults__", (0.0,))
    config, true = section(), (tmp_path / "train.en").read_text()
    located = SplitText.located

    def other(self: SplitText) -> Iterator[tuple[str, Pair]]:
        """The text as it is read by one whose files are rewritten after 50 pairs."""
        for number, (prefix, pair) in enumerate(located(self)):
            if number == 50 and self.split == "train":
                turned(tmp_path / "train.en")
            late = number >= 50 and self.split == "train"
            yield prefix, Pair(pair.line, pair.source.upper(), pair.target) if late else pair

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    tokenizers_for = dataset.tokenizers_for

    def then(*given: Any) -> tuple[Tokenizer, Tokenizer]:
        tokenizers = tokenizers_for(*given)
        patch.setattr(SplitText, "located", other)
        patch.setattr("transformer.data.cache.shutil.rmtree", killed)  # what deletes what was begun
        return tokenizers

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "tokenizers_for", then)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    (tmp_path / "train.en").write_text(true)
    log = run(config, tmp_path / "run")
    assert "encoding 300 pairs of train, 40 of them done before" in log
    found = contents(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    run(config, tmp_path / "straight")
    assert found == contents(tmp_path / "cache")


def test_a_plain_file_that_appears_beside_a_compressed_one_is_a_change(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plain = section(), tmp_path / "train.en"
    text = plain.read_bytes()
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(text))
    plain.unlink()
    tokenizers_for = dataset.tokenizers_for

    def then(*given: Any) -> tuple[Tokenizer, Tokenizer]:
        tokenizers = tokenizers_for(*given)
        plain.write_bytes(text.upper())
        return tokenizers

    monkeypatch.setattr(dataset, "tokenizers_for", then)
    with pytest.raises(DataError, match=r"train\.en\.gz: it changed while"):
        run(config, tmp_path / "run")
    assert kept(tmp_path / "cache") == {"tokenizers"}


def test_a_compressed_file_beside_the_plain_one_that_is_read_is_told_of(
    section: Section, tmp_path: Path
) -> None:
    config = section()
    for _ in range(2):  # when it is read, and when it is remembered
        text = SplitText(config, config.train, "train")
        text.scan(tmp_path / "other", print)
        assert text.oddities == []
    packed = tmp_path / "train.en.gz"
    packed.write_bytes(gzip.compress(b"older\n"))
    text.scan(tmp_path / "other", print)
    assert text.oddities == [f"{packed}: not read, since the plain file is beside it"]


@pytest.mark.parametrize("when", ["trained", "encoded"])
def test_pairs_are_counted_again_where_files_do_not_tell_that_they_have_changed(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(splits, "identity", lambda path: (str(path), 0, 0, 0))
    config, scan = section(), SplitText.scan
    tokenizers_for = dataset.tokenizers_for

    def shorter() -> None:
        for side in ("en", "de"):
            fewer(tmp_path / f"train.{side}")

    def scanned(self: SplitText, *given: Any) -> None:
        scan(self, *given)
        if self.split == "train" and when == "trained":
            shorter()

    def tokenized(*given: Any) -> tuple[Tokenizer, Tokenizer]:
        tokenizers = tokenizers_for(*given)
        if when == "encoded":
            shorter()
        return tokenizers

    monkeypatch.setattr(SplitText, "scan", scanned)
    monkeypatch.setattr(dataset, "tokenizers_for", tokenized)
    with pytest.raises(DataError, match=r"train\.en: it changed while the data was prepared"):
        run(config, tmp_path / "run")
    assert kept(tmp_path / "cache") == ({"tokenizers"} if when == "encoded" else set())


def test_the_validation_text_that_is_scored_is_the_one_that_was_encoded(
    section: Section, tmp_path: Path
) -> None:
    prepared = prepare(section(), tmp_path / "run", 1, lambda _: None)
    assert prepared.references() == sentences(20, seed=1)
    grown(tmp_path / "valid.de")
    with pytest.raises(DataError, match=r"valid\.de: it changed while"):
        prepared.references()

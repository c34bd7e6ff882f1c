"""data.cache and text that changes, as train.py tells of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from transformer.cli.resolve import resumed_config
from transformer.cli.train import main as train
from transformer.data import dataset


@pytest.fixture
def own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """tiny.yaml over a copy of the text, in a directory of its own, which is the working one."""
    for name in ("train", "valid"):
        for side in ("en", "de"):
            shutil.copy(folder / f"{name}.{side}", tmp_path)
    text = (folder / "tiny.yaml").read_text().replace(str(folder), str(tmp_path))
    (tmp_path / "own.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("cache", "run_dir"),
    [
        ("ci/cache", "ci"),
        ("ci", "ci"),
        ("ci/deep/er", "{here}/ci"),
        ("{here}/other/../ci/cache", "./ci"),
        ("link/cache", "ci"),
        ("ci/cache", "link"),
        (".cache", "."),
        ("cache", "cache/encoded"),
        ("split", "ci"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--check"]])
def test_a_cache_in_the_run_directory_is_refused_before_anything_is_read(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: str, run_dir: str, more: list[str]
) -> None:
    (tmp_path / "link").symlink_to("ci")
    (tmp_path / "split").mkdir()
    (tmp_path / "split/tokenizers").symlink_to(tmp_path / "ci/kept")
    (tmp_path / "train.en").unlink()
    before = set(tmp_path.rglob("*"))
    cache, run_dir = (path.format(here=tmp_path) for path in (cache, run_dir))
    assert train([own, "--run-dir", run_dir, "--set", f"data.cache={cache}", *more]) == 2
    captured = capsys.readouterr()
    assert f"data.cache: what is kept in {cache} would lie in the run directory {run_dir}" in captured.err
    assert "set data.cache to a directory outside of it" in captured.err
    assert captured.out == ""
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("cache", "run_dir"), [("cache", "cache/run"), ("ci-cache", "ci"), ("ci/../cache", "ci"), ("a", "cache")]
)
def test_a_cache_beside_or_around_the_run_directory_is_taken(own: str, cache: str, run_dir: str) -> None:
    assert train([own, "--run-dir", run_dir, "--set", f"data.cache={cache}", "--check"]) == 0


def test_the_default_run_directory_is_held_against_the_cache_too(
    own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([own, "--check", "--set", "data.cache=runs/own-pre/cache"]) == 2
    assert "would lie in the run directory runs/own-pre," in capsys.readouterr().err


def test_a_run_of_an_older_version_with_its_cache_inside_goes_on(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    _, _, text = (old / "config.yaml").read_text().partition("\n")
    cache = next(line for line in text.splitlines() if line.strip().startswith("cache:"))
    (old / "config.yaml").write_text(text.replace(cache, f"  cache: {old}/cache"))
    assert resumed_config(old, []).data.cache == f"{old}/cache"


def test_text_that_changes_while_it_is_prepared_ends_a_run_with_one_message(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers_for = dataset.tokenizers_for
    true = {side: (tmp_path / f"train.{side}").read_text() for side in ("en", "de")}

    def then(*given: Any) -> Any:
        tokenizers = tokenizers_for(*given)
        for side, text in true.items():
            (tmp_path / f"train.{side}").write_text("".join(text.splitlines(keepends=True)[::-2]))
        return tokenizers

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "tokenizers_for", then)
        assert train([own, "--run-dir", "run"]) == 1
    error = capsys.readouterr().err
    assert f"error: {tmp_path}/train.en: it changed while the data was prepared" in error
    assert "Traceback" not in error
    assert not list((tmp_path / "cache/encoded").glob("[!.]*"))
    for side, text in true.items():
        (tmp_path / f"train.{side}").write_text(text)
    assert train([own, "--run-dir", "run"]) == 0
    log = (tmp_path / "run/log.txt").read_text()
    assert "encoding 200 pairs of train" in log


@pytest.mark.parametrize("content", ["[" * 100_000, '{"count": "x", "digest": 5, "oddities": 7}'])
def test_a_damaged_note_of_the_text_stops_no_run(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr("transformer.data.scanning._SETTLED", -60.0)
    short = ["--set", "train.updates=5"]
    assert train([own, "--run-dir", "run", *short]) == 0
    notes = list((tmp_path / "cache/texts").iterdir())
    assert len(notes) == 2
    for note in notes:
        note.write_text(content)
    assert train(["--resume", "run", "--set", "train.updates=6"]) == 0
    assert (tmp_path / "run/log.txt").read_text().count("it is made anew") == 2

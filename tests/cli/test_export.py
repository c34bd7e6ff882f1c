"""Exports are written verified or not at all, and translate.py keeps its contract on them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

import transformer.cli.export as command
from transformer.cli.export import main as export
from transformer.cli.train import main as train
from transformer.cli.translate import main as translate
from transformer.export.directory import open_export
from transformer.export.manifest import read_manifest
from transformer.export.verification import Agreement

ODD = "one two\nred\u2028house\nred\x85house\rcat\n\n \nsmall\r\n\ufeffcat\x00one\nlast without end".encode()
SERVED = ["--engine", "ctranslate2"]


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the run. Tests only read it."""
    directory = tmp_path_factory.mktemp("exports") / "float32"
    assert export([str(run), "--to", "ctranslate2", str(directory)]) == 0
    return directory


def facts_of(directory: Path) -> dict[str, object]:
    facts: dict[str, object] = json.loads((directory / "export.json").read_text(encoding="utf-8"))
    return facts


def test_an_export_is_verified_and_says_so(exported: Path) -> None:
    facts = facts_of(exported)
    assert facts["quantization"] is None
    assert facts["float32"]["log_p"] < 1e-5  # type: ignore[index]
    assert facts["float32"]["lines"] == 8  # type: ignore[index]
    assert list(facts["outputs"]["bleu"]) == ["run", "float32"]  # type: ignore[index,call-overload]
    assert not list(exported.parent.glob(".*")), "nothing is left beside it"
    held = {path.name for path in exported.iterdir()}
    assert {"model.bin", "config.yaml", "export.json", "tokenizer"} <= held


def test_every_line_in_is_a_line_out_of_the_moved_directory(
    exported: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    moved = shutil.copytree(exported, tmp_path / "moved")
    (tmp_path / "in").write_bytes(ODD)
    assert translate([str(moved), "--input", str(tmp_path / "in"), *SERVED]) == 0
    lines = capfdbinary.readouterr().out.split(b"\n")[:-1]
    assert len(lines) == 8
    assert lines[3] == lines[4] == b""


def test_greedy_translations_and_scores_are_those_of_the_run(
    run: Path, exported: Path, folder: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    source, target = str(folder / "valid.en"), str(folder / "valid.de")
    for options in (["--search", "greedy", "--json"], ["--score", target, "--max-length", "40"]):
        answers = []
        for directory, engine in ((run, []), (exported, SERVED)):
            assert translate([str(directory), "--input", source, *options, *engine]) == 0
            answers.append(capfdbinary.readouterr().out.decode())
        numbers = [[float(n) for n in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)] for text in answers]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)
        words = [re.sub(r"-?\d+\.\d+(?:e-?\d+)?", "", text) for text in answers]
        assert words[0] == words[1]


def test_n_best_prefixes_and_a_reference_work_as_with_a_run(
    exported: Path, folder: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    arguments = [str(exported), "--input", str(folder / "valid.en"), *SERVED]
    (tmp_path / "prefix").write_text("rot\n" * 8, encoding="utf-8")
    asked = ["--json", "--beam", "4", "--n-best", "3", "--prefix", str(tmp_path / "prefix")]
    assert translate([*arguments, *asked, "--reference", str(folder / "valid.de")]) == 0
    captured = capfdbinary.readouterr()
    assert b"bleu" in captured.err
    for line in map(json.loads, captured.out.decode().splitlines()):
        scores = [hypothesis["score"] for hypothesis in line["hypotheses"]]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert all(h["text"].startswith("rot") for h in line["hypotheses"])


@pytest.mark.parametrize(
    ("options", "scores", "together"),
    [
        ([], False, True),
        (["--json"], True, True),
        (["--set", "decode.chunk_lines=1"], False, False),
        (["--score", "TARGET", "--max-length", "40"], False, False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_threads_and_scores_are_there_for_what_is_asked(
    options: list[str], scores: bool, together: bool, exported: Path, folder: Path
) -> None:
    """Line by line, and where pairs are scored, all threads work on one batch."""
    given = [option.replace("TARGET", str(folder / "valid.de")) for option in options]
    with patch("transformer.cli.translate.open_export", wraps=open_export) as opened:
        assert translate([str(exported), "--input", str(folder / "valid.en"), *SERVED, *given]) == 0
    assert opened.call_args.kwargs == {"scores": scores, "together": together}


def test_a_line_beyond_the_table_of_positions_is_translated_in_part_and_reported(
    exported: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "in").write_bytes(b"one\n" + b"red house " * 5000 + b"\ntwo\n")
    options = ["--set", "decode.max_source_length=9999", "--max-length", "9999"]
    assert translate([str(exported), "--input", str(tmp_path / "in"), *SERVED, *options, "--beam", "1"]) == 0
    captured = capfdbinary.readouterr()
    assert captured.out.count(b"\n") == 3
    assert b"line 2: too long; only its first 1023 subwords" in captured.err


def test_int8_is_smaller_and_tells_what_it_changed(
    run: Path, exported: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "int8"
    assert export([str(run), "--to", "ctranslate2", str(directory), "--quantization", "int8"]) == 0
    said = capfd.readouterr().err
    assert re.search(r"BLEU: run \d+\.\d\d, float32 \d+\.\d\d, int8 \d+\.\d\d ", said)
    assert facts_of(directory)["int8"]["log_p"] > 1e-5  # type: ignore[index]
    assert (directory / "model.bin").stat().st_size < (exported / "model.bin").stat().st_size
    assert translate([str(directory), "--precision", "float32", *SERVED]) == 2
    assert "the export's numbers are int8, not float32" in capfd.readouterr().err
    texts = []
    for precision in ("auto", "int8"):
        asked = ["--input", str(folder / "valid.en"), "--precision", precision, *SERVED]
        assert translate([str(directory), *asked]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1]


def test_every_reason_is_told_at_once_and_nothing_is_written(
    folder: Path,
    config: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd = [config, "--run-dir", str(tmp_path / "odd"), "--placement", "keel", "--norm", "ada"]
    odd += ["--set", "model.qk_norm=rms", "--set", "train.updates=1", "--set", "train.average=0"]
    assert train(odd) == 0
    (tmp_path / "taken").mkdir()
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    assert export([str(tmp_path / "odd"), "--to", "ctranslate2", str(tmp_path / "taken"), "--force"]) == 2
    said = capsys.readouterr().err
    for words in ("is no export", "placement: keel", "norm: ada", "qk_norm", "pip install"):
        assert words in said
    assert {path.name for path in tmp_path.iterdir()} == {"odd", "taken"}
    assert not list((tmp_path / "taken").iterdir())


def test_an_export_is_replaced_by_force_only(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = shutil.copytree(exported, tmp_path / "again")
    link = tmp_path / "link"
    link.symlink_to("again")
    (directory / "model.bin").write_bytes(b"")
    assert export([str(run), "--to", "ctranslate2", str(link)]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert (directory / "model.bin").read_bytes() == b""
    assert export([str(run), "--to", "ctranslate2", str(link), "--force"]) == 0
    assert (directory / "model.bin").read_bytes() == (exported / "model.bin").read_bytes()
    assert {path.name: path.is_symlink() for path in tmp_path.iterdir()} == {"again": False, "link": True}


def without_training(run: Path, copy: Path) -> Path:
    """A run that may be written to."""
    return shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        ("a foreign file", "holds mine, which no export writes"),
        ("a foreign file among the tokenizers", "holds tokenizer/mine, which no export writes"),
        ("a namesake of the manifest", "is no export"),
        ("the run", "holds the run itself"),
        ("the run's folder", "holds the run itself"),
        ("a link to nothing", "is a link to nothing"),
    ],
)
def test_what_is_no_export_is_never_replaced(
    taken: str, words: str, run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, directory = without_training(run, tmp_path / "runs" / "run"), tmp_path / "taken"
    if taken.startswith("a foreign file"):
        shutil.copytree(exported, directory)
        (directory / ("tokenizer" if "among" in taken else "") / "mine").touch()
    elif taken.startswith("a namesake"):
        directory.mkdir()
        (directory / "export.json").write_text('{"format": "csv"}', encoding="utf-8")
    elif taken.startswith("the run"):  # and what looks most like an export, by another name
        shutil.copytree(exported, copy if taken == "the run" else copy.parent, dirs_exist_ok=True)
        directory.symlink_to(copy if taken == "the run" else copy.parent)
    else:
        directory.symlink_to(tmp_path / "nothing")
    before = sorted(tmp_path.rglob("*"))
    assert export([str(copy), "--to", "ctranslate2", str(directory), "--force"]) == 2
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("failure", ["disagreement", "disagreement step by step", "interrupt"])
def test_an_export_that_fails_leaves_what_was_there(
    failure: str, run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = shutil.copytree(exported, tmp_path / "kept")
    (directory / "model.bin").write_bytes(b"as it was")

    def fail(*_: object) -> Agreement:
        if failure == "interrupt":
            raise KeyboardInterrupt
        parts = (0.5, 0.0) if failure == "disagreement" else (0.0, 0.5)
        return Agreement(lines=8, subwords=70, log_p=parts[0], greedy_same=8, greedy_loss=parts[1])

    monkeypatch.setattr(command.Lines, "agreement", fail)
    for name in ("kept", "new", "with/parents/new"):
        code = export([str(run), "--to", "ctranslate2", str(tmp_path / name), "--force"])
        assert code == (130 if failure == "interrupt" else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (directory / "model.bin").read_bytes() == b"as it was"


def test_other_lines_can_be_given_and_their_reference_is_optional(
    run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = ["--lines", str(folder / "train.en"), "--count", "5"]
    assert export([str(run), "--to", "ctranslate2", str(tmp_path / "a"), *lines, "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["outputs"]["lines"] == 5
    assert "BLEU" not in captured.err
    (tmp_path / "blank").write_text("\n \n\x01\n\x02\n", encoding="utf-8")  # no subword, though not blank
    wrong = {"--lines": (tmp_path / "blank", 1), "--reference": (folder / "valid.de", 2)}
    for flag, (file, code) in wrong.items():
        assert export([str(run), "--to", "ctranslate2", str(tmp_path / "b" / "c"), flag, str(file)]) == code
        assert flag in capfd.readouterr().err
    assert not (tmp_path / "b").exists()


def test_runs_and_exports_are_not_mixed_up(
    run: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert translate([str(exported)]) == 2
    assert "--engine ctranslate2" in capsys.readouterr().err
    assert translate([str(run), *SERVED]) == 1
    assert "python -m transformer export" in capsys.readouterr().err
    wrong = [str(exported), str(exported), "--checkpoint", "last", "--search", "sampling", *SERVED]
    monkeypatch.setattr("transformer.cli.translate.open_export", None)  # which would be for nothing
    assert translate(wrong) == 2
    said = capsys.readouterr().err
    assert all(words in said for words in ("ensemble", "--checkpoint", "decode.search"))


def test_a_run_may_hold_a_file_that_is_named_like_an_exports(run: Path, folder: Path, tmp_path: Path) -> None:
    copy = without_training(run, tmp_path / "run")
    (copy / "export.json").touch()
    assert translate([str(copy), "--input", str(folder / "valid.en"), "--output", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    "broken",
    [
        "export.json",
        "config.yaml",
        "config.json",
        "model.bin",
        "shared_vocabulary.json",
        "tokenizer/joint.model",
    ],
)
@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_export_is_explained(
    broken: str, gone: bool, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damaged so that it could be read, where that can be."""
    directory = shutil.copytree(exported, tmp_path / "broken")
    file = directory / broken
    whole = file.read_bytes()
    if gone:
        file.unlink()
    elif broken == "model.bin":
        file.write_bytes(whole[:-4] + bytes(4))
    elif broken == "shared_vocabulary.json":
        file.write_text(json.dumps(json.loads(whole)[::-1]), encoding="utf-8")
    else:
        file.write_bytes(whole + b"{")
    code = 2 if broken == "config.yaml" and not gone else 1
    assert translate([str(directory), "--input", str(exported / "export.json"), *SERVED]) == code
    said = capsys.readouterr().err
    assert "tokenizer" in said if broken.startswith("tokenizer") else broken in said


@pytest.mark.parametrize(
    "edited",
    [
        {"format": 1},
        {"engine": "onnx"},
        {"quantization": 7},
        {"quantization": "int4"},
        *({"positions": positions} for positions in (math.inf, 24.0, "24", 1, 0, -5)),
        {"files": {}},
        {"tokenizers": {"source": "", "target": ""}},
    ],
    ids=str,
)
def test_an_edited_export_is_refused(
    edited: dict[str, object], exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever computes the manifest's digest anew is told what the value is worth."""
    directory = shutil.copytree(exported, tmp_path / "edited")
    facts = {**facts_of(exported), **edited}
    del facts["sha256"]
    facts["sha256"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    (directory / "export.json").write_text(json.dumps(facts), encoding="utf-8")
    assert translate([str(directory), "--input", str(directory / "export.json"), *SERVED]) == 1
    said = capsys.readouterr().err
    assert "export again" in said
    assert str(directory) in said


@pytest.mark.parametrize(
    "edited",
    [
        {"positions": 24},
        {"positions": 4096},
        {"quantization": "int8"},
        {"quantization": "float16"},
        {"run": "b"},
    ],
    ids=str,
)
def test_an_edited_manifest_is_refused_where_its_values_could_be_right(
    edited: dict[str, object], exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, facts = shutil.copytree(exported, tmp_path / "edited"), facts_of(exported)
    file = directory / "export.json"
    file.write_text(json.dumps(dict(reversed(facts.items()))), encoding="utf-8")
    assert read_manifest(directory), "another layout of the same is read"
    file.write_text(json.dumps({**facts, **edited}), encoding="utf-8")
    assert translate([str(directory), "--input", str(file), *SERVED]) == 1
    assert f"{file}: not what was written; export again" in capsys.readouterr().err
    file.write_text(json.dumps(facts)[:-1] + ', "more": ' + "9" * 5000 + "}", encoding="utf-8")
    assert translate([str(directory), "--input", str(file), *SERVED]) == 1
    assert f"{file}: " in capsys.readouterr().err


def test_a_configuration_that_was_cut_or_edited_is_refused_until_its_seal_is_taken_out(
    exported: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The beginning of a configuration is one: without its decode section, the defaults'."""
    directory = shutil.copytree(exported, tmp_path / "edited")
    file = directory / "config.yaml"
    whole = file.read_text(encoding="utf-8")
    edited = whole.replace("max_length: 12", "max_length: 1")
    for text in (whole[: whole.index("decode:")], edited):
        assert text != whole
        file.write_text(text, encoding="utf-8")
        assert translate([str(directory), "--input", str(folder / "valid.en"), *SERVED]) == 1
        assert f"{file}: missing, damaged or edited" in capsys.readouterr().err
    file.write_text(edited.partition("\n")[2], encoding="utf-8")
    assert translate([str(directory), "--input", str(folder / "valid.en"), *SERVED]) == 0


def test_limits_without_end_make_no_table_without_end(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = without_training(run, tmp_path / "run")
    config = yaml.safe_load((copy / "config.yaml").read_text(encoding="utf-8"))
    config["decode"]["max_source_length"] = 100_000
    (copy / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert export([str(copy), "--to", "ctranslate2", str(tmp_path / "served")]) == 0
    assert facts_of(tmp_path / "served")["positions"] == command.MOST_POSITIONS
    assert f"{command.MOST_POSITIONS:,} positions are served" in capfd.readouterr().err


def test_two_tokenizers_learned_positions_and_a_checkpoint_are_served(
    config: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, served, source = str(tmp_path / "run"), str(tmp_path / "served"), str(folder / "valid.en")
    options = {
        "data.tokenizer.joint": "false",
        "data.tokenizer.source_vocab_size": "56",
        "model.positions": "learned",
        "model.max_length": "40",
        "data.max_length": "40",
    }
    settings = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    assert train([config, "--run-dir", run, *settings]) == 0
    assert export([run, "--to", "ctranslate2", served, "--checkpoint", "update-0000005"]) == 0
    facts = facts_of(Path(served))
    assert facts["positions"] == 40
    assert facts["tokenizers"]["source"] != facts["tokenizers"]["target"]  # type: ignore[index]
    scores = []
    for chosen in ([run, "--checkpoint", "update-0000005"], [run], [served, *SERVED]):
        capfd.readouterr()
        assert translate([*chosen, "--input", source, "--score", str(folder / "valid.de")]) == 0
        scores.append([float(line) for line in capfd.readouterr().out.splitlines()])
    assert scores[2] == pytest.approx(scores[0], abs=1e-4)
    assert scores[2] != pytest.approx(scores[1], abs=1e-3)


def test_the_configuration_of_the_run_goes_with_it(run: Path, exported: Path) -> None:
    ours, theirs = (
        yaml.safe_load((each / "config.yaml").read_text(encoding="utf-8")) for each in (run, exported)
    )
    assert theirs["decode"].pop("precision") == "auto"
    ours["decode"].pop("precision")
    assert ours == theirs

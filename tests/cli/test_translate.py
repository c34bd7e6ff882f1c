"""translate.py: lines in, lines out, and everything that bad input can be."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from transformer.cli.average import main as average
from transformer.cli.translate import main as translate
from transformer.training.checkpoint import read_weights, write_weights

ROOT = Path(__file__).parents[2]
ODD = "one two\nred\u2028house\nred\x85house\rcat\n\n \nsmall\r\n\ufeffcat\x00one\nlast without end".encode()


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def file_of(folder: Path, data: bytes, name: str = "input.txt") -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def test_every_line_in_is_a_line_out(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    feed(monkeypatch, ODD)
    assert translate([str(run)]) == 0
    out = capfdbinary.readouterr().out
    assert out.endswith(b"\n")
    lines = out.split(b"\n")[:-1]
    assert len(lines) == 8
    assert lines[3] == lines[4] == b"", "blank in, blank out"


def test_invalid_utf8_is_replaced_and_reported(
    run: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    source = file_of(tmp_path, b"one\n\xff\xfe two\n" + 12 * b"\xc3\n")
    assert translate([str(run), "--input", source]) == 0
    captured = capfdbinary.readouterr()
    assert captured.out.count(b"\n") == 14
    assert f"{source}: 13 lines with invalid UTF-8".encode() in captured.err


@pytest.mark.parametrize("data", [b"", b"\n", b"\n\n", b"one", b"one\r\n"])
def test_small_inputs_keep_their_number_of_lines(
    run: Path, tmp_path: Path, data: bytes, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert translate([str(run), "--input", file_of(tmp_path, data)]) == 0
    assert capfdbinary.readouterr().out.count(b"\n") == data.count(b"\n") + (
        not data.endswith(b"\n") and bool(data)
    )


def test_a_huge_line_is_translated_in_part_and_reported(
    run: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    source = file_of(tmp_path, b"one\n" + b"red house " * 50_000 + b"\ntwo\n")
    assert translate([str(run), "--input", source]) == 0
    captured = capfdbinary.readouterr()
    assert captured.out.count(b"\n") == 3
    assert b"line 2: too long" in captured.err


def test_gzip_and_plain_input_give_the_same(run: Path, folder: Path, tmp_path: Path) -> None:
    plain = (folder / "valid.en").read_bytes()
    packed = file_of(tmp_path, gzip.compress(plain), "valid.en.gz")
    outputs = [tmp_path / "a" / "plain.de", tmp_path / "packed.de"]
    for source, output in zip((str(folder / "valid.en"), packed), outputs, strict=True):
        assert translate([str(run), "--input", source, "--output", str(output)]) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_a_truncated_gzip_file_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = file_of(tmp_path, gzip.compress(b"one two\n" * 1000)[:-12], "cut.gz")
    (tmp_path / "out").write_text("of earlier")
    assert translate([str(run), "--input", source, "--output", str(tmp_path / "out")]) == 1
    assert source in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "of earlier", "nothing was translated"


def test_json_gives_one_object_a_line_with_all_hypotheses(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    feed(monkeypatch, ODD)
    assert translate([str(run), "--json", "--beam", "3", "--n-best", "2"]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()  # splits on U+2028 and U+0085 as well
    objects = [json.loads(line) for line in lines]
    assert len(objects) == 8
    assert objects[1]["source"] == "red\u2028house"
    assert [o["status"] for o in objects[3:5]] == ["blank", "blank"]
    for translation in objects[:2]:
        scores = [hypothesis["score"] for hypothesis in translation["hypotheses"]]
        assert len(scores) == 2
        assert scores == sorted(scores, reverse=True)
        assert translation["text"] == translation["hypotheses"][0]["text"]


def test_a_reference_is_scored_on_stderr_and_stdout_stays_clean(
    run: Path, folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    arguments = [str(run), "--input", str(folder / "valid.en"), "--reference", str(folder / "valid.de")]
    assert translate(arguments) == 0
    captured = capfdbinary.readouterr()
    assert captured.out.count(b"\n") == 8
    for word in (b"BLEU", b"chrF2", b"TER", b"tok:13a", b"case:mixed"):
        assert word in captured.err
        assert word not in captured.out


def test_with_an_output_file_scores_go_to_stdout(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run), "--input", str(folder / "valid.en"), "--reference", str(folder / "valid.de")]
    assert translate([*arguments, "--output", str(tmp_path / "out.de"), "--json"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert json.loads(capsys.readouterr().out)["bleu"] == pytest.approx(result["test"]["held"]["bleu"])


def test_a_reference_of_another_length_is_refused_before_translating(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = file_of(tmp_path, b"eins\n")
    for flag in ("--reference", "--prefix", "--score"):
        output = tmp_path / "out"
        arguments = [str(run), "--input", str(folder / "valid.en"), flag, short, "--output", str(output)]
        assert translate(arguments) == 1
        message = capsys.readouterr().err
        assert "has 8 lines" in message
        assert "has 1" in message
        assert not output.exists()


def test_runs_of_one_vocabulary_vote_together(
    run: Path, other_run: Path, folder: Path, tmp_path: Path
) -> None:
    texts = []
    for i, runs in enumerate(([run, run], [run], [run, other_run])):
        output = tmp_path / str(i)
        assert translate([*map(str, runs), "--input", str(folder / "valid.en"), "--output", str(output)]) == 0
        texts.append(output.read_text())
    assert texts[0] == texts[1], "a model agrees with itself"
    assert all(text.count("\n") == 8 for text in texts)


def test_runs_of_different_vocabularies_cannot_vote(
    run: Path,
    other_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(other_run, copy)
    (model,) = (copy / "tokenizer").glob("*.model")
    model.write_bytes(model.read_bytes() + b"\x10\x01")
    feed(monkeypatch, b"one\n")
    assert translate([str(run), str(copy)]) == 1
    assert str(copy) in capsys.readouterr().err


def test_a_prefix_begins_its_translation(run: Path, tmp_path: Path, folder: Path) -> None:
    prefixes = file_of(tmp_path, b"rot Haus\n\n" * 4)
    output = tmp_path / "out"
    arguments = [str(run), "--input", str(folder / "valid.en"), "--prefix", prefixes, "--output", str(output)]
    assert translate(arguments) == 0
    assert all(line.startswith("rot Haus") for line in output.read_text().splitlines()[::2])


def test_given_translations_are_scored_in_order(run: Path, folder: Path, tmp_path: Path) -> None:
    numbers = []
    for flags in ([], ["--json"]):
        output = tmp_path / "scores"
        sides = ["--input", str(folder / "valid.en"), "--score", str(folder / "valid.de")]
        assert translate([str(run), *sides, "--max-length", "99", "--output", str(output), *flags]) == 0
        numbers.append(output.read_text().splitlines())
    scores = [json.loads(line) for line in numbers[1]]
    assert [score["target"] for score in scores] == (folder / "valid.de").read_text().splitlines()
    for text, score in zip(numbers[0], scores, strict=True):
        assert float(text) == pytest.approx(score["log_probability"], abs=1e-5)
        assert sum(score["token_log_probabilities"]) == pytest.approx(score["log_probability"], abs=1e-4)
        assert len(score["token_log_probabilities"]) == len(score["tokens"]) + 1


def test_sampling_follows_its_seed(run: Path, folder: Path, tmp_path: Path) -> None:
    texts = []
    for i, seed in enumerate("112"):
        output = tmp_path / str(i)
        flags = ["--search", "sampling", "--temperature", "1.5", "--seed", seed, "--output", str(output)]
        assert translate([str(run), "--input", str(folder / "valid.en"), *flags]) == 0
        texts.append(output.read_text())
    assert texts[0] == texts[1] != texts[2]


def test_other_checkpoints_and_averages_can_be_used(run: Path, folder: Path, tmp_path: Path) -> None:
    averaged = tmp_path / "averaged.safetensors"
    assert average([str(run), "--last", "2", "--output", str(averaged)]) == 0
    for checkpoint in ("last", "update-0000005", str(averaged)):
        arguments = [
            "--input",
            str(folder / "valid.en"),
            "--output",
            str(tmp_path / "out"),
            "--checkpoint",
            checkpoint,
        ]
        assert translate([str(run), *arguments]) == 0


@pytest.mark.parametrize("file", ["model.safetensors", "checkpoints/last/model.safetensors"])
def test_weights_of_other_subwords_are_not_averaged(
    file: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same shapes, as every run of a study has. An average says what it was trained with."""
    foreign, mean = tmp_path / "foreign.safetensors", tmp_path / "averaged.safetensors"
    tensors, header = read_weights(run / file)
    write_weights(foreign, tensors, {**header, "pieces": "of another"})
    assert average([str(run), "last", str(foreign), "--output", str(mean)]) == 1
    assert f"{foreign}: trained with other subwords" in capsys.readouterr().err
    assert "pieces" in header
    assert not mean.exists()
    assert average([str(run), "--last", "99", "--output", str(mean)]) == 0
    assert "validated weights are kept, fewer than --last 99" in capsys.readouterr().err
    assert (
        read_weights(mean)[1]["pieces"] == read_weights(run / "checkpoints" / "best.safetensors")[1]["pieces"]
    )


def test_average_explains_what_it_cannot_do(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert average([str(run), "--last", "0"]) == 2
    assert average([str(tmp_path)]) == 1
    assert average([str(run), "update-9999999", "--output", str(tmp_path / "x")]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["RUN", "--set", "model.d_model=3"], 2, "a trained run has only decode options"),
        (["RUN", "--beam", "0"], 2, "decode.beam: must be greater than or equal to 1, got 0 (--beam 0)"),
        (["RUN", "--set", "decode.beem=3"], 2, "did you mean decode.beam?"),
        (["RUN", "--length-penalty", "wuu"], 2, "did you mean 'wu'?"),
        (["RUN", "--n-best", "2"], 2, "needs --json"),
        (["RUN", "--json", "--n-best", "9"], 2, "decode.n_best"),
        (["RUN", "--input", "gone.en"], 1, "gone.en: no such file"),
        (["RUN", "--score", "VALID", "--prefix", "VALID"], 2, "--score translates nothing"),
        (["RUN", "--threads", "100000000000000000000"], 2, "--threads 100000000000000000000: at most"),
        (["RUN", "--threads", "1025"], 2, "--threads 1025: at most 1024"),
        (["RUN", "--device", "privateuseone"], 2, "--device privateuseone: No module"),
        (["RUN", "--reference", "-"], 2, "stdin can be read once"),
        (["RUN", "--checkpoint", "gone"], 1, "gone: no such file"),
        (["gone"], 1, "no such run directory"),
        (["FOLDER"], 1, "not a run directory"),
        (["RUN", "--input", "VALID", "--output", "VALID"], 2, "would overwrite what is read"),
    ],
)
def test_what_cannot_be_done_is_explained(
    run: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    feed(monkeypatch, b"one\n")
    words = {"RUN": str(run), "FOLDER": str(folder), "VALID": str(folder / "valid.en")}
    before = (folder / "valid.en").read_bytes()
    assert translate([words.get(argument, argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert (folder / "valid.en").read_bytes() == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "tokenizer"])
def test_a_broken_run_is_explained(
    run: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (broken,) = [copy / name] if (copy / name).is_file() else list((copy / name).glob("*.model"))
    whole = broken.read_bytes()
    # Half of it; a configuration inside the model's section, or what is left might do without the rest.
    half = whole.index(b"d_model:") + 5 if name == "config.yaml" else len(whole) // 2
    for data in (whole[:half], b"", None):
        if data is None:
            broken.unlink()
        else:
            broken.write_bytes(data)
        feed(monkeypatch, b"one\n")
        code = translate([str(copy)])
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert code in (1, 2), (data, message)
        assert str(copy) in message


@pytest.mark.usefixtures("starts_warm")
def test_the_script_translates_a_pipe_and_survives_a_closed_one(run: Path, folder: Path) -> None:
    command = [sys.executable, str(ROOT / "translate.py"), str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "valid.en", "rb") as source:
        done = subprocess.run(
            command, stdin=source, capture_output=True, env=environment, timeout=60, check=True
        )
    assert done.stdout.count(b"\n") == 8
    assert done.stderr == b""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(b"one two\n" * 50, timeout=60)
    assert errors == b""


def test_a_run_of_the_other_direction_cannot_vote(
    run: Path, other_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back = tmp_path / "back"
    shutil.copytree(other_run, back)
    text = (back / "config.yaml").read_text()
    swapped = text.replace("source: en", "source: xx").replace("target: de", "target: en")
    (back / "config.yaml").write_text(swapped.replace("source: xx", "source: de"))
    assert translate([str(run), str(back)]) == 1
    assert f"{back} translates de-en, {run} en-de" in capsys.readouterr().err


def test_n_best_of_the_configuration_is_for_json_only(run: Path, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("n_best: 1", "n_best: 2"))
    outputs = []
    for directory, flags in ((run, []), (copy, []), (copy, ["--json"])):
        arguments = ["--input", str(folder / "valid.en"), "--output", str(tmp_path / "out"), *flags]
        assert translate([str(directory), *arguments]) == 0
        outputs.append((tmp_path / "out").read_text())
    assert outputs[0] == outputs[1]
    assert len(json.loads(outputs[2].splitlines()[0])["hypotheses"]) == 2


def test_a_line_that_cannot_be_forced_or_scored_names_its_file(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = file_of(tmp_path, b"eins\n" * 7 + b"rot Haus " * 400 + b"\n")
    for flag in ("--prefix", "--score"):
        assert translate([str(run), "--input", str(folder / "valid.en"), flag, targets]) == 1
        assert f"{targets}: line 8: " in capsys.readouterr().err


def test_a_source_cut_for_scoring_is_reported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = file_of(tmp_path, b"red house " * 2000 + b"\n"), file_of(tmp_path, b"rot\n", "target")
    assert translate([str(run), "--input", source, "--score", target]) == 0
    assert "line 1: the source is too long" in capsys.readouterr().err

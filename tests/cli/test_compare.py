"""`compare` on two trained runs: scores, the paired test, and what differs between them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from transformer.__main__ import main

CONFIG, RESULT = "config.yaml", "result.json"


@pytest.fixture
def copies(run: Path, other_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The two runs, to change at will; what they kept of their tests is gone."""
    copied = tmp_path / "a", tmp_path / "b"
    for source, target in zip((run, other_run), copied, strict=True):
        shutil.copytree(source, target)
        shutil.rmtree(target / "tests", ignore_errors=True)
    return copied


def keep(run: Path, hypotheses: list[str], references: list[str], name: str = "held") -> None:
    (run / "tests").mkdir(exist_ok=True)
    for ending, lines in (("hyp", hypotheses), ("ref", references)):
        (run / "tests" / f"{name}.{ending}").write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")


REFERENCES = [f"die {noun} sieht {number} Haus" for noun in ("Katze", "Maus") for number in range(8)]


def test_two_runs_are_compared_on_the_test_set_they_share(
    run: Path, other_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(run), str(other_run), "--samples", "100"]) == 0
    out = capsys.readouterr().out
    assert "held, 8 sentences" in out
    assert "note: held has 8 sentences: with fewer than about 100, intervals and p are rough" in out
    assert "one and the same" not in out
    assert "BLEU" in out
    assert "bs:100" in out
    assert "model.placement pre -> post" in " ".join(out.split())
    assert "about these two models, not about other seeds" in out


def test_the_scores_are_those_of_the_runs_own_results(
    copies: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was kept, so the runs translate again."""
    assert main(["compare", *map(str, copies), "--json", "--samples", "100"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    for side, name in zip(copies, ("first", "second"), strict=True):
        told = json.loads((side / RESULT).read_text(encoding="utf-8"))
        bleu = facts["tests"]["held"]["BLEU"][name]
        assert bleu == pytest.approx(told["test"]["held"]["bleu"])
        assert told["parameters"] in facts["parameters"]
        assert f"{side}: translating 8 lines" in captured.err


def test_translations_that_were_kept_are_used_without_a_model(
    copies: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for side in copies:
        (side / "model.safetensors").unlink()
    keep(copies[0], [line.replace("sieht", "ist") for line in REFERENCES], REFERENCES)
    keep(copies[1], REFERENCES, REFERENCES)
    assert main(["compare", *map(str, copies), "--test", "held"]) == 0
    captured = capsys.readouterr()
    assert "translating" not in captured.err
    assert "100.00" in captured.out
    assert "B is better (p < 0.001)" in captured.out


def test_a_run_of_before_whose_test_set_no_file_can_be_called_is_saved_by_another_name(
    copies: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its translations of the set `n/a` were kept as n_a.hyp: that is the name the message proposes."""
    for side, names in zip(copies, ("{n/a: ", "{other: x, n/a: "), strict=True):
        (side / "model.safetensors").unlink()
        text = (side / CONFIG).read_text(encoding="utf-8")
        prefix = re.search(r"held: (.*)", text)[1]  # type: ignore[index]
        text = re.sub(r"test:\n +held: .*", f"test: {names}{prefix}}}", text)
        (side / CONFIG).write_text(text, encoding="utf-8")
        keep(side, REFERENCES * 7, REFERENCES * 7, "n_a")
    compared = ["compare", *map(str, copies), "--samples", "100", "--json"]
    for side in copies:
        assert main(compared) == 2
        message = capsys.readouterr().err
        assert "data.test.n/a: 'n/a' cannot name a test set, whose translations are a file" in message
        assert f"call it 'n_a' ({side / CONFIG}, line " in message
        text = (side / CONFIG).read_text(encoding="utf-8").replace("n/a:", "n_a:")
        (side / CONFIG).write_text(text, encoding="utf-8")
    assert main(compared) == 0
    captured = capsys.readouterr()
    assert "translating" not in captured.err
    facts = json.loads(captured.out)
    assert facts["sentences"] == {"n_a": 112}
    assert facts["notes"] == []
    assert facts["differences"]["model.placement"] == ["pre", "post"]
    assert not [key for key in facts["differences"] if key.startswith("data.test")]
    resumed = ["train", "--resume", str(copies[0]), "--check"]
    assert main(resumed) == 1
    assert "take out its first line" in capsys.readouterr().err
    text = (copies[0] / CONFIG).read_text(encoding="utf-8")
    (copies[0] / CONFIG).write_text(text.partition("\n")[2], encoding="utf-8")
    assert main(resumed) == 0


def test_a_run_and_itself_do_not_differ(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run), str(run), "--samples", "100"]) == 0
    out = capsys.readouterr().out
    assert out.count("not significant (p = 1.00)") == 2
    assert "no option differs" in out
    assert "note: A and B are one and the same run" in out
    assert "is better" not in out


def test_any_text_can_be_compared_on(
    run: Path, other_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--input", str(folder / "valid.en"), "--reference", str(folder / "valid.de")]
    assert main(["compare", str(run), str(other_run), *text, "--json", "--samples", "100"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts["tests"]) == ["valid.en"]
    assert facts["sentences"] == {"valid.en": 8}
    assert facts["runs"] == [str(run), str(other_run)]
    assert facts["differences"]["model.placement"] == ["pre", "post"]
    assert "run_dir" not in facts["differences"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--input", "x"], 2, "--input needs --reference"),
        (["--test", "held", "--input", "x", "--reference", "y"], 2, "one of the two"),
        (["--test", "hold"], 2, "it has held"),
        (["--samples", "5"], 2, "at least 100"),
        (["--input", "nosuch", "--reference", "nosuch"], 1, "nosuch"),
    ],
)
def test_what_cannot_be_compared_is_told(
    run: Path, other_run: Path, words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(run), str(other_run), *words]) == code
    assert told in capsys.readouterr().err


def test_another_reference_may_be_given_for_a_test_set(
    copies: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [line.replace("sieht", "ist") for line in REFERENCES]
    for side, hypotheses in zip(copies, (other, REFERENCES), strict=True):
        keep(side, hypotheses, REFERENCES)
    file = tmp_path / "other.de"
    file.write_text("".join(f"{line}\n" for line in other), encoding="utf-8")
    assert main(["compare", *map(str, copies), "--reference", str(file), "--samples", "100"]) == 0
    assert "A is better" in capsys.readouterr().out
    file.write_text("zu kurz\n", encoding="utf-8")
    assert main(["compare", *map(str, copies), "--reference", str(file)]) == 1
    assert "--reference has 1 lines, held of" in capsys.readouterr().err


def test_runs_of_other_languages_are_refused(
    copies: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = copies[1] / CONFIG
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("  target: de\n", "  target: fr\n"), encoding="utf-8")
    assert main(["compare", *map(str, copies)]) == 2
    assert "translates en-de" in capsys.readouterr().err


def test_another_reference_under_the_same_name_is_refused(
    copies: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    keep(copies[0], REFERENCES, REFERENCES)
    keep(copies[1], REFERENCES, [*REFERENCES[:-1], "etwas anderes"])
    assert main(["compare", *map(str, copies)]) == 1
    assert "another reference" in capsys.readouterr().err


def test_of_a_run_that_left_no_model_it_is_told_what_differs(
    copies: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((copies[1] / RESULT).read_text(encoding="utf-8"))
    result |= {"status": "diverged", "reason": "not finite at update 9 (rate 1); " + "exploded; " * 99}
    (copies[1] / RESULT).write_text(json.dumps(result), encoding="utf-8")
    (copies[1] / "model.safetensors").unlink()
    assert main(["compare", *map(str, copies)]) == 1
    out, err = capsys.readouterr()
    assert "model.placement pre -> post" in " ".join(out.split())
    assert f"{copies[1]} has no model: the run ended as diverged (not finite at update 9 (rate 1)" in err
    assert len(err) < 300 + 2 * len(str(copies[1]))
    assert main(["compare", *map(str, copies), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["differences"]["model.placement"] == ["pre", "post"]


def test_a_directory_that_is_no_run_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(run), str(tmp_path)]) == 1
    assert "not a run directory" in capsys.readouterr().err

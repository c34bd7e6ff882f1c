"""`python -m transformer bench` measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from transformer.cli.bench import main
from transformer.decoding import DecodeConfig
from transformer.speed import ceilings
from transformer.speed.ceilings import fastest, measure_ceilings
from transformer.speed.process import age, peak_memory
from transformer.speed.training import Clock
from transformer.speed.translation import forced

CPU = torch.device("cpu")
TINY = [
    *("--set", "model.d_model=16", "--set", "model.d_ff=32", "--set", "model.heads=2"),
    *("--set", "model.encoder_layers=1", "--set", "model.decoder_layers=1"),
    *("--set", "train.batch_tokens=256", "--rounds", "2", "--device", "cpu"),
]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine can do at most is looked for far enough that these models do not reach it."""
    monkeypatch.setattr("transformer.cli.bench.measure_ceilings", partial(measure_ceilings, seconds=0.03))
    monkeypatch.setattr(ceilings, "_SHAPES", {"cpu": ((512, 512, 512), (256, 1024, 1024))})
    monkeypatch.setattr(ceilings, "_COPIED", {"cpu": 1 << 24})


@pytest.mark.usefixtures("short")
def test_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "speed.json"
    assert main(["train", "configs/demo.yaml", *TINY, "--updates", "3", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert len(found["rounds"]) == 2
    assert found["slowest"] <= found["speed"] <= found["fastest"]
    assert 0 <= found["target_padding"] < 0.5
    assert 0 < found["tokens_per_update"] <= 256
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert set(found["shares"]) == {"data", "forward", "loss", "backward", "optimizer"}
    bounds = found["products"] / found["operations"], found["copy"] / found["bytes"]
    assert found["limit"] == pytest.approx(min(bounds)), "products or memory, whichever ends later"
    assert 0 < found["share_of_limit"] < 1, "nothing is faster than its limit"
    assert "configs/demo.yaml" in found["command"]
    assert "target tokens" in capsys.readouterr().out


@pytest.mark.usefixtures("short")
def test_translation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "speed.json"
    arguments = [
        "translate",
        "configs/demo.yaml",
        *TINY,
        "--lines",
        "12",
        "--length",
        "6",
        "--json",
        str(file),
    ]
    assert main(arguments) == 0
    found = json.loads(file.read_text())
    assert [row["beam"] for row in found["beams"]] == [1, 5]
    assert found["weights"] == "initial"
    assert "initial weights" in capsys.readouterr().out
    for row in found["beams"]:
        assert row["subwords"] == 6, "every translation has the length that was asked for"
        assert 0 < row["share_of_limit"] < 1


def test_a_run_is_not_trained_and_nothing_is_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "configs/demo.yaml", "--updates", "0"]) == 2
    assert "--updates 0" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert main(["train", str(tmp_path)]) == 2
    assert "is a run" in capsys.readouterr().err


@pytest.mark.usefixtures("short")
def test_an_update_of_several_micro_batches_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    more = ["--set", "train.accumulate=4", "--updates", "2", "--rounds", "1", "--json", str(file)]
    assert main(["train", "configs/demo.yaml", *TINY, *more]) == 0
    found = json.loads(file.read_text())
    assert (found["updates"], found["micro_batches"]) == (2, 8)
    assert 256 < found["tokens_per_update"] <= 4 * 256
    assert "2 updates of" in (said := capsys.readouterr().out)
    assert "in 4.0 micro-batches" in said


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AssertionError("it was measured")

    for name in ("measure_training", "measure_translation", "measure_ceilings", "prepare"):
        monkeypatch.setattr(f"transformer.cli.bench.{name}", fails)


DEMO = "configs/demo.yaml"


@pytest.mark.usefixtures("nothing_is_measured")
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--beams", "2000"], "(--beams 2000)"),
        (["--beams", "0"], "(--beams 0)"),
        (["--beams", "5,x"], "--beams: 'x' is not a whole number"),
        (["--beams", ""], "--beams ''"),
        (["--length", "200000"], "(--length 200000)"),
        (
            ["--set", "decode.search=sampling", "--set", "decode.temperature=0.7"],
            "decode.search: beam search",
        ),
    ],
)
def test_a_search_that_there_is_not_is_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["translate", DEMO, "--device", "cpu", *words]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("  - ") <= 1, "one thing is wrong, and one is said"


@pytest.mark.parametrize("text", ["", "\n \n\t\n"])
def test_text_without_a_line_to_translate_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "blank").write_text(text)
    assert main(["translate", DEMO, *TINY, "--input", str(tmp_path / "blank")]) == 1
    assert f"error: {tmp_path / 'blank'}: nothing to translate" in capsys.readouterr().err


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run that has not ended."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 1\n")
    return tmp_path / "run"


@pytest.mark.usefixtures("nothing_is_measured")
@pytest.mark.parametrize("words", [["--placement", "post"], ["--set", "model.d_model=1024"], ["--seed", "2"]])
def test_a_run_s_model_is_what_it_is(words: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["translate", str(run), "--device", "cpu", *words]) == 2
    assert f"a trained run has only decode options; use decode.x=y ({' '.join(words)})" in (
        capsys.readouterr().err
    )


@pytest.mark.usefixtures("nothing_is_measured")
def test_a_directory_without_weights_is_not_timed_with_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["translate", str(tmp_path), "--device", "cpu"]) == 1
    assert "not a run directory" in capsys.readouterr().err
    assert main(["translate", str(run), "--device", "cpu"]) == 1
    assert f"error: {run}" in capsys.readouterr().err
    (run / "export.json").write_text("{}")
    assert main(["translate", str(run), "--device", "cpu"]) == 2
    assert "is an export, not a run" in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_is_measured")
def test_where_nothing_can_be_written_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for what in ("train", "translate"):
        for path, reason in ((tmp_path, "a directory"), (tmp_path / "no" / "a.json", "no directory")):
            assert main([what, DEMO, "--device", "cpu", "--json", str(path)]) == 2
            assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short")
def test_ceilings_are_rates() -> None:
    found = measure_ceilings(CPU, [torch.float32, torch.float64], seconds=0.05)
    assert found.products.keys() == {"float32", "float64"}
    assert all(1e8 < rate < 1e14 for rate in found.products.values())
    assert 1e8 < found.copy < 1e13


def test_a_ceiling_counts_two_operations_a_multiplication_and_takes_the_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    took = iter([4.0, 2.0, 4.0, 8.0, 0.5])  # two shapes by two libraries, and the copy
    monkeypatch.setattr(ceilings, "fastest", lambda *_: next(took))
    found = measure_ceilings(CPU, [torch.float32])
    assert found.products["float32"] == 2 * 4096 * 512 * 1024 / 2.0 == 2 * 1024 * 2048 * 2048 / 4.0
    assert found.copy == 2 * 2**28 / 0.5


def test_a_ceiling_is_of_the_fast_calls() -> None:
    pauses = iter([0.2, 0.2, 0.01, 0.05, 0.01, 0.05] + [0.05] * 100)
    took = fastest(lambda: time.sleep(next(pauses)), CPU, seconds=0.5)
    assert 0.01 <= took < 0.05, "neither the first calls nor what disturbed some counts"


def test_a_clock_gives_each_part_its_time() -> None:
    clock = Clock(CPU)
    with clock.forward(None):
        time.sleep(0.02)
        clock.decoded()
    time.sleep(0.04)
    clock.gradients()
    assert clock.seconds["forward"] >= 0.02 > clock.seconds["loss"]
    assert clock.seconds["backward"] >= 0.04


def test_the_process_s_age_and_memory() -> None:
    assert (age() or 1) > 0
    before = peak_memory(CPU)
    block = torch.ones(1 << 28, dtype=torch.uint8)
    assert peak_memory(CPU) >= max(before, block.numel())


def test_forced_lengths_are_those_of_every_line() -> None:
    config = DecodeConfig.model_validate(forced(16))
    assert {config.longest(length) for length in (1, 9, 400)} == {16}
    assert config.min_length == 16


def test_the_memory_of_a_process_is_not_that_of_its_parent() -> None:
    block = torch.ones(1 << 29, dtype=torch.uint8)
    code = (
        "import torch; from transformer.speed.process import peak_memory as p; print(p(torch.device('cpu')))"
    )
    child = int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    assert len(block) > child

"""benchmarks/gpu.py, tiny and on a CPU: the code that a GPU runs, but for its clock."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gpu
import gpu_check
import gpu_training
import pytest
import torch
from gpu_peaks import peak_of
from gpu_tables import training_text

from transformer.core.errors import ConfigError
from transformer.speed import ceilings
from transformer.speed.ceilings import Ceilings
from transformer.speed.random_text import random_corpus, random_trainer
from transformer.speed.timeline import ATTENTION, Timeline

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--tiny", "--no-compile"]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "PAIRS", [("pre", "layer"), ("reversible", "rms")])
    monkeypatch.setattr(ceilings, "_SHAPES", {"cpu": ((512, 512, 512), (256, 1024, 1024))})
    monkeypatch.setattr(ceilings, "_COPIED", {"cpu": 1 << 24})


def test_numbers_and_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "training", lambda *_: {"skipped": "not here"})
    assert gpu.main([*TINY, "--json", str(tmp_path / "gpu.json")]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row.get("skipped") for row in found["correctness"]] == [None, "--no-compile", None]
    plain, compiled = found["speed"]
    assert compiled["skipped"] == "--no-compile"
    assert 0 < plain["of_limit"] <= 1
    assert 0 < plain["of_peak"] <= plain["of_limit"] + 1e-9
    assert sum(share for part, share in plain["shares"].items() if part != ATTENTION) == pytest.approx(1)
    assert 0 < plain["shares"][ATTENTION] < plain["shares"]["forward"] + plain["shares"]["backward"]
    told = capsys.readouterr().out
    assert "not measured: --no-compile" in told
    assert "not measured: not here" in told


def test_a_wrong_number_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_check, "BOUNDS", {"logits": 1.0, "loss": 1.0, "gradients": 1e-6})
    assert gpu.main([*TINY, "--minutes", "0"]) == 1
    told = capsys.readouterr().out
    assert told.count("WRONG") == 2
    assert "no time was left" in told


ROW = {"placement": "pre", "norm": "layer", "way": "plain"}


@pytest.mark.parametrize(("where", "rows"), [("speed", 0), ("training", 1)])
def test_an_error_nobody_thought_of_loses_nothing_that_was_measured(
    where: str,
    rows: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> dict[str, Any]:
        raise ZeroDivisionError("of a kernel")

    monkeypatch.setattr(gpu, "correctness", lambda *_, **__: iter([{**ROW, "skipped": "here"}] * 3))
    monkeypatch.setattr(gpu, "measure_ceilings", lambda *_, **__: Ceilings({"bfloat16": 1e12}, 1e11))
    monkeypatch.setattr(gpu, "speed", lambda *_: {"skipped": "here"})
    monkeypatch.setattr(gpu, where, fails)
    assert gpu.main([*TINY, "--json", str(tmp_path / "gpu.json")]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["error"] == "ZeroDivisionError: of a kernel"
    assert [len(found["correctness"]), len(found["speed"])] == [3, rows]
    out, err = capsys.readouterr()
    assert "## Correctness" in out
    assert "limit and peak: products at" in out
    assert out.count("| tiny |") == rows
    assert "Speed, compiled" not in out
    assert out.rstrip().endswith("ZeroDivisionError: of a kernel")
    assert "in fails" in err, "the traceback, for whoever mends it"


def test_a_section_is_written_before_the_next_one_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, found, seen = tmp_path / "gpu.json", {"done": 0}, []

    def work() -> None:
        seen.append((capsys.readouterr().out, json.loads(file.read_text()) if file.exists() else None))
        found["done"] += 1

    assert gpu.in_turn([(work, lambda found: f"done {found['done']}")] * 2, found, file)
    assert seen == [("", None), ("done 1\n\n", {"done": 1})]


def test_a_training_and_its_clock() -> None:
    found = gpu.training(CPU, True, 1.0)
    assert [row["update"] for row in found["validations"]] == [4]
    assert 0 < found["validations"][0]["seconds"] < found["seconds"]
    assert set(found["test"]) == {"demo"}
    assert "validation BLEU 36: not reached" in training_text({"training": found})


def test_the_time_to_a_score_is_that_of_the_first_validation_which_has_it() -> None:
    rows = [{"seconds": 10.0 * i, "bleu": bleu} for i, bleu in enumerate((3, 30, 36, 35, 37))]
    assert gpu_training.reached(rows, 36) == 20
    assert gpu_training.reached(rows, 38) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", None),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("GRID A100-10C", None),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_the_training_ends_when_the_time_does(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(gpu, "training", lambda *words: given.append(words[-1]) or {})
    for words in (["--minutes", "8"], ["--minutes", "1"]):
        options = gpu.parser().parse_args([*TINY, "--train-minutes", "2", *words])
        trained, _ = gpu.sections_of(CPU, options, {})[3]
        trained()
    assert given[0] == 2
    assert 0.9 < given[1] <= 1


def test_what_cannot_be_done_is_a_row_that_says_why() -> None:
    def fails(error: Exception) -> dict[str, Any]:
        raise error

    ends = time.monotonic() + 60
    assert gpu.tried(lambda: fails(ConfigError("no compiler")), ends) == {"skipped": "no compiler"}
    assert gpu.tried(lambda: fails(torch.OutOfMemoryError("too much")), ends) == {"skipped": "too much"}
    with pytest.raises(ZeroDivisionError):
        gpu.tried(lambda: fails(ZeroDivisionError()), ends)


def test_random_text_has_the_lengths_that_were_asked_for() -> None:
    corpus = random_corpus(4000, 50, 20)
    for lengths in (corpus.source_lengths, corpus.target_lengths):
        assert lengths.mean() == pytest.approx(20, rel=0.03)
    source, target = corpus.pair(7)
    assert (len(source) + 1, len(target) + 1) == (corpus.source_lengths[7], corpus.target_lengths[7])
    assert min(source.min(), target.min()) > 3
    assert max(source.max(), target.max()) < 50


def test_a_timeline_sees_every_attention_module_both_ways(tmp_path: Path) -> None:
    model = {"d_model": 16, "d_ff": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 2}
    corpus = random_corpus(50, 50, 8)
    trainer = random_trainer(50, model, {"updates": 9, "probe_every": 0}, corpus, tmp_path, CPU)
    batch = next(trainer.stream.epoch(1))
    trainer.observer = timeline = Timeline(trainer.model, CPU)
    with timeline.watching():
        trainer.step([batch])
    stamped = [part for part, _, _ in timeline.spans]
    assert stamped.count(ATTENTION) == 2 * (1 + 2 * 2), "forward and backward of each"
    assert not timeline.open
    trainer.step([batch])
    assert stamped.count(ATTENTION) == [part for part, _, _ in timeline.spans].count(ATTENTION), (
        "hooks are gone"
    )

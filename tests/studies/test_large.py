"""The study files at the papers' size: benchmarks/claims_large.py."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from transformer.cli.command import INTERRUPTED
from transformer.cli.resolve import new_config
from transformer.studies.cells import plan
from transformer.studies.config import load_study

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LARGE = runpy.run_path(str(ROOT / "benchmarks" / "claims_large.py"))


FILES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


@pytest.mark.parametrize(  # the other corpus with one study, and with all by `make slow`
    ("file", "corpus"),
    [
        pytest.param(file, corpus, id=f"{file.stem}-{corpus}", marks=[pytest.mark.slow] if later else [])
        for i, file in enumerate(FILES)
        for corpus, later in (("multi30k", False), ("iwslt14", i > 0))
    ],
)
def test_a_study_at_the_papers_size_is_a_study(file: Path, corpus: str, tmp_path: Path) -> None:
    study = load_study(file)
    name, test_set = LARGE["CORPORA"][corpus]
    plain = LARGE["enlarged"](study, ROOT / "configs" / "paper" / name, test_set, 3000, 0.25, [1])
    written = tmp_path / "study.yaml"
    written.write_text(yaml.safe_dump(plain), encoding="utf-8")
    large = load_study(written)
    cells = plan(large, new_config, tmp_path)
    assert len(cells) == len(list(study.settings()))
    assert len(large.questions) == len(study.questions)
    assert {(cell.config.model.d_model, cell.config.train.updates) for cell in cells} == {(512, 3000)}


def test_rates_fall_and_warm_ups_grow(tmp_path: Path) -> None:
    study = load_study(ROOT / "configs" / "studies" / "warmup.yaml")
    plain = LARGE["enlarged"](
        study, ROOT / "configs" / "paper" / "multi30k.yaml", "test2016", 5000, 0.5, [1, 2]
    )
    assert plain["axes"]["train.warmup"] == [0, 500]
    assert plain["axes"]["train.lr"] == [5e-4, 1.5e-3, 5e-3]
    assert plain["questions"][0]["that"]["train.warmup"] == 500
    assert plain["seeds"] == [1, 2]
    norms = load_study(ROOT / "configs" / "studies" / "norms.yaml")
    assert LARGE["enlarged"](norms, ROOT, "test2016", 3000, 0.25, None)["seeds"] == [1, 2, 3, 4], "its own"
    sgd = load_study(ROOT / "configs" / "studies" / "warmup_sgd.yaml")
    assert (
        LARGE["enlarged"](sgd, ROOT, "test2016", 3000, 0.25, [1])["axes"]["train.lr"] == sgd.axes["train.lr"]
    )


@pytest.mark.usefixtures("starts_warm")
def test_sigterm_ends_the_trainings_too_and_nothing_finished_is_no_failure(
    folder: Path, tmp_path: Path
) -> None:
    """On a text of seven words: the first call is stopped in its first run, and says so."""
    base = tmp_path / "tiny.yaml"
    base.write_text(f"extends: {folder / 'base.yaml'}\ntrain: {{updates: 100000}}\n", encoding="utf-8")
    words = [sys.executable, str(ROOT / "benchmarks" / "claims_large.py"), str(folder / "study.yaml")]
    words += ["--base", str(base), "--device", "cpu", "--jobs", "1", "--updates", "100000", "--seeds", "1"]
    job = subprocess.Popen(
        [*words, "--runs", str(tmp_path / "runs")], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert job.stderr is not None
    for line in job.stderr:
        if "begins" in line:
            break
    job.send_signal(signal.SIGTERM)
    told = job.communicate(timeout=60)[1]
    assert job.returncode == INTERRUPTED, told
    assert "the same command goes on" in told
    again = subprocess.run(
        [*words, "--runs", str(tmp_path / "runs"), "--minutes", "0.02"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "no run has ended yet" in again.stdout


@pytest.mark.usefixtures("starts_warm")
def test_a_missing_study_is_told_without_a_traceback(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "claims_large.py"), str(tmp_path / "none.yaml")]
    ended = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert ended.returncode == 2
    assert "none.yaml" in ended.stderr
    assert "Traceback" not in ended.stderr

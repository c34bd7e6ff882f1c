"""The study files at the papers' size: benchmarks/claims_large.py."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

from transformer.cli.resolve import new_config
from transformer.studies.cells import plan
from transformer.studies.config import load_study

ROOT = Path(__file__).parents[2]
LARGE = runpy.run_path(str(ROOT / "benchmarks" / "claims_large.py"))


@pytest.mark.parametrize("corpus", ["multi30k", "iwslt14"])
@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda p: p.stem)
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

"""benchmarks/scaling.py: its points, its files, and one real point of each kind, tiny."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import scaling
import scaling_point

from transformer import NORMS, PLACEMENTS, ModelConfig
from transformer.speed import ceilings
from transformer.speed.ceilings import measure_ceilings

POINTS = list(scaling.points(False))
ON_CPU = {"device": "cpu", "threads": 1}


def of(part: str, name: str) -> dict[str, Any]:
    return next(point for point in POINTS if (point["part"], point["name"]) == (part, name))


def test_the_points_are_models_that_can_be_built() -> None:
    for point in POINTS:
        for each in (point, point.get("base", point)):
            if "model" in each:
                ModelConfig(**each["model"])


def test_every_placement_and_every_norm_is_held_against_pre_ln() -> None:
    assert {point["name"] for point in POINTS if point["part"] == "placements"} == set(PLACEMENTS)
    assert {point["name"] for point in POINTS if point["part"] == "norms"} == set(NORMS)
    for point in POINTS:
        if point["kind"] == "pair":
            assert ModelConfig(**point["base"]["model"]) == ModelConfig(**of("placements", "pre")["model"])


@pytest.mark.parametrize(
    ("part", "name", "expected"),
    [
        ("width", "pre", {"speed", "limit", "memory", "shares"}),
        ("norms", "rms", {"ratio", "memory"}),
        ("observing", "probe at each update", {"ratio"}),
        ("preparation", "demo", {"whole", "encoding", "cached"}),
    ],
)
def test_a_point_is_measured(
    part: str,
    name: str,
    expected: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scaling_point, "measure_ceilings", partial(measure_ceilings, seconds=0.03))
    monkeypatch.setattr(ceilings, "_SHAPES", {"cpu": ((256, 512, 512),)})
    monkeypatch.setattr(ceilings, "_COPIED", {"cpu": 1 << 24})
    scaling_point.main(json.dumps(scaling.tiny(of(part, name)) | ON_CPU))
    found = json.loads(capsys.readouterr().out)
    assert expected <= set(found)
    assert all(found[key] > 0 for key in expected - {"shares"})


@pytest.mark.usefixtures("starts_warm")
def test_a_point_in_its_own_process_tells_why_it_cannot_be_measured() -> None:
    point = scaling.tiny(of("preparation", "demo")) | ON_CPU
    assert scaling.measured(point | {"text": "data/none"})["skipped"] == "data/none is not there"
    assert "ConfigError" in scaling.measured(point | {"device": "nonsense"})["skipped"]


def test_a_call_goes_on_where_another_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []

    def measure(point: dict[str, Any]) -> dict[str, Any]:
        measured.append(point["name"])
        if point["name"] == "rms" and len(measured) < 10:
            return {"skipped": "exit code 1: out of memory"}
        made = {"ratio": 1 + len(measured) / 10, "seconds": 0.5, "memory": 2**20, "parameters": 7}
        return made | {"threads": 2, "torch": "2.99"}

    monkeypatch.setattr(scaling, "measured", measure)
    monkeypatch.setattr(scaling, "processor_model", lambda: "Fast 9000")
    command = ["--out", str(tmp_path), "--part", "norms", "--rounds", "2"]
    assert scaling.main([*command, "--only", "l"]) == 0  # layer, layer_simple, scale
    assert measured == [*measured[:3], *measured[2::-1]], "the second round goes backwards"
    first = len(measured)
    assert scaling.main([*command, "--rounds", "1", "--only", "rms"]) == 1  # and prms
    assert "out of memory" in (tmp_path / "table.md").read_text()
    assert scaling.main(command) == 0
    assert len(measured) == first + 2 + 2 * len(NORMS) - first - 1, "what is there is not measured again"
    table = json.loads((tmp_path / "table.json").read_text())["parts"]["norms"]
    layer = next(entry for entry in table if entry["name"] == "layer")
    assert layer["least"] <= layer["ratio"] <= layer["most"]
    assert layer["rounds"] == 2
    assert (tmp_path / "norms.png").stat().st_size > 1000
    assert "| rms |" in capsys.readouterr().out
    assert (tmp_path / "table.md").read_text().startswith("processor Fast 9000; threads 2; torch 2.99;")
    before = len(measured)
    assert scaling.main(["--out", str(tmp_path), "--rounds", "1", "--report"]) == 0
    table = json.loads((tmp_path / "table.json").read_text())["parts"]["norms"]
    assert max(entry["rounds"] for entry in table) == 2, "of all that is there"
    assert len(measured) == before, "a report is of what is there"
    assert list(json.loads((tmp_path / "table.json").read_text())["parts"]) == ["norms"]
    monkeypatch.setattr(scaling, "processor_model", lambda: "Slow 1")
    assert scaling.main([*command, "--only", "rms"]) == 0
    assert len(measured) == before + 4, "what another processor has made is not counted"
    assert (tmp_path / "table.md").read_text().startswith("processor Slow 1;")
    with pytest.raises(SystemExit):
        scaling.main(["--out", str(tmp_path), "--report"])
    assert "one processor and number of threads, not of {'processor': ['Fast" in capsys.readouterr().err
    assert (tmp_path / "table.md").read_text().startswith("processor Slow 1;"), "and is not overwritten"
    with pytest.raises(SystemExit):
        scaling.main(["--out", str(tmp_path / "none"), "--report"])
    assert not (tmp_path / "none").exists()


def test_a_range_is_over_all_rounds() -> None:
    point = {"part": "width", "name": "pre", "x": 64}
    founds = [{"speed": 5.0, "rounds": [1.0, 5.0, 7.0]}, {"speed": 7.0, "rounds": [2.0, 7.0, 9.0]}]
    rows = [{"point": point, "round": i, "found": found} for i, found in enumerate(founds)]
    (entry,) = scaling.summary(rows)["width"]
    assert [entry[key] for key in ("least", "speed", "most")] == [1.0, 6.0, 9.0]
    assert entry["rounds"] == 2


@pytest.mark.parametrize("part", [*scaling.SWEEPS, "preparation"])
def test_each_part_is_drawn(part: str, tmp_path: Path) -> None:
    numbers = {"speed": 2e3, "least": 1e3, "most": 3e3, "limit": 9e3, "memory": 3e8, "memory_before": 1e8}
    numbers |= {"whole": 10, "encoding": 20, "cached": 30, "pairs": 1000}
    entries = [
        {"name": point["name"], "x": point["x"], **numbers} for point in POINTS if point["part"] == part
    ]
    scaling.draw(part, entries, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000

"""The comparison with peers, with no peer installed: its order, its medians, its tables, its clock."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def driver() -> Any:
    from benchmarks.peers import run

    return run


def found(speed: float) -> dict[str, Any]:
    training = {"tokens_per_second": speed, "padding": 0.1, "tokens_per_update": 3500.0}
    return {**training, "parameters": 7_500_000, "seconds_to_first_update": 4.0, "peak_bytes": 1 << 30}


def test_every_second_round_goes_through_the_systems_backwards() -> None:
    plan = driver().jobs(3, ["small"], ["train"], ["ours", "plain", "eole"])
    assert [(job.round, job.system) for job in plan] == [
        *((0, name) for name in ("ours", "plain", "eole")),
        *((1, name) for name in ("eole", "plain", "ours")),
        *((2, name) for name in ("ours", "plain", "eole")),
    ]


def test_a_system_is_asked_only_for_what_it_does() -> None:
    plan = driver().jobs(1, ["small", "large"], ["train", "translate"], ["ours", "ctranslate2"])
    assert {job.task for job in plan if job.system == "ctranslate2"} == {"translate"}
    assert len(plan) == 6


def test_a_table_has_medians_ranges_and_the_ratio_of_each_rounds_own_speeds() -> None:
    speeds = {"ours": [1000.0, 4000.0, 3000.0], "plain": [500.0, 1000.0, 1000.0]}
    plan = driver().jobs(3, ["small"], ["train"], list(speeds))
    trials = driver().measure(plan, lambda job: found(speeds[job.system][job.round]))
    table = driver().tables(trials, list(speeds)).splitlines()
    assert table[0] == "### small, training"
    assert table[4].startswith(
        "| `ours` | 3,000 (1,000 to 4,000) | 1.00 | 10.0% | 3,500 | 7.50 | 4.0 | 1.00 |"
    )
    assert table[5].startswith("| `plain` | 1,000 (500 to 1,000) | 3.00 |")


def test_limits_are_the_last_rows_with_the_share_that_the_first_system_reached() -> None:
    def run(job: Any) -> dict[str, Any]:
        limits = {"limits": {"float32": {"tokens_per_second": 4000.0 * (job.round + 1)}}}
        return found(1000.0) | (limits if job.system == "ours" else {})

    plan = driver().jobs(2, ["small"], ["train"], ["ours", "plain"])
    table = driver().tables(driver().measure(plan, run), ["ours", "plain"]).splitlines()
    assert table[-1].startswith("| limit, float32 | 6,000 (4,000 to 8,000) | 0.19 | ")
    assert table[-1].count("|") == table[2].count("|")


def test_a_system_that_fails_is_not_tried_again_and_stays_in_the_table() -> None:
    asked = []

    def run(job: Any) -> dict[str, Any]:
        asked.append(job.system)
        if job.system == "eole":
            raise driver().Unusable("no environment: no such version")
        return found(100.0)

    systems = ["ours", "eole"]
    trials = driver().measure(driver().jobs(2, ["small"], ["train"], systems), run)
    assert asked == ["ours", "eole", "ours"]
    table = driver().tables(trials, systems).splitlines()
    assert "| `eole` | could not be run: no environment: no such version | " in table[-1]
    assert table[-1].count("|") == table[2].count("|")


def test_a_failure_of_the_first_system_leaves_the_others_without_a_ratio() -> None:
    def run(job: Any) -> dict[str, Any]:
        if job.system == "ours":
            raise driver().Unusable("broken")
        return found(100.0)

    systems = ["ours", "plain"]
    trials = driver().measure(driver().jobs(1, ["small"], ["train"], systems), run)
    assert driver().tables(trials, systems).splitlines()[-1].startswith("| `plain` | 100 |  | ")


def test_the_page_tells_how_each_system_was_run() -> None:
    systems = ["ours", "eole"]
    trials = driver().measure(driver().jobs(1, ["small"], ["train"], systems), lambda job: found(100.0))
    page = driver().page(trials, systems, driver().facts("python run.py --rounds 1", 2, 1, 0))
    assert "`eole` (eole 0.6.4, Pre-LN). Eole, the successor" in page
    assert "40 timed updates" in page
    assert "    python run.py --rounds 1\n" in page


@pytest.mark.parametrize("words", [["--systems", "fairseq"], ["--rounds", "0"], ["--shapes", ""]])
def test_what_is_not_known_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        driver().parser().parse_args(words)
    assert words[0] in capsys.readouterr().err


def test_by_default_everything_is_measured() -> None:
    arguments = driver().parser().parse_args([])
    assert arguments.systems[:4] == ["ours", "ours-float32", "ours-int8", "plain"]
    assert (arguments.shapes, arguments.tasks) == (["small", "large"], ["train", "translate"])


def test_each_system_has_its_adapter_and_its_versions_are_exact() -> None:
    from benchmarks.peers.environments import RECIPES
    from benchmarks.peers.systems import SYSTEMS

    for system in SYSTEMS.values():
        assert (ROOT / "benchmarks" / "peers" / f"{system.module}.py").is_file()
        assert system.environment is None or system.environment in RECIPES
    for recipe in RECIPES.values():
        assert all("==" in one for step in recipe.steps for one in step if not one.startswith("--"))


def test_a_child_that_fails_tells_its_last_error(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = driver().Runner(1, 0, 60.0)
    with pytest.raises(driver().Unusable, match="train: ValueError: too bad"):
        runner.process([sys.executable, "-c", "raise ValueError('too bad')"], "train")
    with pytest.raises(driver().Unusable, match="not done after"):
        driver().Runner(1, 0, 0.2).process([sys.executable, "-c", "import time; time.sleep(9)"], "train")


def test_an_environment_that_cannot_be_made_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def fail(name: str | None) -> Path:
        made.append(name)
        raise driver().Unusable("no environment: offline")

    monkeypatch.setattr(driver(), "environment", fail)
    runner = driver().Runner(1, 0, 60.0)
    plan = driver().jobs(2, ["small"], ["train"], ["eole"])
    runner.prepare(plan)
    trials = driver().measure(plan, runner)
    assert made == ["eole"]
    assert [trial.failure for trial in trials] == ["no environment: offline"]


def test_what_could_not_be_made_whole_is_not_there(tmp_path: Path) -> None:
    def fail(new: Path) -> None:
        (new / "half").touch()
        raise driver().Unusable("stopped")

    with pytest.raises(driver().Unusable):
        driver().made(tmp_path / "text", fail)
    assert not (tmp_path / "text").exists()
    assert driver().made(tmp_path / "text", lambda new: (new / "whole").touch()).is_dir()
    assert [file.name for file in (tmp_path / "text").iterdir()] == ["whole"]


def test_the_meter_counts_the_tokens_of_timed_updates_only_and_ends_the_training() -> None:
    from benchmarks.peers.meter import Meter

    meter = Meter(warm=2, timed=3)
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight])
    updates = 0
    with meter.training():
        for update in range(100):
            meter.count(10 * (update + 1), 20 * (update + 1))
            meter.loss(9.0 - update)
            weight.grad = torch.ones(1)
            updates += 1
            optimizer.step()
    result = meter.result()
    assert updates == 5
    assert result["tokens_per_update"] == 40
    assert result["padding"] == 0.5
    assert result["parameters"] == 1
    assert result["losses"] == [9.0, 5.0]
    assert result["tokens_per_second"] == pytest.approx(120 / (meter.times[-1] - meter.times[1]))


def test_a_loss_that_does_not_fall_and_a_count_that_is_missing_are_errors() -> None:
    from benchmarks.peers.meter import Measured, Meter

    meter = Meter(warm=1, timed=1)
    with pytest.raises(RuntimeError, match="without a target token"):
        meter.updated()
    meter = Meter(warm=1, timed=1)
    for _ in range(2):
        meter.count(1, 1)
        meter.loss(1.0)
        with suppress(Measured):
            meter.updated()
    with pytest.raises(RuntimeError, match="did not fall"):
        meter.result()


def test_translations_of_another_length_are_an_error() -> None:
    from benchmarks.peers.meter import translated

    result = translated(lambda beam: [[1] * 16] * 3, lambda beam: None, 3)
    assert result["sentences_per_second_beam_5"] > 0
    with pytest.raises(RuntimeError, match="of 15 to 16"):
        translated(lambda beam: [[1] * 16, [1] * 15], lambda beam: None, 2)


def test_batches_fit_the_budget_and_hold_every_pair() -> None:
    from benchmarks.peers.shapes import BATCH_TOKENS
    from benchmarks.peers.text import buckets

    pairs = [([1] * (1 + i % 30), [i] * (1 + i % 37)) for i in range(2000)]
    batches, seen = buckets(pairs), 0
    while seen < len(pairs):
        batch = next(batches)
        seen += len(batch)
        assert len(batch) * max(len(side) + 1 for pair in batch for side in pair) <= BATCH_TOKENS
    assert seen == len(pairs)

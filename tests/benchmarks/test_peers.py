"""The comparison with peers, with no peer installed: its order, its medians, its tables, its clock."""

from __future__ import annotations

import argparse
import json
import random
import sys
from contextlib import suppress
from dataclasses import replace
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
    training = {"tokens_per_second": speed, "source_padding": 0.2, "target_padding": 0.1}
    training |= {"tokens_per_update": 3500.0, "updates_timed": 40, "parameters": 7_500_000}
    return {**training, "seconds_to_first_update": 4.0, "peak_bytes": 1 << 30}


def found_1(job: Any) -> dict[str, Any]:
    return found(1.0)


def translating(speed: float) -> dict[str, Any]:
    return {"sentences_per_second_beam_1": 2 * speed, "sentences_per_second_beam_5": speed}


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
    trials = list(driver().measure(plan, lambda job: found(speeds[job.system][job.round])))
    table = driver().tables(trials, list(speeds)).splitlines()
    assert table[0] == "### small, training"
    assert table[4].startswith(
        "| `ours` | 3,000 (1,000 to 4,000) | 1.00 | 20.0% | 10.0% | 3,500 | 7.50 | 4.0 | 1.00 |"
    )
    assert table[5].startswith("| `plain` | 1,000 (500 to 1,000) | 3.00 |")


def test_each_limit_is_held_against_the_system_that_computes_in_its_format() -> None:
    limits = {
        "ours": {"bfloat16": {"tokens_per_second": 4000.0}},
        "ours-float32": {"float32": {"tokens_per_second": 2000.0}},
    }
    speeds = {"ours": 1000.0, "ours-float32": 800.0, "plain": 100.0}

    def run(job: Any) -> dict[str, Any]:
        own = {
            kind: {name: (job.round + 1) * rate for name, rate in rates.items()}
            for kind, rates in limits.get(job.system, {}).items()
        }
        return found(speeds[job.system]) | ({"limits": own} if own else {})

    plan = driver().jobs(2, ["small"], ["train"], list(speeds))
    table = driver().tables(list(driver().measure(plan, run)), list(speeds)).splitlines()
    assert table[-2].startswith("| limit, bfloat16 (`ours`) | 8,000 (from 4,000) | 0.12 | ")
    assert table[-1].startswith("| limit, float32 (`ours-float32`) | 4,000 (from 2,000) | 0.20 | ")
    assert table[-1].count("|") == table[-2].count("|") == table[2].count("|")


def test_saved_runs_are_summed_up_as_one_and_rounds_of_different_files_never_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {"ours": [1000.0, 1000.0], "plain": [500.0, 250.0]}
    later = {"ours": [9000.0], "plain": [1000.0]}
    systems = list(first)
    files = []
    for name, speeds in (("a.json", first), ("b.json", later)):
        rounds = len(speeds["ours"])
        plan = driver().jobs(rounds, ["small"], ["train"], systems)
        trials = list(driver().measure(plan, lambda job, speeds=speeds: found(speeds[job.system][job.round])))
        known = driver().facts(f"python run.py --json {name}", 2, rounds, 0)
        files.append(tmp_path / name)
        files[-1].write_text(json.dumps({**known, "trials": [t._asdict() for t in trials]}))
    translations = driver().jobs(1, ["large"], ["translate"], systems)
    translated = list(
        driver().measure(translations, lambda job: translating(60.0 if job.system == "ours" else 20.0))
    )
    files.append(tmp_path / "c.json")
    files[-1].write_text(
        json.dumps({**driver().facts("c", 2, 1, 0), "trials": [t._asdict() for t in translated]})
    )
    page = tmp_path / "page.md"
    assert driver().main(["--from", *map(str, files), "--write", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "### How many times as fast `ours` is" in printed
    heads = ["", "training, small", "translation, beam 1, large", "translation, beam 5, large"]
    assert "| " + " | ".join(heads) + " |" in printed.splitlines()
    # ratios of the rounds are 2, 4 and 9
    assert printed.splitlines()[-1] == "| `plain` | 4.00 | 3.00 | 3.00 |"
    text = page.read_text(encoding="utf-8")
    assert all(f"    {command}\n" in text for command in ("python run.py --json b.json", "c"))
    assert printed.splitlines()[-1] in text
    assert "`plain` (Pre-LN)" in text
    assert "`eole`" not in text.partition("## How each system was run")[2]


def test_the_summary_says_which_system_could_not_be_run_and_leaves_out_what_was_not_asked_for() -> None:
    def run(job: Any) -> dict[str, Any]:
        if job.system == "eole":
            raise driver().Unusable("broken")
        return found(100.0)

    systems = ["ours", "eole"]
    trials = list(driver().measure(driver().jobs(1, ["small"], ["train"], systems), run))
    assert driver().summary(trials, [*systems, "plain"]).splitlines()[-1] == "| `eole` | could not be run |"
    assert driver().summary(trials[:1], systems) == ""


@pytest.mark.parametrize("text", ["", "[]", '{"trials": [{"shape": "small"}]}', '{"rounds": 1}'])
def test_a_file_that_is_no_saved_run_is_refused_by_name(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.json").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        driver().main(["--from", str(tmp_path / "odd.json")])
    assert "odd.json: not what --json writes" in capsys.readouterr().err


def test_a_system_that_fails_is_not_tried_again_and_stays_in_the_table() -> None:
    asked = []

    def run(job: Any) -> dict[str, Any]:
        asked.append(job.system)
        if job.system == "eole":
            raise driver().Unusable("no environment: no such version")
        return found(100.0)

    systems = ["ours", "eole"]
    trials = list(driver().measure(driver().jobs(2, ["small"], ["train"], systems), run))
    assert asked == ["ours", "eole", "ours"]
    table = driver().tables(trials, systems).splitlines()
    assert "| `eole` | could not be run: no environment: no such version | " in table[-1]
    assert table[-1].count("|") == table[2].count("|")


class Interrupted:
    """A runner whose third job is interrupted; `seen` is what was kept when each began."""

    def __init__(self, file: Path) -> None:
        self.file, self.seen = file, []

    def prepare(self, plan: Any) -> None:
        assert len(plan) == 4

    def __call__(self, job: Any) -> dict[str, Any]:
        self.seen.append(len(json.loads(self.file.read_text())["trials"]) if self.file.exists() else 0)
        if len(self.seen) == 3:
            raise KeyboardInterrupt
        return found(100.0)


def test_ctrl_c_loses_no_trial_that_is_done_and_shows_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "a.json", tmp_path / "page.md"
    runner = Interrupted(file)
    monkeypatch.setattr(driver(), "Runner", lambda *_: runner)
    words = ["--shapes", "small", "--tasks", "train", "--systems", "ours,plain", "--rounds", "2"]
    assert driver().main([*words, "--json", str(file), "--write", str(page)]) == 130
    assert runner.seen == [0, 1, 2]
    trials, (known,) = driver().saved([file])
    assert [(trial.system, trial.round) for trial in trials] == [("ours", 0), ("plain", 0)]
    assert known["command"].endswith(str(page))
    out, err = capsys.readouterr()
    assert "| `plain` | 100 | 1.00 |" in out
    assert "interrupted: 2 of 4 trials are done" in err
    assert list(tmp_path.iterdir()) == [file]


def test_what_was_kept_survives_that_more_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    known = driver().facts("a", 2, 1, 0)
    driver().keep(
        file, known, list(driver().measure(driver().jobs(1, ["small"], ["train"], ["ours"]), found_1))
    )

    def half(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text.encode(encoding)[:9])
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="full"):
        driver().keep(file, known, [])
    assert len(driver().saved([file])[0]) == 1


@pytest.mark.parametrize("flag", ["--json", "--write"])
def test_what_cannot_be_written_is_refused_before_anything_is_measured(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def starts(*_: object) -> None:
        raise AssertionError("it was started")

    monkeypatch.setattr(driver(), "Runner", starts)
    for path, reason in ((tmp_path, "is a directory"), (tmp_path / "no" / "a", "there is no directory")):
        with pytest.raises(SystemExit) as refused:
            driver().main([flag, str(path)])
        assert refused.value.code == 2
        assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_failure_of_the_first_system_leaves_the_others_without_a_ratio() -> None:
    def run(job: Any) -> dict[str, Any]:
        if job.system == "ours":
            raise driver().Unusable("broken")
        return found(100.0)

    systems = ["ours", "plain"]
    trials = list(driver().measure(driver().jobs(1, ["small"], ["train"], systems), run))
    assert driver().tables(trials, systems).splitlines()[-1].startswith("| `plain` | 100 |  | ")


def test_the_page_tells_how_each_system_was_run() -> None:
    systems = ["ours", "eole", "eole-bf16"]
    trials = list(driver().measure(driver().jobs(1, ["small"], ["train"], systems), lambda job: found(100.0)))
    page = driver().page(trials, systems, [driver().facts("python run.py --rounds 1", 2, 1, 0)])
    both = "`eole` (eole 0.6.4, Pre-LN), `eole-bf16` (eole 0.6.4, Pre-LN, bf16)"
    assert f"{both}. Eole, the successor" in page
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
        if system.weights:  # of the same adapter's environment, and made there
            lender = SYSTEMS[system.weights]
            assert not lender.weights
            assert lender.environment == system.environment
            assert lender.model_is_ours == system.model_is_ours
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
    trials = list(driver().measure(plan, runner))
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
            meter.count((15 * (update + 1), 20 * (update + 1)), (10 * (update + 1), 20 * (update + 1)))
            meter.loss(9.0 - update)
            weight.grad = torch.ones(1)
            updates += 1
            optimizer.step()
    result = meter.result()
    assert updates == 5
    assert result["tokens_per_update"] == 40
    assert (result["source_padding"], result["target_padding"]) == (0.25, 0.5)
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
        meter.count((1, 1), (1, 1))
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


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # torch's own, of Pre-LN
def test_a_plain_cache_finds_what_the_whole_prefix_finds() -> None:
    from benchmarks.peers.cached import Cached
    from benchmarks.peers.plain import Plain, search, whole_prefix
    from benchmarks.peers.shapes import STEPS, Shape

    torch.manual_seed(1)
    network = Plain(Shape("tiny", 16, 32, heads=2, layers=2, vocabulary=40, warm=1, timed=1)).eval()
    for weight in network.transformer.parameters():  # norms and biases too
        weight.data += (1.0 if weight.dim() > 1 else 0.2) * torch.randn(weight.shape)
    network.embedding.weight.data *= 0.1  # so that a piece is not its own likeliest successor
    batch = [[5, 6, 7, 8, 9, 10], [20, 21, 22], [30]]  # with padding
    with torch.inference_mode():
        for beam in (1, 4):
            wanted = search(whole_prefix(network, batch, beam), len(batch), beam)
            assert search(Cached(network, batch, beam), len(batch), beam) == wanted
            assert len(set(map(tuple, wanted))) == len(batch)
            assert all(len(row) == STEPS and len(set(row)) > 3 for row in wanted)


def test_our_translations_take_as_many_steps_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.peers.ours import search
    from benchmarks.peers.shapes import STEPS
    from transformer import Transformer
    from transformer.core.special import EOS
    from transformer.decoding import next_token
    from transformer.decoding.engine import Models

    steps = []
    step = next_token._Cached.step

    def counted(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        steps.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(next_token._Cached, "step", counted)
    model = Transformer(
        40, 40, d_model=16, d_ff=32, heads=2, encoder_layers=1, decoder_layers=1, tie_embeddings="all"
    )
    engine = Models([model.eval()], "float32")
    for beam in (1, 3):
        steps.clear()
        with engine.working():
            found = search(engine, [[[5, 6, 7], [8]]], beam)
        assert [(len(row), row[-1]) for row in found] == [(STEPS, EOS)] * 2
        assert len(steps) == STEPS


def test_either_side_of_the_batches_has_little_padding() -> None:
    from benchmarks.peers.text import buckets

    draw = random.Random(1)
    sources = [max(1, round(draw.lognormvariate(2.6, 0.3))) for _ in range(20_000)]
    pairs = [([1] * s, [1] * max(1, round(s * draw.lognormvariate(0, 0.17)))) for s in sources]
    held, places, seen = [0, 0], [0, 0], 0
    for batch in buckets(pairs):
        seen += len(batch)
        for side in (0, 1):
            lengths = [len(pair[side]) + 1 for pair in batch]
            held[side] += sum(lengths)
            places[side] += max(lengths) * len(batch)
        if seen == len(pairs):
            break
    assert all(1 - held[side] / places[side] < 0.05 for side in (0, 1))


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


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # torch's own, of norm_first
def test_peers_drop_where_this_toolkit_does_and_take_no_slow_attention_in_bf16() -> None:
    from benchmarks.peers import same_work, shapes
    from benchmarks.peers.plain import Plain

    class Feedforward(torch.nn.Module):
        def __init__(self, dropout: float) -> None:
            super().__init__()
            self.hidden, self.added = torch.nn.Dropout(dropout), torch.nn.Dropout(dropout)

    same_work.keep_hidden(Feedforward, "hidden")
    made = Feedforward(0.1)
    assert (made.hidden.p, made.added.p) == (0.0, 0.1)

    shape = replace(shapes.SHAPES["small"], vocabulary=20, d_model=8, d_ff=16, heads=2, layers=1)
    network, ones = Plain(shape).train(), torch.ones(1, 400, 8)
    for layer in (*network.transformer.encoder.layers, *network.transformer.decoder.layers):
        hidden = layer.dropout(ones)
        assert torch.equal(hidden, ones)
        assert not torch.equal(layer.dropout1(ones), ones)
        assert layer.self_attn.dropout == 0.0

    flags = torch.backends.cuda.flash_sdp_enabled
    for variant, flash in (("bf16", False), ("", True)):
        task = argparse.Namespace(variant=variant)
        with same_work.attention(task):
            assert flags() is flash
        assert flags() is True


def test_others_have_what_is_asked_for_and_the_children_do_not_get() -> None:
    from benchmarks.peers.others import Spent

    before = Spent(wanted=100.0, own=10.0)
    assert before.others(Spent(wanted=110.0, own=18.0)) == pytest.approx(0.2)
    assert [before.others(each) for each in (before, Spent(110.0, 21.0), Spent(110.0, 10.0))] == [0, 0, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat")
def test_a_process_s_own_time_is_not_of_others() -> None:
    """It is the only one here that computes for a while, or another one does: never more than all."""
    from benchmarks.peers.others import Spent

    before = Spent.now()
    driver().Runner(1, 0, 60.0).process(
        [sys.executable, "-c", "while __import__('time').process_time() < 1: 0"], "x"
    )
    after = Spent.now()
    assert before
    assert after
    assert 1.0 <= after.own - before.own < 2.0
    assert after.wanted - before.wanted > 0.9


def test_a_trial_in_which_others_had_much_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    job = driver().jobs(1, ["small"], ["train"], ["ours"])[0]
    for shares, kept in (([0.02], 0.02), ([0.5, 0.01], 0.01), ([0.4, 0.3, 0.6, 0.0], 0.3)):
        runner, left = driver().Runner(1, 0, 60.0, calm=0.05, tries=3), iter(shares)
        monkeypatch.setattr(runner, "needs", lambda _: (None, None, None))
        monkeypatch.setattr(runner, "adapter", lambda *_, left=left: {"others": next(left)})
        assert runner(job) == {"others": kept}

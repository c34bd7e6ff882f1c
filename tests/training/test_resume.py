"""A run cut short and resumed is the straight run: weights, optimizer, schedule and metrics, bit for bit."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from transformer.core.errors import CheckpointError
from transformer.training.checkpoint import read_weights
from transformer.training.interruption import Interrupted, Interruption
from transformer.training.progress import Stopwatch
from transformer.training.ranks import Ranks
from transformer.training.schedules import SCHEDULES
from transformer.training.states import find_training, load_training

TIMED = ("seconds", "tokens_per_second")


class Cut(Exception):
    """The machine is gone."""


def cut_at(trainer: Any, update: int) -> None:
    """Kill a run in the middle: the exception leaves `fit` with nothing saved at that point."""
    step = trainer.step

    def dying(batches: Any) -> None:
        if trainer.progress.update == update:
            raise Cut
        step(batches)

    trainer.step = dying
    with pytest.raises(Cut):
        trainer.fit()


def interrupt_at(trainer: Any, update: int, number: int = signal.SIGTERM) -> Any:
    """Send this process a signal while update `update` is being computed."""
    step = trainer.step

    def interrupting(batches: Any) -> None:
        if trainer.progress.update == update - 1:
            os.kill(os.getpid(), number)
        step(batches)

    trainer.step = interrupting
    return trainer.fit()


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def assert_equal(one: Any, other: Any) -> None:
    """Nested containers, the same to the bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        assert_equal(list(one.values()), list(other.values()))
    elif isinstance(one, (list, tuple)):
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


def assert_same(resumed: Any, straight: Any) -> None:
    exact = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(resumed.model.state_dict(), straight.model.state_dict(), **exact)
    assert metrics(resumed.run_dir) == metrics(straight.run_dir)
    (weights, state), (other_weights, other) = (load_training(t.shelf.last) for t in (resumed, straight))
    torch.testing.assert_close(weights, other_weights, **exact)
    for clocked in (state, other):
        for clock in ("seconds", "training_seconds"):
            clocked["progress"].pop(clock)
        clocked["window"].pop("seconds")
        clocked.pop("logged")  # bytes, and times differ in length
        clocked.pop("measured")
    assert_equal(state, other)
    ours, others = (find_training(t.shelf.last).hash for t in (resumed, straight))
    assert ours == others is not None
    names = {path.name for path in straight.run_dir.rglob("*.safetensors")}
    assert {path.name for path in resumed.run_dir.rglob("*.safetensors")} == names
    best, other_best = (read_weights(t.run_dir / "model.safetensors") for t in (resumed, straight))
    torch.testing.assert_close(best[0], other_best[0], **exact)
    assert best[1] == other_best[1]


# A schedule is a function of the update, but for one that remembers: two of them, and all by `make slow`.
CASES = [
    *(
        pytest.param(
            {"schedule": name, "timescale": 5},
            marks=[] if name in ("inverse_sqrt", "plateau") else pytest.mark.slow,
        )
        for name in SCHEDULES
    ),
    {"schedule": "plateau", "plateau_patience": 1, "accumulate": 3, "factor": 0.5},
    {"optimizer": "muon", "accumulate": 2, "save_every": 1},
    {"optimizer": "radam", "epochs": 3, "updates": None, "schedule": "cosine", "accumulate": 2},
    {"optimizer": "adafactor", "precision": "bf16"},
    {"optimizer": "sgd", "momentum": 0.9, "lr": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.1, "clip": 0.1},
]


@pytest.mark.parametrize("options", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_a_run_interrupted_mid_epoch_and_resumed_is_the_straight_run(
    options: dict[str, Any], workshop: Any
) -> None:
    straight = workshop.trainer("straight", **options)
    assert straight.fit().status == "completed"
    first = workshop.trainer("cut", **options)
    outcome = interrupt_at(first, 5)
    begun = "accumulate" not in options  # of several micro-batches it is broken off
    assert (outcome.status, outcome.updates) == ("interrupted", 5 if begun else 4)
    assert "SIGTERM" in outcome.reason
    resumed = workshop.trainer("cut", model=workshop.model(seed=99), **options)
    resumed.resume()
    torch.rand(3)  # whatever else drew from the generator must not matter
    assert resumed.fit().status == "completed"
    assert_same(resumed, straight)


@pytest.mark.parametrize(
    ("norm", "number"),
    [
        pytest.param(norm, number, marks=[] if i == number else pytest.mark.slow)
        for i, norm in enumerate(["batch", "power", "layer"], start=1)
        for number in (1, 2, 3)
    ],
)
def test_a_signal_between_two_micro_batches_leaves_the_state_before_the_update(
    norm: str, number: int, workshop: Any
) -> None:
    """Also of norms that keep statistics, and of the first update."""
    options = {"accumulate": 3, "probe_every": 2, "updates": 4}

    def trainer(name: str) -> Any:
        return workshop.trainer(name, model=workshop.model(norm=norm, allow_unsound=True), **options)

    straight = trainer("straight")
    assert straight.fit().status == "completed"
    saving = workshop.trainer(
        "saving", model=workshop.model(norm=norm, allow_unsound=True), **options, save_every=1
    )
    saving.fit()
    log = (saving.run_dir / "log.txt").read_text()
    hashes = {int(n): digest for digest, n in re.findall(r"state (\w+) after update (\d+)", log)}
    for update in (1, 2):
        first = trainer(f"cut{update}")
        passing, seen = first.layout.passing, 0

        def signalled(last: bool, passing: Any = passing, update: int = update, first: Any = first) -> Any:
            nonlocal seen
            seen += first.progress.update == update - 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGTERM)
                seen += 100
            return passing(last)

        first.layout.passing = signalled
        outcome = first.fit()
        assert outcome.status == "interrupted"
        assert outcome.updates == (update if number == 3 else update - 1)
        assert seen == 100 + number, "passes went on after the signal"
        if outcome.updates:
            assert str(find_training(first.shelf.last).hash).startswith(hashes[outcome.updates])
        resumed = trainer(f"cut{update}")
        resumed.resume()
        assert resumed.fit().status == "completed"
        assert_same(resumed, straight)


@pytest.mark.parametrize("death", [5, 8, 11])
def test_a_run_that_was_killed_goes_on_from_its_last_save(death: int, workshop: Any) -> None:
    straight = workshop.trainer("straight")
    straight.fit()
    cut_at(workshop.trainer("cut"), death)
    resumed = workshop.trainer("cut")
    resumed.resume()
    assert resumed.progress.update == death // 4 * 4
    resumed.fit()
    assert_same(resumed, straight)


@pytest.mark.parametrize("where", ["resuming.save_training", "shelf.Shelf.prune"])
@pytest.mark.parametrize("number", [2, 3])
def test_a_run_that_is_killed_while_it_saves_has_all_weights_that_its_last_state_names(
    number: int, where: str, workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the state is written, and before weights that it no longer names are removed."""
    straight = workshop.trainer("straight")
    straight.fit()
    calls = []
    place = f"transformer.training.{where}"
    done = pkgutil.resolve_name(place)

    def dying(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            raise Cut
        return done(*arguments)

    trainer = workshop.trainer("cut")
    with monkeypatch.context() as patched:
        patched.setattr(place, dying)
        with pytest.raises(Cut):
            trainer.fit()
    _, state = load_training(trainer.shelf.last)
    saved = 4 * (number - (where == "resuming.save_training"))
    assert state["update"] == saved
    assert state["progress"]["recent"] == [update for update in (saved - 4, saved) if update]
    for update in state["progress"]["recent"]:
        assert read_weights(trainer.shelf.at(update))[1]["update"] == str(update)
    resumed = workshop.trainer("cut")
    resumed.resume()
    assert "in no file" not in (resumed.run_dir / "log.txt").read_text()
    resumed.fit()
    assert_same(resumed, straight)


def test_a_signal_at_an_update_with_a_validation_due_does_not_lose_it(workshop: Any) -> None:
    straight = workshop.trainer("straight")
    straight.fit()
    interrupt_at(workshop.trainer("cut"), 8, signal.SIGINT)
    resumed = workshop.trainer("cut")
    resumed.resume()
    assert (resumed.progress.update, resumed.progress.validated) == (8, 4)
    resumed.fit()
    assert_same(resumed, straight)


@pytest.mark.parametrize("first_limit", [5, 6, 8])
def test_a_run_with_a_raised_limit_is_the_straight_run(first_limit: int, workshop: Any) -> None:
    """Also when the first part ended in an average, and between two log lines."""
    straight = workshop.trainer("straight")
    straight.fit()
    workshop.trainer("cut", updates=first_limit).fit()
    resumed = workshop.trainer("cut")
    resumed.resume()
    assert resumed.progress.update == first_limit
    resumed.fit()
    assert_same(resumed, straight)


def test_resuming_a_finished_run_trains_no_further_and_says_the_same(workshop: Any) -> None:
    first = workshop.trainer().fit()
    resumed = workshop.trainer()
    resumed.resume()
    outcome = resumed.fit()
    assert (outcome.updates, outcome.metrics, outcome.reason) == (first.updates, first.metrics, first.reason)


def test_the_clock_and_the_counters_go_on(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stopwatch, "lap", lambda self: 1.0)  # a second between any two looks at it
    first = workshop.trainer(updates=5).fit()
    resumed = workshop.trainer(updates=6)
    resumed.resume()
    outcome = resumed.fit()
    assert outcome.seconds > first.seconds > 0
    assert outcome.target_tokens > first.target_tokens
    saved = workshop.trainer(updates=6)
    saved.resume()
    limited = workshop.trainer(updates=None, minutes=saved.progress.seconds / 60)
    limited.resume()
    assert limited.fit().updates == 6  # its minutes were over when it was resumed


def test_patience_is_remembered(workshop: Any) -> None:
    losses = iter([1.0, 2.0, 2.0, 2.0])

    def validate(model: Any) -> dict[str, float]:
        return {"loss": next(losses)}

    options = {"validate": validate, "patience": 3, "updates": 90, "average": 0}
    assert interrupt_at(workshop.trainer(**options), 9).updates == 9
    resumed = workshop.trainer(**options)
    resumed.resume()
    outcome = resumed.fit()
    assert (outcome.updates, outcome.best_update) == (16, 4)


@pytest.mark.parametrize("which", [1, 3, 4], ids=["first", "last", "final"])
def test_a_signal_breaks_off_a_validation_and_the_run_goes_on_exactly(which: int, workshop: Any) -> None:
    """The third is due at the last update; the fourth is that of the average."""
    straight = workshop.trainer("straight")
    straight.fit()
    calls, went_on = [], []

    def long(model: Any) -> Any:
        calls.append(None)
        if len(calls) == which:
            os.kill(os.getpid(), signal.SIGTERM)
            went_on.append(sum(range(10**6)))  # a signal is delivered between two steps of Python
        return workshop.validation(model)

    outcome = workshop.trainer("cut", validate=long).fit()
    assert outcome.status == "interrupted"
    assert len(calls) == which
    assert not went_on
    resumed = workshop.trainer("cut")
    resumed.resume()
    assert (resumed.progress.update, resumed.progress.validated) == (
        min(4 * which, 12),
        min(4 * which - 4, 12),
    )
    assert resumed.fit().status == "completed"
    assert_same(resumed, straight)


def test_a_signal_that_came_before_a_validation_breaks_it_off_too() -> None:
    interruption = Interruption()
    interruption.name = "SIGTERM"
    with pytest.raises(Interrupted), interruption.breaking():
        pytest.fail("it was begun")


def test_an_interruption_that_has_not_begun_begins_with_the_training(workshop: Any) -> None:
    def validate(model: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)  # a KeyboardInterrupt, if nobody hears it
        pytest.fail("it was not broken off")

    with Interruption(begins=False) as interruption:
        trainer = workshop.trainer("cut", updates=4, validate_every=2, validate=validate)
        assert trainer.fit(interruption).status == "interrupted"


def test_a_signal_that_came_before_the_ranks_were_joined_is_told_to_their_chief() -> None:
    class Second(Ranks):
        rank, size, words = 1, 2, list[str]()

        def tell(self, word: str) -> None:
            self.words.append(word)

    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        interruption.join(ranks := Second())
    assert ranks.words == ["SIGTERM"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_final_validation_that_fails_leaves_the_state_of_before_the_end(workshop: Any) -> None:
    """The end logs what was not due: a state saved after that would not be the straight run's."""
    straight = workshop.trainer("straight", updates=20, validate_every=100, log_every=4)
    straight.fit()

    def broken(model: Any) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        workshop.trainer("cut", updates=10, validate_every=100, log_every=4, validate=broken).fit()
    resumed = workshop.trainer("cut", updates=20, validate_every=100, log_every=4)
    resumed.resume()
    resumed.fit()
    assert_same(resumed, straight)


def test_the_signals_handlers_are_put_back(workshop: Any) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupt_at(workshop.trainer(), 2)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "ignored"])
def test_a_second_interrupt_stops_at_once_and_the_last_save_holds(
    before: Any, workshop: Any, request: pytest.FixtureRequest
) -> None:
    found = signal.signal(signal.SIGINT, before)  # a shell has its background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, found))
    trainer = workshop.trainer()
    step = trainer.step

    def impatient(batches: Any) -> None:
        if trainer.progress.update == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        step(batches)

    trainer.step = impatient
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert load_training(trainer.shelf.last)[1]["update"] == 4
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("later", [False, True])
def test_a_signal_that_comes_another_way_too_is_one_request(
    later: bool, number: int, workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who signals a whole job reaches a rank twice; who waits and signals again means it."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setattr("transformer.training.interruption.ECHO", 0.05 if later else 60.0)
    found = signal.signal(signal.SIGTERM, signal.default_int_handler)
    trainer = workshop.trainer()
    step = trainer.step

    def signalled(batches: Any) -> None:
        if trainer.progress.update == 5:
            os.kill(os.getpid(), number)
            time.sleep(0.1)
            os.kill(os.getpid(), number)
        step(batches)

    trainer.step = signalled
    try:
        if later:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit()
        else:
            assert trainer.fit().status == "interrupted"
    finally:
        signal.signal(signal.SIGTERM, found)
    assert load_training(trainer.shelf.last)[1]["update"] == (4 if later else 6)


PROGRAM = """
import sys
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("workshop", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["workshop"] = module
spec.loader.exec_module(module)
trainer = module.Workshop(Path(sys.argv[2])).trainer(updates=10**6, log_every=10**6, validate_every=10**6)
step = trainer.step
def announcing(batches):
    step(batches)
    if trainer.progress.update == 3:
        print("training", flush=True)
trainer.step = announcing
outcome = trainer.fit()
print(outcome.status, outcome.updates)
"""


@pytest.mark.usefixtures("starts_warm")
def test_sigterm_to_a_process_saves_and_stops_cleanly(workshop: Any) -> None:
    conftest = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(conftest), str(workshop.run_dir)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    status, updates = output.split()
    assert status == "interrupted"
    assert "SIGTERM: finishing these passes" in errors
    assert "Traceback" not in errors
    assert load_training(workshop.run_dir / "run" / "checkpoints" / "last")[1]["update"] == int(updates)
    assert (workshop.run_dir / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("forgotten", ["load_optimizer", "load"])
def test_a_trainer_that_does_not_come_to_be_what_was_saved_does_not_go_on(
    forgotten: str, workshop: Any
) -> None:
    workshop.trainer(updates=1).fit()
    trainer = workshop.trainer(updates=2)
    setattr(trainer.layout, forgotten, lambda *_: None)
    with torch.no_grad():
        trainer.parameters[0].add_(1)
    with pytest.raises(CheckpointError, match=r"taken up, the state of .* is another: (optimizer|weights)/"):
        trainer.resume()

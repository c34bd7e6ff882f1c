"""A failed run says where, when, on which batch and of which kind; each kind is provoked for real."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transformer.cli.result import describe_result
from transformer.core.errors import DataError
from transformer.core.special import PAD
from transformer.data.batching import BatchStream, Share, collate, no_pairs
from transformer.data.encoded import EncodedCorpus
from transformer.training.checkpoint import read_weights
from transformer.training.findings import Findings
from transformer.training.history import Line, last_spike, read_past
from transformer.training.inspection import blame, describe, ill_formed, located, not_finite
from transformer.training.limits import updates_of
from transformer.training.passes import copied
from transformer.training.ranks import ALONE, Processes, RankLost, Ranks
from transformer.training.trainer import Trainer

HOT = {"lr": 0.02, "warmup": 0, "schedule": "constant", "optimizer": "sgd", "clip": 0, "updates": 200} | {
    "log_every": 10,
    "validate_every": 100,
}


class Spoilt:
    """The stream of the tests, with batch `at` of epoch `epoch` (both from 1) spoilt."""

    def __init__(self, make: Any, spoil: Any, epoch: int, at: int) -> None:
        self.make, self.spoil, self.spoilt = make, spoil, (epoch, at)

    def batches_in(self, epoch: int) -> int:
        return 7

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        for position in range(start, 7):
            batch = self.make(1000 * epoch + position)
            yield self.spoil(batch) if (epoch, position + 1) == self.spoilt else batch


def ended(trainer: Any) -> dict[str, Any]:
    outcome = trainer.fit()
    assert outcome.status == "diverged"
    found = dict(outcome.divergence)
    assert found["words"] in outcome.reason
    assert found["words"].startswith(found["class"])
    assert found["class"] in (trainer.run_dir / "log.txt").read_text()
    json.dumps(found, allow_nan=False)
    return found


def logging(trainer: Trainer, levels: list[float]) -> None:
    """Let each log line (updates 1, 2, 4, 6, ...) see its nll per token; after the last one, that."""

    def nll() -> float:
        return levels[min(trainer.progress.update // 2, len(levels) - 1)] * trainer.window.tokens

    read = trainer.window.read
    trainer.window.read = lambda: {**read(), "nll": nll()}


# --- exploded


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        ("adam", 1e10),
        ("sgd", 1e30),
        pytest.param("adam", 1e30, marks=pytest.mark.slow),
        pytest.param("sgd", 1e10, marks=pytest.mark.slow),
    ],
)
def test_an_absurd_rate_explodes_and_the_first_layer_is_the_one_that_a_plain_pass_finds(
    rate: float, optimizer: str, workshop: Any
) -> None:
    options = {"lr": rate, "warmup": 0, "optimizer": optimizer, "clip": 0, "updates": 20, "log_every": 7}
    model = workshop.model(placement="pre", norm="none", dropout=0.0)
    twin = copy.deepcopy(model)
    trainer = workshop.trainer(model=model, **options)
    found = ended(trainer)
    assert found["class"] == "exploded"
    assert (found["update"], found["replayed"]) == (2, {"from": 0, "updates": 1, "same": True})
    assert found["learning_rate"] == pytest.approx(trainer.schedule.learning_rate(2))
    assert found["batch"]["batch"] == 2
    plain = workshop.trainer("plain", model=twin, **options)
    batches = list(plain.stream.epoch(1))
    plain.step([batches[0]])
    real = batches[1].source != PAD
    with torch.no_grad():
        x, first = twin.source_embedding(batches[1].source), None
        for residual, branch in twin.encoder.layers[0].connections(real[:, None, None]):
            x = residual(x, branch)
            if first is None and not x[real].isfinite().all():
                first = "feed_forward" if residual.site.closes_layer else "self_attention"
    if first is None:
        assert found["first"]["layer"] != 1 or found["first"]["stack"] != "encoder"
    else:
        assert found["first"] == {
            "pass": "forward",
            "stack": "encoder",
            "layer": 1,
            "part": first,
            "words": f"encoder layer 1, {first}",
        }


def test_a_run_that_grows_step_by_step_says_which_gradient_rose_and_when(workshop: Any) -> None:
    """The rate rises a hundredfold at update 12: the gradients after that, and the end later still."""
    trainer = workshop.trainer(model=workshop.model(placement="pre", dropout=0.0), **HOT)
    rate = trainer.schedule.learning_rate
    trainer.schedule.learning_rate = lambda update: rate(update) * (1 if update < 12 else 100)
    found = ended(trainer)
    assert found["class"] == "exploded"
    assert 12 < found["spike"]["update"] < found["update"]
    assert found["spike"]["times"] > 10
    assert f"at update {found['spike']['update']}" in found["words"]
    assert found["replayed"] == {"from": 0, "updates": found["update"] - 1, "same": True}


@pytest.mark.parametrize(
    ("placement", "rate", "far"), [("pre", 100, True), ("post", 2.8, False)], ids=["far", "not far"]
)
def test_an_explosion_that_stays_finite_says_when_it_rose_and_is_stopped_early_if_it_is_far(
    placement: str, rate: float, far: bool, workshop: Any
) -> None:
    def run(probe_every: int) -> Any:
        options = {"schedule": "constant", "warmup": 0, "log_every": 5, "validate_every": 90, "updates": 90}
        level = {"unigram_loss": math.log(10), "stall_updates": 60}
        model = workshop.model(placement=placement, dropout=0.0)
        return workshop.trainer(
            f"{probe_every}", model=model, lr=rate, probe_every=probe_every, **options, **level
        )

    trainer = run(probe_every=3)
    found = ended(trainer)
    assert (found["class"], found["update"], found["replayed"]) == ("exploded", 5, None)
    assert found["learning_rate"] == rate
    assert trainer.progress.update < 40 if far else trainer.progress.update == 60
    assert found["logged_nll"]["last"] > 2 * found["logged_nll"]["first"]
    assert "above 0.95 times the unigram level" in (trainer.run_dir / "log.txt").read_text()
    assert found["spike"]["update"] <= 6
    assert found["spike"]["layer"] in found["words"]
    blind = ended(run(probe_every=0))
    assert blind["class"] == "exploded"
    assert "is not known" in blind["words"]


def test_the_replay_begins_at_the_last_save_and_meets_the_weights_of_the_run(workshop: Any) -> None:
    seen = {}
    trainer = workshop.trainer(log_every=50, validate_every=4, updates=40, optimizer="adamw", clip=0)
    step, rate = trainer.step, trainer.schedule.learning_rate
    trainer.schedule.learning_rate = lambda update: rate(update) * (1 if update < 10 else 1e30)

    def keeping(batches: Any) -> None:
        before = seen.setdefault(trainer.progress.update + 1, [])
        before.append(copied(trainer.model))
        step(batches)

    trainer.step = keeping
    found = ended(trainer)
    assert found["update"] == 11
    assert found["replayed"] == {"from": 8, "updates": 2, "same": True}
    for update in (9, 10):
        straight, again = seen[update]
        torch.testing.assert_close(again, straight, rtol=0, atol=0)
    assert trainer.progress.update == 12  # noticed there; the replay has moved nothing
    weights = read_weights(trainer.shelf.last / "model.safetensors")[0]
    torch.testing.assert_close(weights, seen[9][0], rtol=0, atol=0)


def test_a_resumed_run_is_examined_like_the_straight_one(workshop: Any) -> None:
    def hot(name: str, updates: int) -> Any:
        trainer = workshop.trainer(name, updates=updates, validate_every=4)
        rate = trainer.schedule.learning_rate
        trainer.schedule.learning_rate = lambda update: rate(update) * (1 if update < 10 else 1e30)
        return trainer

    straight = ended(hot("straight", 40))
    hot("cut", 8).fit()
    resumed = hot("cut", 40)
    resumed.resume()
    assert ended(resumed) == straight


@pytest.mark.parametrize(("broken", "cuts"), [(4, [3]), (4, [1, 3]), (7, [5]), (11, [9])])
def test_an_interruption_between_two_saves_changes_nothing_of_what_is_found(
    broken: int, cuts: list[int], workshop: Any
) -> None:
    """Saves are due at 4, 8, ...: the state of the interruption is no place to begin from."""

    def hot(name: str) -> Any:
        trainer = workshop.trainer(name, model=copy.deepcopy(model), validate_every=4, updates=40)
        rate = trainer.schedule.learning_rate
        trainer.schedule.learning_rate = lambda update: rate(update) * (1 if update < broken - 1 else 1e30)
        return trainer

    model = workshop.model(placement="pre", dropout=0.0)
    straight = ended(hot("straight"))
    assert (straight["update"], straight["replayed"]["from"]) == (broken, 4 * ((broken - 1) // 4))
    for cut in cuts:
        trainer = hot("cut")
        step = trainer.step

        def stopping(batches: Any, trainer: Any = trainer, step: Any = step, cut: int = cut) -> None:
            step(batches)
            if trainer.progress.update == cut:
                trainer.interruption.name = "SIGTERM"

        trainer.step = stopping
        if (trainer.run_dir / "checkpoints").exists():
            trainer.resume()
        assert (trainer.fit().status, trainer.progress.update) == ("interrupted", cut)
    resumed = hot("cut")
    resumed.resume()
    assert ended(resumed) == straight


def test_a_run_that_was_killed_after_a_save_that_was_due_begins_from_it(workshop: Any) -> None:
    def hot(name: str) -> Any:
        trainer = workshop.trainer(name, model=copy.deepcopy(model), validate_every=4, updates=40)
        rate = trainer.schedule.learning_rate
        trainer.schedule.learning_rate = lambda update: rate(update) * (1 if update < 6 else 1e30)
        return trainer

    def killed(batches: Any) -> None:
        if trainer.progress.update == 4:
            raise KeyboardInterrupt
        step(batches)

    model = workshop.model(placement="pre", dropout=0.0)
    straight = ended(hot("straight"))
    assert straight["replayed"]["from"] == 4
    trainer = hot("cut")
    step, trainer.step = trainer.step, killed
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed = hot("cut")
    resumed.resume()
    assert ended(resumed) == straight


def test_a_gradient_alone_that_is_infinite_is_found_in_the_backward_pass(workshop: Any) -> None:
    trainer = workshop.trainer(model=workshop.model(encoder_layers=3), accumulate=2)
    parameter = trainer.model.encoder.layers[1].feedforward.hidden.weight
    parameter.register_hook(lambda g: g * math.inf if trainer.progress.update == 2 else g)
    found = ended(trainer)
    assert found["update"] == 3
    assert found["first"]["pass"] == "backward"
    assert (found["first"]["layer"], found["first"]["part"]) == (2, "feed_forward")


def test_weights_beyond_the_largest_number_are_found_where_only_validation_sees_them(workshop: Any) -> None:
    """The last update before a validation makes them: its own passes are finite."""
    trainer = workshop.trainer(updates=4, validate_every=4, log_every=50, optimizer="sgd", clip=0)
    rate = trainer.schedule.learning_rate
    trainer.schedule.learning_rate = lambda update: rate(update) * (1 if update < 4 else 1e43)
    found = ended(trainer)
    assert (found["class"], found["update"], found["first"]["pass"]) == ("exploded", 4, "update")


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_that_are_huge_and_finite_are_looked_at_on_the_batch(
    optimizer: str, placement: str, workshop: Any
) -> None:
    """A validation is the first to meet them: the update's own passes and its weights are finite."""
    options = {"updates": 4, "validate_every": 4, "log_every": 50, "optimizer": optimizer, "clip": 0}
    trainer = workshop.trainer(model=workshop.model(placement=placement, dropout=0.0), **options)
    rate = trainer.schedule.learning_rate
    trainer.schedule.learning_rate = lambda update: rate(update) * (1 if update < 4 else 1e26)
    found = ended(trainer)
    assert not not_finite(trainer.model)
    assert (found["class"], found["update"], found["first"]["pass"]) == ("exploded", 4, "forward")
    assert "with the new weights" in found["first"]["words"]
    assert found["replayed"] == {"from": 0, "updates": 3, "same": True}
    assert "not in weights and batch" not in found["words"]


def test_weights_that_grew_and_leave_the_batch_finite_are_an_explosion(workshop: Any) -> None:
    """Its logits overflow in another batch only, as the validation says here."""
    seen = iter([{"loss": math.inf}])
    model = workshop.model(placement="pre", dropout=0.0)
    options = {"updates": 4, "validate_every": 4, "log_every": 50, "optimizer": "sgd", "clip": 0}
    trainer = workshop.trainer(model=model, validate=lambda model: next(seen), **options)
    rate = trainer.schedule.learning_rate
    trainer.schedule.learning_rate = lambda update: rate(update) * (1 if update < 4 else 1e6)
    found = ended(trainer)
    assert (found["class"], found["update"], found["first"]) == ("exploded", 4, None)
    assert "times as large as with the weights after update 0" in found["words"]
    assert "not in weights and batch" not in found["words"]


def test_a_validation_alone_that_is_not_finite_is_unclear(workshop: Any) -> None:
    trainer = workshop.trainer(updates=4, validate=lambda model: {"loss": math.inf})
    found = ended(trainer)
    assert (found["class"], found["first"], found["replayed"]["same"]) == ("unclear", None, False)
    assert "run again, the update was finite: what broke it is not in weights and batch" in found["words"]
    assert found["batch"] is None  # it was not a batch of the training that told of it


# --- never started, collapsed


def test_a_rate_of_nothing_never_started(workshop: Any) -> None:
    trainer = workshop.trainer(lr=1e-9, unigram_loss=math.log(10), stall_updates=6)
    found = ended(trainer)
    assert (found["class"], found["update"], found["replayed"]) == ("never started", 6, None)
    assert "gradient norms ran from" in found["words"]


def test_a_model_that_falls_back_has_collapsed(workshop: Any) -> None:
    trainer = workshop.trainer(stall_updates=4, unigram_loss=math.log(10), updates=40, lr=1e-9)
    logging(trainer, [2.0, 2.0, 2.0, 2.5])
    assert ended(trainer)["class"] == "collapsed"


def test_a_model_that_had_learned_and_is_far_above_the_level_has_exploded(workshop: Any) -> None:
    trainer = workshop.trainer(stall_updates=20, unigram_loss=math.log(10), updates=80, lr=1e-9)
    logging(trainer, [3.0, 2.0, 2.0, 2.5, 2.5, 20.0])
    found = ended(trainer)
    assert (found["class"], found["update"]) == ("exploded", 10)
    assert "the logged nll rose from 3 to 20, seen first at update 10" in found["words"]


@pytest.mark.parametrize(
    "risen",
    [[9.0, 6.0] * 4, [200.0] * 8, [900.0, 2.5], [9e3, 4e3, 1e3, 400.0, 50.0]],
    ids=["thrice", "long", "one line", "coming back"],
)
def test_a_loss_that_rises_and_comes_back_is_no_divergence(risen: list[float], workshop: Any) -> None:
    options = {"stall_updates": 20, "updates": 40, "validate_every": 40}
    trainer = workshop.trainer(**options, unigram_loss=math.log(10), lr=1e-9)
    logging(trainer, [3.0, *risen, 2.5, 2.0])
    assert trainer.fit().status == "completed"


@pytest.mark.parametrize(
    ("log_every", "stall_updates"),
    [
        (2, 40),
        (7, 0),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(7, 40, marks=pytest.mark.slow),
    ],
)
def test_slow_learning_is_no_divergence_at_the_last_update(
    log_every: int, stall_updates: int, workshop: Any
) -> None:
    """There is nothing left to stop, and the loss says how far it has come."""
    level = {"unigram_loss": math.log(10), "stall_updates": stall_updates, "validate_every": 40}
    trainer = workshop.trainer(updates=40, lr=1e-9, log_every=log_every, **level)
    assert trainer.fit().status == "completed"


def test_a_model_that_began_far_above_the_level_and_ends_there_is_a_failure(workshop: Any) -> None:
    """Without a norm it may begin anywhere: an end below that is no success."""
    trainer = workshop.trainer(updates=12, unigram_loss=math.log(10), lr=1e-9, stall_updates=0)
    logging(trainer, [1e8, 9e7, 8e7, 9e7, 8e7, 9e7, 8e7])
    found = ended(trainer)
    assert (found["class"], found["update"], found["batch"]) == ("never started", 12, None)
    assert "at its end, update 12, the training nll is 8e+07" in (trainer.run_dir / "log.txt").read_text()
    assert (trainer.run_dir / "model.safetensors").exists()


@pytest.mark.parametrize("last", [[2.5, 20.0, 20.0], [20.0, 2.5, 20.0], [4.0, 4.0, 4.0]])
def test_a_spike_at_the_end_and_a_poor_end_are_results(last: list[float], workshop: Any) -> None:
    trainer = workshop.trainer(updates=12, unigram_loss=math.log(10), lr=1e-9)
    logging(trainer, [2.4, 2.4, 2.4, 2.4, *last])
    assert trainer.fit().status == "completed"


@pytest.mark.parametrize(("learned", "kind"), [(True, "exploded"), (False, "exploded")])
def test_an_explosion_that_is_young_when_the_run_ends_is_one(learned: bool, kind: str, workshop: Any) -> None:
    trainer = workshop.trainer(updates=12, unigram_loss=math.log(10), lr=1e-9)
    logging(trainer, [2.4, 2.0 if learned else 2.4, 2.4, 2.4, 50.0, 50.0, 50.0])
    found = ended(trainer)
    assert (found["class"], found["update"]) == (kind, 8)
    assert "the logged nll rose from 2.4 to 50" in found["words"]


# --- overflow


def test_products_that_overflow_in_half_precision_alone_are_an_overflow(workshop: Any) -> None:
    """float16 ends at 65504: the hidden layer's weights are a hundred thousand times too large for it."""
    found = []
    for name, dtype in (("half", torch.float16), ("exact", torch.float32)):
        model = workshop.model(dropout=0.0, encoder_layers=2)
        with torch.no_grad():
            model.encoder.layers[1].feedforward.hidden.weight.mul_(1e5)
        trainer = workshop.trainer(name, model=model, lr=1e-6, warmup=0, updates=4)
        trainer.passes.dtype = dtype
        found.append(ended(trainer) if dtype == torch.float16 else trainer.fit().status)
    half, exact = found
    assert exact == "completed"
    assert (half["class"], half["update"]) == ("overflow", 1)
    assert (half["first"]["stack"], half["first"]["layer"], half["first"]["part"]) == (
        "encoder",
        2,
        "feed_forward",
    )


@pytest.mark.parametrize(("nll", "kind"), [(3.0, "overflow"), (20.0, "exploded")])
def test_what_overflows_after_the_loss_has_risen_far_has_exploded(
    nll: float, kind: str, workshop: Any
) -> None:
    trainer = halved(workshop, {5: [("hidden", 0, 1e5)]})
    logging(trainer, [3.0, nll])
    found = ended(trainer)
    assert (found["class"], found["update"]) == (kind, 6)


def test_what_overflows_after_it_has_grown_has_exploded(workshop: Any) -> None:
    """The words print what has grown; a class that speaks of the products alone would contradict them."""
    found = ended(halved(workshop, {5: [("output", 0, 1e3), ("hidden", 1, 1e5)]}))
    assert "times as large as with the weights after update 0" in found["words"]
    assert (found["class"], found["update"]) == ("exploded", 6)
    assert "finite in float32 with the same weights and batch" in found["words"]


def test_what_overflows_after_a_gradient_spike_has_exploded(workshop: Any) -> None:
    trainer = halved(workshop, {14: [("hidden", 1, 1e5)]})
    parameter = trainer.model.encoder.layers[1].feedforward.hidden.weight
    parameter.register_hook(lambda g: g * 1e3 if trainer.progress.update == 13 else g)
    found = ended(trainer)
    assert found["spike"]["update"] == 14
    assert "as large as" not in found["words"]
    assert (found["class"], found["update"]) == ("exploded", 15)


def halved(workshop: Any, times: dict[int, list[tuple[str, int, float]]]) -> Trainer:
    """A trainer in float16; after some updates weights of the encoder's feed-forwards are multiplied."""
    model = workshop.model(placement="pre", dropout=0.0, encoder_layers=2)
    trainer: Trainer = workshop.trainer(model=model, lr=1e-6, updates=20, validate_every=20)
    trainer.passes.dtype = torch.float16
    step = trainer.step

    def growing(batches: Any) -> None:
        step(batches)
        with torch.no_grad():
            for name, layer, factor in times.get(trainer.progress.update, ()):
                getattr(trainer.model.encoder.layers[layer].feedforward, name).weight.mul_(factor)

    trainer.step = growing  # type: ignore[method-assign]
    return trainer


def test_an_explosion_under_bf16_is_no_overflow(workshop: Any) -> None:
    """bf16 reaches as far as float32: what is infinite in it at this rate is so in float32 as well."""
    trainer = workshop.trainer(lr=1e30, warmup=0, clip=0, precision="bf16", optimizer="sgd")
    assert ended(trainer)["class"] == "exploded"


# --- data


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_without_a_target_token_is_a_matter_of_data(accumulate: int, workshop: Any) -> None:
    def empty(batch: Any) -> Any:
        return replace(batch, target_out=torch.full_like(batch.target_out, PAD))

    trainer = workshop.trainer(stream=Spoilt(workshop.batch, empty, 2, 7), accumulate=accumulate, updates=30)
    found = ended(trainer)
    assert found["class"] == "data"
    assert (found["batch"]["epoch"], found["batch"]["batch"]) == (2, 7)
    assert "no target token" in found["words"]
    assert found["first"]["part"] == "loss"


def test_an_id_outside_the_vocabulary_is_a_matter_of_data_and_no_traceback(workshop: Any) -> None:
    def outside(batch: Any) -> Any:
        return replace(batch, source=batch.source.clamp(min=77))

    trainer = workshop.trainer(stream=Spoilt(workshop.batch, outside, 1, 5))
    found = ended(trainer)
    assert (found["class"], found["update"], found["batch"]["batch"]) == ("data", 5, 5)
    assert trainer.progress.update == 4


def test_an_error_that_no_batch_explains_is_raised_as_it_is(workshop: Any) -> None:
    trainer = workshop.trainer()

    def failing(batches: Any) -> None:
        raise RuntimeError("out of memory")

    trainer.step = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit()


@pytest.mark.parametrize(
    "placement", [*(pytest.param(p, marks=pytest.mark.slow) for p in ("pre", "rezero")), "post", "fixup"]
)
def test_a_batch_that_alone_is_not_finite_is_a_matter_of_data_even_after_a_spike(
    placement: str, workshop: Any
) -> None:
    """One token, in one batch, has an embedding near the largest number; a spike before it was survived."""
    model = workshop.model(dropout=0.0, tie_embeddings="none", placement=placement)
    with torch.no_grad():
        model.source_embedding.tokens.weight[13] = 3e38

    def rare(batch: Any) -> Any:
        return replace(batch, source=batch.source.clone().index_fill_(1, torch.tensor([0]), 13))

    spoilt = Spoilt(workshop.batch, rare, 6, 3)
    make = spoilt.make
    spoilt.make = lambda seed: replace(make(seed), source=make(seed).source.clamp(max=12))
    options = {"updates": 50, "validate_every": 50, "clip": 1.0}
    trainer = workshop.trainer(model=model, stream=spoilt, validate=lambda model: {"loss": 1.0}, **options)
    weight = model.encoder.layers[0].feedforward.hidden.weight
    weight.register_hook(lambda g: g * 1e4 if trainer.progress.update == 29 else g)
    found = ended(trainer)
    assert (found["class"], found["update"], found["batch"]["batch"]) == ("data", 38, 3)
    assert found["spike"]["update"] == 30
    assert "3 of the 3 updates that follow are finite" in found["words"]


# --- what cannot be told


def test_what_a_replay_does_not_show_again_is_called_unclear(workshop: Any) -> None:
    """A weight that something outside the arithmetic has broken."""
    trainer = workshop.trainer(validate_every=3, updates=20)
    step = trainer.step
    broken = []

    def struck(batches: Any) -> None:
        if trainer.progress.update == 4 and not broken:
            broken.append(True)
            with torch.no_grad():
                trainer.model.decoder.layers[0].feedforward.hidden.weight[0, 0] = math.nan
        step(batches)

    trainer.step = struck
    found = ended(trainer)
    assert (found["class"], found["update"]) == ("unclear", 5)
    assert found["replayed"]["same"] is False
    assert found["first"]["pass"] == "weights"


def test_a_replay_that_fails_leaves_the_result(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = workshop.trainer(lr=1e30, warmup=0, clip=0, optimizer="sgd")
    monkeypatch.setattr(trainer, "rewind", lambda before: 1 / 0)
    found = ended(trainer)
    assert "the replay failed (ZeroDivisionError" in found["words"]


def test_a_run_that_is_too_long_to_replay_says_so(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformer.training.forensics.REPLAY", 3)
    trainer = workshop.trainer(log_every=50, validate_every=50, updates=60)
    rate = trainer.schedule.learning_rate
    trainer.schedule.learning_rate = lambda update: rate(update) * (1 if update < 10 else 1e30)
    found = ended(trainer)
    assert found["replayed"] is None
    assert "not run again" in found["words"]
    assert found["first"]["pass"] == "weights"


# --- parts


def test_the_last_excursion_of_a_norm_above_its_own_median_is_the_spike() -> None:
    calm = [(t, {"a": 1.0 + t % 2, "b": 5.0}) for t in range(1, 12)]
    assert last_spike(calm) is None
    history = [*calm, (12, {"a": 9.0, "b": 60.0}), (13, {"a": 900.0, "b": 5.0})]
    assert last_spike(history) == (12, "b", 12.0)
    late = [(t, {"a": 1.0, "b": {12: 100.0, 900: 25000.0}.get(t, 5.0)}) for t in range(1, 903)]
    assert last_spike(late) == (900, "b", 5000.0)


def test_a_spike_needs_ten_norms_before_it_and_a_median_above_nothing() -> None:
    for spiked, spike in ((10, None), (11, (11, "a", 900.0))):
        history = [(t, {"a": 900.0 if t == spiked else 1.0}) for t in range(1, 15)]
        assert last_spike(history) == spike
    assert last_spike([(t, {"a": 9.0 if t == 30 else 0.0}) for t in range(1, 31)]) is None
    wild = [(t, {"a": math.inf if t % 2 else math.nan}) for t in range(1, 20)]
    assert last_spike([*wild, (20, {"a": 1.0})]) is None


def test_spikes_are_found_in_the_probes_of_the_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"update": 1, "nll": 3.0, "learning_rate": 0.5}\n'
        '{"update": 1, "probe": {"encoder": {"gradient": [0.5, null]}}}\n'
        '{"update": 9, "nll": null}\n'
    )
    past = read_past(path)
    assert past.lines == [Line(1, 3.0, 0.5)]
    assert past.gradients == [(1, {"encoder layer 1": 0.5, "encoder layer 2": math.inf})]
    assert read_past(tmp_path / "none").lines == []


def test_a_batch_of_the_corpus_is_named_by_its_first_pairs() -> None:
    batch = collate([([5, 6], [7])] * 10, range(20, 30))
    named = describe(batch, epoch=2, number=3)
    assert named["pairs"] == [21, 22, 23, 24, 25, 26, 27, 28]
    assert (named["epoch"], named["batch"], named["sentences"], named["target_tokens"]) == (2, 3, 10, 20)
    assert describe(collate([([5, 6], [8])] * 10, range(20, 30)), 2, 3)["digest"] != named["digest"]


def test_what_is_wrong_with_a_batch_is_said(workshop: Any) -> None:
    good, model = workshop.batch(0), workshop.model()
    assert ill_formed([good], model) is None
    bad = replace(good, target_in=good.target_in.clamp(min=14))
    assert ill_formed([good, bad], model) == (1, "it holds the target id 14, and the vocabulary ends at 13")


class Two(Ranks):
    """The first of two ranks; the other has nothing."""

    size = 2


def test_a_batch_that_a_rank_cannot_compute_ends_the_run_with_its_name_and_a_share_of_none_does_not(
    workshop: Any,
) -> None:
    trainer, model = workshop.trainer(), workshop.model()
    good = collate([([5, 6], [7])] * 3, range(20, 23))
    bad = replace(good, source=good.source + 20)
    trainer.progress.update, trainer.progress.batch = 4, 10
    call = model, trainer.progress, 0.1, Two()
    with pytest.raises(DataError, match=r"^rank 0 of 2: update 5 .*source id 25.*ends at 13") as caught:
        blame(IndexError("index out of range"), [good, bad], *call)
    assert "batch 10 of epoch 1, this rank's pairs [21, 22, 23]" in str(caught.value)
    for batch in (good, no_pairs()):
        with pytest.raises(RuntimeError, match="boom"):
            blame(RuntimeError("boom"), [batch], *call)
    with pytest.raises(RankLost, match=r"rank 1 of 2: update 5 failed \(RuntimeError: boom"):
        blame(RuntimeError("boom"), [no_pairs()], *call[:-1], Processes(1, 2))


def corpus_of(pairs: int) -> EncodedCorpus:
    return EncodedCorpus.of([([4 + i % 5], [5] * (1 + i % 7)) for i in range(pairs)])


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_batch_of_a_past_update_is_named_with_the_rows_of_all_ranks_across_the_ends_of_epochs(
    workshop: Any, accumulate: int
) -> None:
    whole, share = BatchStream(corpus_of(40), 40, 1), BatchStream(corpus_of(40), 40, 1, share=Share(0, 2))
    progress, done = workshop.trainer().progress, []
    assert share.batches_in(1) % 4, "the last update of an epoch has fewer"
    for micro_batches in updates_of(share, progress, accumulate):
        progress.update += 1
        done.append((progress.epoch, progress.batch - len(micro_batches), len(micro_batches)))
        if progress.epoch == 4:
            break
        for update, (epoch, first, size) in enumerate(done, start=1):
            batches = list(whole.epoch(epoch))
            for bad in range(size + 2):
                found = located(share, progress, update, accumulate, bad)
                if size == 1 or 1 <= bad <= size:
                    at = first if size == 1 else first + bad - 1
                    assert found == describe(batches[at], epoch, at + 1)
                else:
                    assert found == {"epoch": epoch, "batches": [first + 1, first + size]}
    assert located(share, progress, 0, accumulate, 0) is None
    assert located(workshop.trainer("other").stream, progress, 1, accumulate, 0) is None


def test_a_range_is_said_in_words() -> None:
    found = Findings(kind="unclear", batch={"epoch": 2, "batches": [4, 6]})
    assert found.words().endswith("; one of batches 4 to 6 of epoch 2")


class Beside(Ranks):
    """The chief of two ranks, of which the other has `theirs` where ranks vote."""

    size = 2

    def __init__(self, theirs: int) -> None:
        self.theirs = theirs

    def largest(self, *numbers: int) -> tuple[int, ...]:
        return tuple(max(number, self.theirs) for number in numbers)


def broken_at(trainer: Trainer, update: int, number: int) -> None:
    """Let the loss of a micro-batch of an update be NaN."""
    losses, seen = trainer.layout.losses.forward, []

    def forward(*inputs: Any) -> Any:
        if not seen or seen[-1][0] != trainer.progress.update + 1:
            seen.append((trainer.progress.update + 1, 0))
        seen[-1] = (seen[-1][0], seen[-1][1] + 1)
        loss, nll = losses(*inputs)
        return (loss * math.nan if seen[-1] == (update, number) else loss), nll

    trainer.layout.losses.forward = forward


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_micro_batch_that_was_not_finite_is_recorded_on_the_device(number: int, workshop: Any) -> None:
    trainer = workshop.trainer(accumulate=3)
    broken_at(trainer, 2, number)
    for i in range(4):
        trainer.step([workshop.batch(3 * i + j) for j in range(3)])
    assert (trainer.window.read()["broken"], trainer.window.offender(ALONE)) == (2, number)
    assert trainer.window.offender(Beside(-1)) == 1, "the other had one before"
    assert trainer.window.offender(Beside(-4)) == number, "the other had none"
    assert trainer.window.offender(Beside(0)) == 0, "the other does not know"
    trainer.window.clear()
    assert trainer.window.offender(ALONE) == 0


def test_of_micro_batches_that_memory_does_not_hold_none_is_recorded(workshop: Any) -> None:
    trainer = workshop.trainer(accumulate=2)
    losses, failed = trainer.layout.losses.forward, []

    def forward(*inputs: Any) -> Any:
        if not failed:
            failed.append(True)
            raise MemoryError
        loss, nll = losses(*inputs)
        return loss * math.nan, nll

    trainer.layout.losses.forward = forward
    trainer.step([workshop.batch(0), workshop.batch(1)])
    assert (trainer.window.read()["broken"], trainer.window.offender(ALONE)) == (1, 0)


def test_without_a_replay_the_micro_batch_of_an_earlier_epoch_is_named(
    workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformer.training.forensics.REPLAY", 0)
    stream = BatchStream(corpus_of(30), 40, 1)
    per_epoch = -(-stream.batches_in(1) // 3)
    trainer = workshop.trainer(stream=stream, accumulate=3, log_every=50, validate_every=50, updates=50)
    broken_at(trainer, per_epoch + 1, 2)
    found = ended(trainer)
    assert trainer.progress.epoch > 2
    assert (found["update"], found["replayed"]) == (per_epoch + 1, None)
    assert found["batch"] == describe(stream.undivided(2, 1), 2, 2)


def test_a_gradient_of_no_single_micro_batch_names_their_range(workshop: Any) -> None:
    """Each is finite by itself: only what both add up to is not."""
    trainer = workshop.trainer(accumulate=2, updates=6)
    passes, hook = trainer.passes.run, []

    def run(micro_batches: Any, update: int, *more: Any) -> Any:
        found = passes(micro_batches, update, *more)
        if update == 3 and len(micro_batches) == 2:
            hook.append(update)
            trainer.parameters[0].grad.mul_(math.inf)
        return found

    trainer.passes.run = run
    found = ended(trainer)
    assert hook, "it was provoked"
    assert (found["update"], found["first"]["pass"]) == (3, "backward")
    assert found["batch"] == {"epoch": 1, "batches": [5, 6]}
    assert "one of batches 5 to 6 of epoch 1" in found["words"]


def test_result_json_holds_what_was_found(workshop: Any, tmp_path: Path) -> None:
    from transformer.cli.config import Config

    trainer = workshop.trainer(lr=1e30, warmup=0, clip=0, optimizer="sgd")
    outcome = trainer.fit()
    config = Config(
        run_dir=str(tmp_path), data={"source": "en", "target": "de", "train": "demo", "valid": "demo"}
    )
    result = describe_result(config, outcome, trainer.model, ["train"])
    assert result["divergence"] == outcome.divergence
    assert result["divergence"]["class"] == "exploded"
    done = describe_result(config, workshop.trainer("done").fit(), trainer.model, ["train"])
    assert done["divergence"] is None

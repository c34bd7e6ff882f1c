"""Probes of the layers: each number by its definition, no trace left, the weights as without them."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from transformer.core.special import PAD
from transformer.modules.placements import PLACEMENTS
from transformer.training.monitor import Monitor
from transformer.training.passes import UNOBSERVED

TIMED = ("seconds", "tokens_per_second")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def probes(run: Path) -> dict[int, Any]:
    return {line["update"]: line["probe"] for line in lines(run) if "probe" in line}


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def reading_of(trainer: Any, *batches: Any) -> Any:
    trainer.monitor.every = trainer.monitor.every or 1
    trainer.step(list(batches))
    return trainer.monitor.read()


# --- definitions


def test_the_stream_and_the_branches_are_those_of_a_pass_written_out_by_hand(workshop: Any) -> None:
    """Pre-LN, encoder: x, x + a, x + a + f over real tokens."""
    model = workshop.model(dropout=0.0, placement="pre", encoder_layers=2).double()
    batch = workshop.batch(0)
    real = batch.source != PAD
    expected: dict[str, list[float]] = {"stream": [], "branch": []}
    with torch.no_grad():
        x = model.source_embedding(batch.source)
        for layer in model.encoder.layers:
            a = layer.self_attention(layer.self_residual.norm(x), mask=real[:, None, None])
            y = x + a
            f = layer.feedforward(layer.feedforward_residual.norm(y))
            shares = [float(b[real].norm() / s[real].norm()) for b, s in ((a, x), (f, y))]
            x = y + f
            expected["stream"].append(float(x[real].square().mean()))
            expected["branch"].append(sum(shares) / 2)
    reading = reading_of(workshop.trainer(model=model, probe_every=1), batch)
    for name, values in expected.items():
        assert reading["encoder"][name] == pytest.approx(values, rel=1e-3)


def test_gradient_update_and_gain_are_those_of_the_parameters(workshop: Any) -> None:
    """SGD without clipping: the layer's |dW| is the rate times the gradient of its matrices."""
    model = workshop.model(dropout=0.0)
    trainer = workshop.trainer(model=model, probe_every=1, optimizer="sgd", lr=0.5, warmup=0, clip=1e-3)
    layer = model.decoder.layers[0]
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    trainer.passes.run([workshop.batch(0)], 1)
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters()}
    trainer.optimizer.zero_grad()
    reading = reading_of(trainer, workshop.batch(0))["decoder"]
    whole = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert reading["gradient"] == [pytest.approx(whole, rel=1e-3)]
    moved, size = 0.0, 0.0
    for name, p in layer.named_parameters():
        if p.ndim > 1:
            moved += float((p.detach() - before[name]).square().sum())
            size += float(before[name].square().sum())
    assert reading["update"] == [pytest.approx(math.sqrt(moved / size), rel=1e-3)]
    gains = [p.detach() - 1 for name, p in layer.named_parameters() if name.endswith("norm.weight")]
    assert len(gains) == 3
    assert reading["gain"] == [pytest.approx(float(torch.cat(gains).square().mean().sqrt()), rel=1e-3)]
    assert reading["gain"][0] > 0


def attention_by_hand(attention: Any, x: Tensor, memory: Tensor, allowed: Tensor) -> tuple[float, float]:
    """Query by query, head by head, in plain loops."""
    entropies, largest = [], -math.inf
    width = x.shape[-1] // attention.heads
    q, k = attention.query(x), attention.key(memory)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            keys = allowed[b, t].nonzero().flatten()
            if not len(keys):
                continue
            for h in range(attention.heads):
                part = slice(h * width, (h + 1) * width)
                logits = k[b, keys, part] @ q[b, t, part] / math.sqrt(width)
                p = F.softmax(logits, 0)
                entropies.append(float(-(p * p.log()).sum()))
                largest = max(largest, float(logits.max()))
    return sum(entropies) / len(entropies), largest


def test_entropy_and_largest_logit_are_those_of_all_real_queries_and_heads(workshop: Any) -> None:
    model = workshop.model(dropout=0.0, placement="pre").double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # far from uniform
    batch = workshop.batch(0)
    source, target = batch.source != PAD, batch.target_in != PAD
    length = target.shape[1]
    layer, encoder = model.decoder.layers[0], model.encoder.layers[0]
    with torch.no_grad():
        embedded = model.source_embedding(batch.source)
        x = encoder.self_residual.norm(embedded)
        allowed = source[:, :, None] & source[:, None]
        entropy, logit = attention_by_hand(encoder.self_attention, x, x, allowed)
        x = layer.self_residual.norm(model.target_embedding(batch.target_in))
        causal = torch.ones(length, length).tril().bool()
        own = attention_by_hand(layer.self_attention, x, x, target[:, :, None] & causal)
    reading = reading_of(workshop.trainer(model=model, probe_every=1, lr=1e-9), batch)
    assert reading["encoder"]["entropy"] == [pytest.approx(entropy, rel=1e-3)]
    assert reading["encoder"]["logit"] == [pytest.approx(logit, rel=1e-3)]
    assert reading["decoder"]["entropy"] == [pytest.approx(own[0], rel=1e-3)]
    assert reading["decoder"]["logit"] == [pytest.approx(own[1], rel=1e-3)]
    assert reading["decoder"]["cross_entropy"][0] <= math.log(source.sum(1).max())
    assert "cross_entropy" not in reading["encoder"]


def test_hyper_connections_begin_as_pre_ln_and_a_reversible_pair_as_a_mean(workshop: Any) -> None:
    """All n streams are equal at first, so their mean is each one's, Pre-LN's."""
    batch = workshop.batch(0)

    def first(placement: str, **flags: Any) -> Any:
        model = workshop.model(dropout=0.0, placement=placement, **flags)
        return reading_of(workshop.trainer(placement, model=model, probe_every=1), batch)["encoder"]

    pre, hyper = first("pre"), first("hyper")
    assert hyper["stream"] == [pytest.approx(pre["stream"][0], rel=1e-3)]
    assert hyper["branch"] == [pytest.approx(pre["branch"][0], rel=1e-3)]
    with torch.no_grad():
        model = workshop.model(dropout=0.0, placement="reversible")
        layer, real = model.encoder.layers[0], batch.source != PAD
        a = b = model.source_embedding(batch.source)
        for residual, branch in layer.connections(real[:, None, None]):
            a, b = residual((a, b), branch)
        expected = float(((a + b) / 2)[real].square().mean())
    assert first("reversible")["stream"] == [pytest.approx(expected, rel=1e-3)]


def test_padding_counts_in_no_number_of_the_forward_pass(workshop: Any) -> None:
    batch = workshop.batch(0)
    wider = type(batch)(
        *(F.pad(t, (0, 5), value=PAD) for t in (batch.source, batch.target_in, batch.target_out))
    )
    readings = []
    for name, each in (("narrow", batch), ("wide", wider)):
        trainer = workshop.trainer(name, model=workshop.model(dropout=0.0), probe_every=1, optimizer="sgd")
        readings.append(reading_of(trainer, each))
    for stack in ("encoder", "decoder"):
        for name, values in readings[0][stack].items():
            assert readings[1][stack][name] == pytest.approx(values, rel=2e-3, abs=1e-6), (stack, name)


# --- every wiring


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_every_placement_gives_every_number_of_the_first_micro_batch_once(
    placement: str, precision: str, workshop: Any
) -> None:
    """Also where the stream is a tuple, and where the backward pass runs the stack again."""
    model = workshop.model(placement=placement, encoder_layers=2)
    trainer = workshop.trainer(model=model, probe_every=1, precision=precision)
    counts: dict[Any, int] = {}
    note = trainer.monitor._note

    def counting(stack: str, layer: int, name: str, value: Tensor) -> None:
        counts[stack, layer, name] = counts.get((stack, layer, name), 0) + 1
        note(stack, layer, name, value)

    trainer.monitor._note = counting
    reading = reading_of(trainer, workshop.batch(0), workshop.batch(1))
    names = {"stream", "branch", "gradient", "update", "entropy", "logit"}
    assert names <= set(reading["encoder"])
    assert names | {"cross_entropy", "cross_logit"} <= set(reading["decoder"])
    for stack, layers, slots in (("encoder", 2, 2), ("decoder", 1, 3)):
        for values in reading[stack].values():
            assert len(values) == layers
            assert all(value is not None and math.isfinite(value) for value in values)
        assert all(
            counts[stack, layer, name] == (slots if name == "branch" else 1)
            for layer in range(layers)
            for name in names
        )
    assert hooks(model) == 0


# --- nothing changes, nothing stays


PLAINLY: list[dict[str, Any]] = [{}, {"precision": "bf16"}, {"accumulate": 2, "optimizer": "adamw"}]


@pytest.mark.parametrize(
    ("placement", "options"),
    [  # each placement with one way, each way with one placement; the rest by `make slow`
        pytest.param(placement, options, marks=[] if i == j else pytest.mark.slow)
        for i, placement in enumerate(["post", "reversible", "hyper"])
        for j, options in enumerate(PLAINLY)
    ],
    ids=str,
)
def test_weights_are_the_same_bits_with_and_without_probes(
    placement: str, options: dict[str, Any], workshop: Any
) -> None:
    ended = []
    for every in (0, 1, 5):
        model = workshop.model(placement=placement, attention_dropout=0.1)
        trainer = workshop.trainer(str(every), model=model, probe_every=every, **options)
        trainer.fit()
        ended.append(dict(trainer.model.state_dict()))
        assert sorted(probes(trainer.run_dir)) == {0: [], 1: [*range(1, 13)], 5: [1, 5, 10]}[every]
    for other in ended[1:]:
        torch.testing.assert_close(other, ended[0], rtol=0, atol=0)


def test_hooks_are_there_in_the_probed_forward_pass_and_at_no_other_time(workshop: Any) -> None:
    trainer = workshop.trainer(probe_every=5, accumulate=2)
    hidden, seen = trainer.model.hidden, []

    def counted(*sides: Tensor) -> Tensor:
        seen.append(hooks(trainer.model))
        return hidden(*sides)

    trainer.model.hidden = counted
    trainer.step([workshop.batch(0), workshop.batch(1)])
    assert seen[0] > 0
    assert seen[1] == hooks(trainer.model) == 0
    seen.clear()
    assert trainer.monitor.at(2) is UNOBSERVED
    trainer.step([workshop.batch(0)])
    assert seen == [0]


def test_an_update_that_is_not_probed_reads_the_device_as_often_as_without_probes(
    workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read of a tensor waits for the device; a probe reads once, when it is written down."""
    reads = 0

    def counting(read: Any) -> Any:
        def counted(*values: Any) -> Any:
            nonlocal reads
            reads += 1
            return read(*values)

        return counted

    trainers = [workshop.trainer(str(every), probe_every=every) for every in (0, 5, 1)]
    for trainer in trainers:
        trainer.step([workshop.batch(0)])
        trainer.monitor.read()
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, counting(getattr(Tensor, name)))
    counts = []
    for trainer in trainers:
        reads = 0
        trainer.step([workshop.batch(1)])
        without = reads
        trainer.monitor.read()
        counts.append((without, reads - without))
    assert counts == [(counts[0][0], 0), (counts[0][0], 0), (counts[0][0], 1)]


def test_a_failing_forward_pass_leaves_no_hook(workshop: Any) -> None:
    trainer = workshop.trainer(probe_every=1)
    batch = workshop.batch(0)
    batch.source[0, 0] = 999
    with pytest.raises(IndexError):
        trainer.step([batch])
    assert hooks(trainer.model) == 0


# --- what is written


def test_every_line_is_strict_json_and_the_other_lines_are_as_without_probes(workshop: Any) -> None:
    runs = {}
    for every in (0, 4):
        trainer = workshop.trainer(str(every), probe_every=every)
        trainer.fit()
        text = (trainer.run_dir / "metrics.jsonl").read_text()
        read = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
        runs[every] = [
            {key: value for key, value in line.items() if key not in TIMED}
            for line in read
            if set(line) != {"update", "probe"}
        ]
        assert len(read) - len(runs[every]) == (4 if every else 0)
    assert runs[0] == runs[4]


def test_numbers_that_are_not_finite_are_null(workshop: Any) -> None:
    trainer = workshop.trainer()
    trainer.logbook.probe(3, {"encoder": {"stream": [math.nan, 1.0, math.inf]}, "decoder": {"gain": [None]}})
    assert lines(trainer.run_dir) == [
        {"update": 3, "probe": {"encoder": {"stream": [None, 1.0, None]}, "decoder": {"gain": [None]}}}
    ]


def test_a_norm_without_gain_has_no_gain_drift(workshop: Any) -> None:
    trainer = workshop.trainer(model=workshop.model(norm="layer_simple"), probe_every=1)
    reading = reading_of(trainer, workshop.batch(0))
    assert "gain" not in reading["encoder"]


def test_a_resumed_run_has_the_straight_runs_probes_gain_drift_included(workshop: Any) -> None:
    straight = workshop.trainer("straight", probe_every=3)
    straight.fit()
    workshop.trainer("cut", probe_every=3, updates=5).fit()
    resumed = workshop.trainer("cut", model=workshop.model(seed=99), probe_every=3)
    resumed.resume()
    resumed.fit()
    assert probes(resumed.run_dir) == probes(straight.run_dir)
    assert sorted(probes(straight.run_dir)) == [1, 3, 6, 9, 12]


def test_a_resumed_run_may_probe_at_other_updates(workshop: Any) -> None:
    workshop.trainer(probe_every=0, updates=4).fit()
    resumed = workshop.trainer(probe_every=2)
    resumed.resume()
    resumed.fit()
    assert sorted(probes(resumed.run_dir)) == [6, 8, 10, 12]


def test_tensorboard_has_a_curve_for_each_statistic_and_layer(workshop: Any) -> None:
    trainer = workshop.trainer(tensorboard=True, probe_every=6)
    trainer.fit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(trainer.run_dir / "tensorboard"))
        events.Reload()
    assert {"probe_stream/encoder_1", "probe_cross_logit/decoder_1"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("probe_gradient/decoder_1")] == [1, 6, 12]


def test_a_monitor_that_is_off_copies_nothing(workshop: Any) -> None:
    assert not any(Monitor(workshop.model(), 0).initial_gains.values())

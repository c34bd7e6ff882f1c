"""The readings of the stream against a walk by hand, identities between placements, and growth."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from transformer.analysis.finding import as_json, as_text, save_figure
from transformer.analysis.laws import FEWEST
from transformer.analysis.setting import Arm, Batch, arms, build, random_batches
from transformer.analysis.stream import StreamProbe
from transformer.analysis.watch import Reading, watch
from transformer.cli.probe import SMALL
from transformer.core.special import PAD
from transformer.model.config import ModelConfig
from transformer.modules.masks import padding_mask
from transformer.modules.placements import PLACEMENTS
from transformer.training.monitor import Monitor

BASE = ModelConfig(d_model=16, heads=2, d_ff=24, encoder_layers=2, decoder_layers=2)
SIZES = (30, 30)
BATCHES = random_batches(2, 4, 7, 30, seed=1)


def arm(placement: str, **options: object) -> Arm:
    return arms(BASE.model_copy(update={"placement_options": options}), [placement])[0]


def readings(arm: Arm, batches: list[Batch] = BATCHES) -> dict[str, list[Reading]]:
    return {stack: found for stack, found in watch(build(arm, SIZES, 1, batches[0]), batches).items()}


def square(x: Tensor) -> float:
    return x.square().mean().item()


@torch.no_grad()
def test_the_readings_of_pre_ln_are_those_of_a_walk_by_hand() -> None:
    model = build(arm("pre"), SIZES, seed=1)
    source = BATCHES[0][0]
    real, mask = source != PAD, padding_mask(source)
    x = model.source_embedding(source)
    expected = []
    for layer in model.encoder.layers:
        below = x
        attended = layer.self_attention(layer.self_residual.norm(x), mask=mask)
        expected.append((square(x[real]), square(attended[real]), None))
        x = x + attended
        forwarded = layer.feedforward(layer.feedforward_residual.norm(x))
        at = square(x[real]), square(forwarded[real])
        x = x + forwarded
        expected.append((*at, F.cosine_similarity(below[real], x[real], dim=-1).mean().item()))
    found = watch(model, BATCHES[:1])["encoder"]
    for reading, (stream, branch, cosine) in zip(found[:-1], expected, strict=True):
        assert (reading.stream, reading.norm_reads) == pytest.approx((stream, stream), rel=1e-5)
        assert reading.branch == pytest.approx(branch, rel=1e-5)
        assert reading.share == pytest.approx((branch / stream) ** 0.5, rel=1e-5)
        assert reading.cosine == (None if cosine is None else pytest.approx(cosine, abs=1e-6))
    assert (found[-1].layer, found[-1].part) == ("top", "")
    assert found[-1].stream == found[-1].last_norm_reads == pytest.approx(square(x[real]), rel=1e-5)
    assert found[-1].largest == pytest.approx(x[real].abs().max().item())


@torch.no_grad()
def test_post_ln_reads_the_sum_before_its_norm() -> None:
    model = build(arm("post"), SIZES, seed=1)
    source = BATCHES[0][0]
    real = source != PAD
    x = model.source_embedding(source)
    total = x + model.encoder.layers[0].self_attention(x, mask=padding_mask(source))
    first = watch(model, BATCHES[:1])["encoder"][0]
    assert first.stream == pytest.approx(square(x[real]), rel=1e-5)
    assert first.norm_reads == pytest.approx(square(total[real]), rel=1e-5)


def test_padding_and_the_cut_into_batches_change_nothing() -> None:
    wider = [tuple(F.pad(part, (0, 4), value=PAD) for part in batch) for batch in BATCHES]
    joined = [tuple(torch.cat(parts) for parts in zip(*BATCHES, strict=True))]
    for other in (wider, joined):
        for stack, found in readings(arm("pre")).items():
            for one, two in zip(found, readings(arm("pre"), other)[stack], strict=True):
                assert one.stream == pytest.approx(two.stream, rel=1e-5)
                assert one.branch == (None if two.branch is None else pytest.approx(two.branch, rel=1e-5))
                assert one.cosine == (None if two.cosine is None else pytest.approx(two.cosine, abs=1e-5))


@pytest.mark.parametrize(
    ("placement", "options", "same_as"),
    [
        ("hyper", {}, "pre"),  # starts as Pre-LN on equal streams, of which the mean is read
        ("rskip", {"times": 1}, "post"),
        ("xskip", {"scale": 1}, "post"),
        ("admin", {"omega": "linear"}, "post"),
    ],
)
def test_placements_that_start_alike_read_alike(
    placement: str, options: dict[str, object], same_as: str
) -> None:
    ours, theirs = readings(arm(placement, **options)), readings(arm(same_as))
    for stack in ("encoder", "decoder"):
        for one, two in zip(ours[stack], theirs[stack], strict=True):
            assert (one.layer, one.part) == (two.layer, two.part)
            assert one.stream == pytest.approx(two.stream, rel=1e-4)
            assert one.branch == (None if two.branch is None else pytest.approx(two.branch, rel=1e-4))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_can_be_read(placement: str, tmp_path: Path) -> None:
    finding = StreamProbe().run([arm(placement)], BATCHES, SIZES, [1], lambda text: None)
    assert len(finding.rows) == (2 * 2 + 1) + (2 * 3 + 1)
    for row in finding.rows:
        values = dict(zip(finding.columns, row, strict=True))
        assert values["stream"] > 0
        assert values["largest"] ** 2 >= values["stream"]
        assert (values["branch"] is None) == (values["layer"] == "top")
    assert json.loads(json.dumps(as_json(finding), allow_nan=False)) == as_json(finding)


def test_a_stream_that_doubles_without_a_norm_grows_exponentially() -> None:
    base = BASE.model_copy(update={"encoder_layers": 6, "decoder_layers": 6})
    chosen = arms(base, ["xskip"], ["none"])
    finding = StreamProbe().run(chosen, BATCHES, SIZES, [1, 2], lambda text: None)
    summary = dict(zip(finding.summary_columns, finding.summary[0], strict=True))
    assert summary["law"] == "exponential"
    assert summary["rate"] > 2**4  # two sites a layer, each with at least (2 x)^2
    assert "it looks exponential" in as_text(finding)


def test_the_stack_without_layers_is_left_out_and_the_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    base = BASE.model_copy(update={"encoder_layers": 0})
    finding = StreamProbe().run(arms(base, ["post", "pre"]), BATCHES, SIZES, [1], lambda text: None)
    assert {row[1] for row in finding.rows} == {"decoder"}
    save_figure(finding, tmp_path / "stream.png")
    assert (tmp_path / "stream.png").stat().st_size > 10_000


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_stream_that_leaves_a_layer_is_the_one_that_training_logs(placement: str) -> None:
    """Of streams of several tensors both read what `close` makes of them without a norm."""
    one = arm(placement)
    model = build(one, SIZES, 1, BATCHES[0])
    monitor = Monitor(model, every=1)
    observer = monitor.at(1)
    source, target_in, _ = BATCHES[0]
    with torch.no_grad(), observer.forward(SimpleNamespace(source=source, target_in=target_in)):
        model.hidden(source, target_in)
    logged = monitor.read()
    assert logged is not None
    for stack, found in watch(model, BATCHES[:1]).items():
        above = [reading.stream for reading in found if reading.opens_layer][1:]
        assert above == pytest.approx(logged[stack]["stream"], rel=1e-3)


def test_pre_ln_is_not_called_exponential() -> None:
    """Its stream is a sum: what a layer adds is of one size, with some chance. These seeds once passed."""
    base = ModelConfig.model_validate({**SMALL["model"], "encoder_layers": 4, "decoder_layers": 4})
    batches = random_batches(4, 42, 24, 2000, seed=1)
    finding = StreamProbe().run(arms(base, ["pre"]), batches, (2000, 2000), [4, 5, 6], lambda text: None)
    assert "exponential" not in [row[finding.summary_columns.index("law")] for row in finding.summary]


def test_the_numbers_of_each_seed_are_kept() -> None:
    two, one = (
        StreamProbe().run([arm("pre")], BATCHES, SIZES, seeds, lambda text: None) for seeds in ([3, 4], [4])
    )
    for record, row in zip(two.facts["by_seed"], one.rows, strict=True):
        assert list(record)[:4] == ["arm", "stack", "layer", "part"]
        assert [*list(record.values())[:4], *(v[1] for v in list(record.values())[4:])] == row


def test_the_model_that_is_measured_by_default_is_deep_enough_for_a_law() -> None:
    small = SMALL["model"]
    assert min(small["encoder_layers"], small["decoder_layers"]) >= FEWEST
    chosen = arms(ModelConfig(**small), ["post", "pre"])
    finding = StreamProbe().run(chosen, BATCHES, SIZES, [1, 2], lambda text: None)
    laws = {row[finding.summary_columns.index("law")] for row in finding.summary}
    assert "unclear" not in laws
    assert "linear" in laws

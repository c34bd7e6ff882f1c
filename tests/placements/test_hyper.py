"""Hyper-connections: what they are at the start, and what stays Pre-LN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformer import Transformer
from transformer.modules.masks import padding_mask
from transformer.training.optimizers import decay_groups

V, N, M = 20, 3, 2
SHAPE = {"d_model": 16, "heads": 2, "d_ff": 32, "encoder_layers": N, "decoder_layers": M, "dropout": 0.0}


ONE_LAYER = {"encoder_layers": 1, "decoder_layers": 1}


def build(placement: str = "hyper", **flags: Any) -> Transformer:
    return Transformer(V, V, **{"placement": placement, **SHAPE, **flags})


def batch() -> tuple[Tensor, Tensor]:
    source, target = torch.randint(4, V, (4, 7)), torch.randint(4, V, (4, 6))
    source[0, 4:], source[1, 6:], target[2, 3:] = 0, 0, 0
    return source, target


def streams_of(model: Transformer, x: Tensor, mask: Tensor) -> list[Tensor]:
    """What leaves each site of the encoder."""
    found: list[Tensor] = []
    hooks = [
        residual.register_forward_hook(lambda _, args, out: found.append(out))
        for residual, _ in model.encoder.sites()
    ]
    model.encoder(x, mask)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
@pytest.mark.parametrize("dynamic", [True, False])
def test_at_the_start_every_stream_is_that_of_pre_ln(streams: int, dynamic: bool) -> None:
    """The initial values of what both have are the same: they hang on the parameter's name."""
    model = build(placement_options={"streams": streams, "dynamic": dynamic})
    x, mask = torch.randn(4, 7, 16), padding_mask(batch()[0])
    ours, pre = streams_of(model, x, mask), streams_of(build("pre"), x, mask)
    assert len(ours) == 2 * N
    for several, one in zip(ours, pre, strict=True):
        assert several.shape == (4, 7, streams, 16)
        for i in range(streams):
            torch.testing.assert_close(several[:, :, i], one)


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
def test_at_the_start_the_model_is_pre_ln_whatever_eps_is(streams: int) -> None:
    """The mean of equal streams; their sum would be seen with a large eps."""
    torch.set_default_dtype(torch.float64)
    model, pre = build(norm_eps=0.3, placement_options={"streams": streams}), build("pre", norm_eps=0.3)
    source, target = batch()
    torch.testing.assert_close(model(source, target), pre(source, target), rtol=1e-12, atol=1e-12)


def test_one_static_stream_is_pre_ln_bit_for_bit() -> None:
    source, target = batch()
    static = build(placement_options={"streams": 1, "dynamic": False})
    assert torch.equal(static(source, target), build("pre")(source, target))


def test_the_streams_are_read_in_turn() -> None:
    model = build(placement_options={"streams": 3})
    for stack in (model.encoder, model.decoder):
        read = torch.stack([residual.read for residual, _ in stack.sites()])
        expected = torch.eye(3)[[k % 3 for k in range(len(read))]]
        assert torch.equal(read, expected)


def test_the_dynamic_weights_are_zero_at_first_and_learn() -> None:
    """At zero the weights have a gradient and their scales none; after a step both have."""
    model, (source, target) = build(), batch()
    residuals = [residual for residual, _ in model.sites()]
    for step in range(2):
        model.zero_grad()
        model(source, target).logsumexp(-1).square().mean().backward()
        assert all(not r.weight.any() for r in residuals) == (step == 0)
        assert all(r.weight.grad.any() for r in residuals)
        assert any(r.scale.grad.any() for r in residuals) == (step == 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad


def test_the_static_connections_do_not_decay() -> None:
    """A decaying A would forget the residual stream."""
    model = build()
    groups = decay_groups(model, 0.1)
    free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    for residual, _ in model.sites():
        assert {id(p) for p in (residual.read, residual.mix, residual.write, residual.scale)} <= free
        assert id(residual.weight) not in free


def test_the_streams_stay_float32_under_autocast() -> None:
    model, (source, _) = build(), batch()
    for residual, _ in model.sites():
        nn.init.normal_(residual.weight)
    x, mask = torch.randn(4, 7, 16), padding_mask(source)
    exact = streams_of(model, x, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = streams_of(model, x, mask)
    assert {s.dtype for s in rounded} == {torch.float32}
    residual, _ = next(iter(model.encoder.sites()))
    with torch.autocast("cpu", torch.bfloat16):  # the streams themselves are not rounded on their way
        residual.weight.data.zero_()
        kept = residual(residual.open(x), torch.zeros_like)
    assert torch.equal(kept, residual.open(x))
    assert not torch.equal(exact[0], rounded[0])  # autocast was on: the branch is rounded


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_norms_over_several_tokens_are_refused(norm: str) -> None:
    with pytest.raises(ValueError, match="norms more than the stream"):
        build(norm={"encoder": norm, "decoder": "layer"})


@pytest.mark.parametrize(
    ("training", "dynamic"),
    [
        (True, True),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_it_compiles_as_one_graph_with_the_same_numbers(training: bool, dynamic: bool) -> None:
    torch.set_default_dtype(torch.float64)
    model, (source, target) = (
        build(placement_options={"dynamic": dynamic}, **ONE_LAYER).train(training),
        batch(),
    )
    expected = model(source, target)
    compiled = torch.compile(model, fullgraph=True, backend="eager")(source, target)
    torch.testing.assert_close(compiled, expected)

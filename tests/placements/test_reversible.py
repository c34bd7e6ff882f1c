"""Reversible: the backward pass finds again what was not kept, and nobody notices but the memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transformer import PLACEMENTS, Transformer
from transformer.decoding import DecoderCache
from transformer.modules.masks import padding_mask
from transformer.modules.placements import Placement

V = 20
DROPOUTS = {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.1}
Gradients = dict[str, Tensor]


def build(**flags: Any) -> Transformer:
    shape = {"d_model": 16, "heads": 2, "d_ff": 32, "encoder_layers": 3, "decoder_layers": 3, **DROPOUTS}
    return Transformer(V, V, **{"placement": "reversible", **shape, **flags})


def batch() -> tuple[Tensor, Tensor]:
    source, target = torch.randint(4, V, (4, 7)), torch.randint(4, V, (4, 6))
    source[0, 4:], source[1, 6:], target[2, 3:] = 0, 0, 0
    return source, target


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Calls a function with autograd keeping what it wants, as for every other placement."""

    def call(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(PLACEMENTS["reversible"], "climb", staticmethod(Placement.climb))
            return function()

    return call


def step(model: Transformer, source: Tensor, target: Tensor) -> tuple[float, Gradients, Tensor]:
    """Loss, gradients and what the random numbers are after one step."""
    torch.manual_seed(7)
    model.zero_grad()
    loss = model(source, target).logsumexp(-1).square().mean()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), found, torch.rand(4)


def assert_equal_gradients(ours: Gradients, plain: Gradients, relative: float) -> None:
    """Within `relative` of each tensor's norm, or of a hundredth of the whole gradient's.

    The bias of the keys has no gradient but rounding.
    """
    assert set(ours) == set(plain)
    whole = torch.stack([g.norm() for g in plain.values()]).norm()
    for name, gradient in plain.items():
        error = (ours[name] - gradient).norm()
        assert error <= relative * max(gradient.norm(), whole / 100), (name, error, gradient.norm())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_gradient_is_plain_autograds(
    dtype: torch.dtype, relative: float, training: bool, plainly: Callable[..., Any]
) -> None:
    torch.set_default_dtype(dtype)
    model, (source, target) = build().train(training), batch()
    loss, ours, random = step(model, source, target)
    plain_loss, plain, plain_random = plainly(lambda: step(model, source, target))
    assert loss == plain_loss
    assert torch.equal(random, plain_random)
    assert len(ours) == len(list(model.parameters()))
    assert_equal_gradients(ours, plain, relative)


def test_the_gradient_under_bf16_is_plain_autograds_within_a_thousandth(plainly: Callable[..., Any]) -> None:
    """The replay rounds to bf16 as the pass did; a stream whose last bit differs may round elsewhere."""
    model, (source, target) = build(), batch()

    def under_autocast() -> tuple[float, Gradients, Tensor]:
        torch.manual_seed(7)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(source, target).float().logsumexp(-1).square().mean()
        loss.backward()  # outside of autocast, as it should be
        return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}, torch.rand(4)

    loss, ours, random = under_autocast()
    plain_loss, plain, plain_random = plainly(under_autocast)
    assert loss == plain_loss
    assert torch.equal(random, plain_random)
    assert_equal_gradients(ours, plain, 1e-3)


@pytest.mark.parametrize("norm", ["instance", "frn"])
def test_norms_over_tokens_are_told_of_the_padding_again(norm: str, plainly: Callable[..., Any]) -> None:
    """Untold, the gradients would differ in every digit."""
    torch.set_default_dtype(torch.float64)
    model, (source, target) = build(norm=norm, allow_unsound=True), batch()
    _, ours, _ = step(model, source, target)
    assert model.encoder.tokens.real is None  # the replay leaves nothing behind
    _, plain, _ = plainly(lambda: step(model, source, target))
    assert_equal_gradients(ours, plain, 1e-9)


def test_the_memory_and_the_embedding_get_their_gradient(plainly: Callable[..., Any]) -> None:
    torch.set_default_dtype(torch.float64)
    decoder, mask = build().decoder, padding_mask(batch()[0])
    x, memory = torch.randn(4, 6, 16, requires_grad=True), torch.randn(4, 7, 16, requires_grad=True)

    def gradients() -> Gradients:
        torch.manual_seed(7)
        found = torch.autograd.grad(decoder(x, memory, mask).square().sum(), [x, memory])
        return dict(zip(("x", "memory"), found, strict=True))

    assert_equal_gradients(gradients(), plainly(gradients), 1e-10)


@pytest.mark.parametrize(
    "frozen", ["embedding", "embedding|norm", r"encoder\.layers", "decoder.*feedforward"]
)
def test_what_is_frozen_changes_nothing_for_the_others(frozen: str, plainly: Callable[..., Any]) -> None:
    torch.set_default_dtype(torch.float64)
    model, (source, target) = build(), batch()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(frozen, name) is None)
    _, ours, _ = step(model, source, target)
    _, plain, _ = plainly(lambda: step(model, source, target))
    assert_equal_gradients(ours, plain, 1e-10)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_the_inputs_found_again_are_those_of_the_pass_after_24_layers(stack: str) -> None:
    flags = {"encoder_layers": 24, "decoder_layers": 24, "d_model": 32}
    model, (source, target) = build(**flags), batch()
    inputs: list[Tensor] = []
    for residual, _ in (model.encoder if stack == "encoder" else model.decoder).sites():
        residual.norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().clone()))
    model(source, target).sum().backward()
    half = len(inputs) // 2
    assert half == 24 * (2 if stack == "encoder" else 3)
    pairs = zip(inputs[:half], inputs[: half - 1 : -1], strict=True)
    error = max((a - b).abs().max() / a.abs().max() for a, b in pairs)
    assert 0 < error <= 1e-5


class Meter(TorchDispatchMode):
    """The most bytes alive at once, of tensors that came into being under it."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id_of(tensor) not in before:
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def id_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_bytes(placement: str, layers: int, stack: str) -> int:
    """Of a forward and backward pass of a stack, without its parameters and their gradients."""
    model = build(
        placement=placement, encoder_layers=layers, decoder_layers=layers, dropout=0.1, attention_dropout=0.0
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    x, mask = torch.randn(16, 40, 16, requires_grad=True), padding_mask(torch.full((16, 40), 5))
    with Meter() as meter:
        if stack == "encoder":
            model.encoder(x, mask).sum().backward()
        else:
            model.decoder(x, torch.randn(16, 40, 16), mask).sum().backward()
    return meter.peak


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_memory_does_not_grow_with_depth(stack: str) -> None:
    """Pre-LN's grows with the depth, which shows that the meter can tell."""
    reversible, pre = (
        [peak_bytes(placement, layers, stack) for layers in (3, 12)] for placement in ("reversible", "pre")
    )
    assert reversible[1] <= 1.3 * reversible[0]
    assert 3.5 * pre[0] < pre[1] < 4.2 * pre[0]
    assert reversible[0] < pre[0]


def test_gradients_accumulate_over_two_passes_in_either_order(plainly: Callable[..., Any]) -> None:
    torch.set_default_dtype(torch.float64)
    model, one, two = build(), batch(), batch()

    def passes(together: bool) -> Gradients:
        torch.manual_seed(7)
        model.zero_grad()
        if together:  # two forward passes before one backward pass
            (model(*one).square().sum() + model(*two).square().sum()).backward()
        else:
            model(*one).square().sum().backward()
            model(*two).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    plain = plainly(lambda: passes(False))
    assert_equal_gradients(passes(False), plain, 1e-10)
    assert_equal_gradients(passes(True), plain, 1e-10)


def test_a_graph_that_is_kept_can_be_run_again() -> None:
    torch.set_default_dtype(torch.float64)
    model = build()
    loss = model(*batch()).square().sum()
    first, second = (torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_second_derivatives_are_refused() -> None:
    model = build()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(model(*batch()).sum(), list(model.parameters()), create_graph=True)


def test_a_step_between_forward_and_backward_is_noticed() -> None:
    model = build()
    loss = model(*batch()).sum()
    with torch.no_grad():
        for parameter in model.decoder.layers.parameters():
            parameter.mul_(0.9)
    with pytest.raises(RuntimeError, match="weight of a reversible stack was changed"):
        loss.backward()


def test_evaluation_between_forward_and_backward_is_noticed() -> None:
    model = build()
    loss = model(*batch()).sum()
    model.eval()
    with pytest.raises(RuntimeError, match="reversible stack was changed"):
        loss.backward()


def test_without_gradients_it_is_the_plain_fold(plainly: Callable[..., Any]) -> None:
    model, (source, target) = build().eval(), batch()
    with torch.no_grad():
        expected = plainly(lambda: model(source, target))
        assert torch.equal(model(source, target), expected)
    assert torch.equal(model(source, target), expected)
    with torch.inference_mode():
        assert torch.equal(model(source, target), expected)


def test_cached_columns_are_the_uncached_ones_whether_or_not_there_are_gradients() -> None:
    torch.set_default_dtype(torch.float64)
    model, (source, target) = build().eval(), batch()
    mask, cache = padding_mask(source), DecoderCache(3, 4)
    memory = model.encode(source)
    steps = [model.decode(target[:, t : t + 1], memory, mask, cache) for t in range(3)]
    expected = model.decode(target[:, :3], memory, mask)
    torch.testing.assert_close(torch.cat(steps, 1), expected)
    assert cache.length == 3
    once = DecoderCache(3, 4)
    model.decode(target[:, :1], memory, mask, once).sum().backward()
    assert once.length == 1  # nothing is appended a second time


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        ("batch", "count every batch twice"),
        ("power", "count every batch twice"),
        ("instance", "statistics of few numbers"),
        ("frn", "statistics of few numbers"),
        ("none", "no norm keeps that from growing"),
    ],
)
def test_norms_that_a_pass_back_cannot_have_are_refused(norm: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build(norm={"encoder": norm, "decoder": "layer"})


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_compiles_as_one_graph_with_the_same_numbers(training: bool) -> None:
    torch.set_default_dtype(torch.float64)
    off = dict.fromkeys(DROPOUTS, 0.0)
    few = {"encoder_layers": 1, "decoder_layers": 2}
    model, (source, target) = build(**off, **few).train(training), batch()
    expected = model(source, target)
    compiled = torch.compile(model, fullgraph=True, backend="eager")(source, target)
    torch.testing.assert_close(compiled, expected)
    a = torch.autograd.grad(compiled.square().sum(), list(model.parameters()))
    b = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    for ours, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-8)

"""The wiring of each placement against its oracle, in float64, forward and gradient."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformer import NORMS, PLACEMENTS, Transformer
from transformer.modules.masks import causal_mask, padding_mask

_spec = importlib.util.spec_from_file_location("oracles", Path(__file__).with_name("oracles.py"))
assert _spec is not None
assert _spec.loader is not None
oracles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracles)

B, S, T, V, N, M = 3, 6, 5, 20, 3, 2


def build(placement: str, **flags: object) -> Transformer:
    torch.set_default_dtype(torch.float64)
    shape = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": N, "decoder_layers": M, "dropout": 0.0}
    model = Transformer(V, V, placement=placement, **{**shape, **flags})
    for parameter in model.parameters():  # gains and biases too: an oracle must see every parameter act
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def batch() -> tuple[Tensor, Tensor]:
    source, target = torch.randint(4, V, (B, S)), torch.randint(4, V, (B, T))
    source[0, 4:], source[1, 5:] = 0, 0
    return source, target


def test_every_placement_has_an_oracle() -> None:
    missing = set(PLACEMENTS) ^ set(oracles.ORACLES) | set(PLACEMENTS) ^ set(oracles.NORM_COUNTS)
    assert not missing, f"no oracle for {sorted(missing)}: write its equation in tests/placements/oracles.py"


def site_norms(residuals: list[nn.Module]) -> list[Any]:
    """The norm of each site; a tuple where the placement owns several, in the order it names them."""
    norms = [tuple(residual.get_submodule(name) for name in residual.norms) for residual in residuals]
    return [owned[0] if len(owned) == 1 else owned for owned in norms]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_stack_equals_the_papers_equation(placement: str, norm: str) -> None:
    model = build(placement, norm=norm)
    source, target = batch()
    mask = padding_mask(source)

    encoder_functions: list[Callable[[Tensor], Tensor]] = []
    for layer in model.encoder.layers:
        encoder_functions += [
            lambda x, a=layer.self_attention: a(x, mask=mask),
            lambda x, f=layer.feedforward: f(x),
        ]
    embedded = model.source_embedding(source).detach().requires_grad_()
    has_final = not isinstance(model.encoder.final_norm, nn.Identity)
    oracle_memory = oracles.ORACLES[placement](
        embedded,
        encoder_functions,
        site_norms([r for r, _ in model.encoder.sites()]),
        model.encoder.final_norm if has_final else None,
        side="encoder",
        n=N,
        m=M,
    )
    memory = model.encoder(embedded, mask)

    memory_leaf = memory.detach().requires_grad_()
    decoder_functions: list[Callable[[Tensor], Tensor]] = []
    for layer in model.decoder.layers:
        decoder_functions += [
            lambda x, a=layer.self_attention: a(x, mask=causal_mask(T)),
            lambda x, a=layer.cross_attention: a(x, memory_leaf, mask),
            lambda x, f=layer.feedforward: f(x),
        ]
    embedded_target = model.target_embedding(target).detach().requires_grad_()
    oracle_hidden = oracles.ORACLES[placement](
        embedded_target,
        decoder_functions,
        site_norms([r for r, _ in model.decoder.sites()]),
        model.decoder.final_norm if has_final else None,
        side="decoder",
        n=N,
        m=M,
    )
    hidden = model.decoder(embedded_target, memory_leaf, mask)

    weights = torch.randn_like(memory), torch.randn_like(hidden)
    for ours, oracle, weight, leaves in (
        (memory, oracle_memory, weights[0], [embedded, *model.encoder.parameters()]),
        (hidden, oracle_hidden, weights[1], [embedded_target, memory_leaf, *model.decoder.parameters()]),
    ):
        scale = oracle.abs().max().item()
        torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12 * scale)
        ours_gradient = torch.autograd.grad((ours * weight).sum() / scale, leaves, retain_graph=True)
        oracle_gradient = torch.autograd.grad((oracle * weight).sum() / scale, leaves)
        for a, b in zip(ours_gradient, oracle_gradient, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_number_of_norms_is_the_papers(placement: str) -> None:
    model = build(placement)
    count = sum(isinstance(module, NORMS["layer"]) for module in model.modules())
    assert count == oracles.NORM_COUNTS[placement](N, M)


def test_placements_are_told_apart_by_the_oracles() -> None:
    """Swapping two placements' oracles would be noticed: their outputs differ on the same weights."""
    source, target = batch()
    outputs = {}
    for placement in PLACEMENTS:
        torch.manual_seed(3)
        outputs[placement] = build(placement, norm="layer_simple")(source, target)
    names = list(outputs)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert (outputs[one] - outputs[other]).abs().max() > 1e-3, (one, other)


def test_deepnorm_constants_for_six_and_six_layers() -> None:
    """Two places from the closed form at N = M = 6, where N^4 M = 6^5."""
    encoder, decoder = (oracles.deepnorm_constants(side, 6, 6) for side in ("encoder", "decoder"))
    assert encoder == pytest.approx((0.81 * 6 ** (5 / 16), 0.87 * 6 ** (-5 / 16)))
    assert decoder == pytest.approx((18**0.25, 72**-0.25))
    model = Transformer(V, V, placement="deepnorm", d_model=16, heads=2, d_ff=16)
    for residual, _ in model.sites():
        expected = encoder if residual.site.stack == "encoder" else decoder
        assert (residual.gains.alpha, residual.gains.beta) == pytest.approx(expected)


def test_decoder_and_encoder_may_differ_in_placement_and_norm() -> None:
    model = build("post", norm="layer", decoder_placement="pre", decoder_norm="rms")
    assert isinstance(model.encoder.final_norm, nn.Identity)
    assert isinstance(model.decoder.final_norm, NORMS["rms"])
    assert {type(r) for r, _ in model.encoder.sites()} == {PLACEMENTS["post"]}
    assert {type(r) for r, _ in model.decoder.sites()} == {PLACEMENTS["pre"]}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_dropout_is_on_the_branchs_output_and_never_on_the_residual(placement: str) -> None:
    """With dropout near 1 a branch that gives 7 acts as one that gives 0: the residual is whole."""
    model = build(placement)
    residual, _ = next(iter(model.encoder.sites()))
    residual.dropout.p = 0.999999  # the sampler rounds to 16 bits: a few in 10^5 would be kept
    residual.train()
    x = torch.randn(2, 3, 16)
    stream = type(residual).open(x)
    dropped = residual(stream, lambda x: torch.full_like(x, 7.0))
    zero = residual.eval()(stream, torch.zeros_like)
    for a, b in zip(dropped, zero, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_branch_gets_its_input_undropped(placement: str) -> None:
    """Training and evaluation hand the branch the same tensor: dropout comes after it."""
    residual, _ = next(iter(build(placement, dropout=0.5).encoder.sites()))
    stream = type(residual).open(torch.randn(2, 3, 16))
    seen: list[Tensor] = []

    def branch(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    residual.train()(stream, branch)
    residual.eval()(stream, branch)
    assert torch.equal(*seen)

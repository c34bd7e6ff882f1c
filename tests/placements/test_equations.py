"""The wiring of each placement against its oracle, in float64, forward and gradient."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from pairs import MATRIX, extras, plan, usual
from placement_oracles import CASES, NORM_COUNTS, ORACLES
from placement_oracles.post import deepnorm_constants
from taking_apart import compare, decoder_of, encoder_of
from torch import Tensor, nn

from transformer import NORMS, PLACEMENTS, Transformer
from transformer.core.signature import options_of
from transformer.modules.masks import padding_mask

B, S, T, V, N, M = 3, 6, 5, 20, 3, 2
HEADS = 2
VARIANTS = [(name, options) for name in PLACEMENTS for options in CASES.get(name, [{}])]


def build(placement: Any, **flags: Any) -> Transformer:
    torch.set_default_dtype(torch.float64)
    shape = {
        "d_model": 16,
        "heads": HEADS,
        "d_ff": 24,
        "encoder_layers": N,
        "decoder_layers": M,
        "dropout": 0.0,
    }
    model = Transformer(V, V, placement=placement, **{"norm": usual(placement), **shape, **flags})
    # Gains and biases too: an oracle must see every parameter act. Where no norm holds the stream,
    # smaller ones keep rounding errors from growing as it does.
    std = 0.2 if flags.get("norm") == "none" else 0.4
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    for name, buffer in model.named_buffers():  # running statistics
        if buffer.is_floating_point() and "positions" not in name:
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model.eval()


def batch() -> tuple[Tensor, Tensor]:
    source, target = torch.randint(4, V, (B, S)), torch.randint(4, V, (B, T))
    source[0, 4:], source[1, 5:] = 0, 0
    return source, target


def test_every_placement_has_an_oracle() -> None:
    missing = (
        set(PLACEMENTS) ^ set(ORACLES) | set(PLACEMENTS) ^ set(NORM_COUNTS) | set(CASES) - set(PLACEMENTS)
    )
    assert not missing, (
        f"no oracle for {sorted(missing)}: write its equation in tests/placements/placement_oracles"
    )


def check(placement: str, model: Transformer, options: dict[str, Any]) -> None:
    source, target = batch()
    mask, real = padding_mask(source), target != 0

    x = torch.randn(B, S, 16, requires_grad=True)
    memory = model.encoder(x, mask)
    apart = encoder_of(model, x, mask, options)
    compare(memory, ORACLES[placement](apart), [x, *model.encoder.parameters()])

    memory = memory.detach().requires_grad_()
    x = torch.randn(B, T, 16, requires_grad=True)
    hidden = model.decoder(x, memory, mask, real=real)
    apart = decoder_of(model, x, memory, mask, real, options)
    compare(hidden, ORACLES[placement](apart), [x, memory, *model.decoder.parameters()])


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_option_of_a_placement_is_tried_with_another_value(placement: str) -> None:
    defaults = dict(options_of(PLACEMENTS[placement])())
    cases = CASES.get(placement, [{}])
    tried = {option for case in cases for option, value in case.items() if value != defaults[option]}
    assert tried == set(defaults)


@pytest.mark.parametrize(("placement", "norm"), MATRIX)
def test_a_stack_equals_the_papers_equation(placement: str, norm: str) -> None:
    given = extras(placement, norm)
    check(placement, build(placement, norm=plan(norm), **given), given.get("placement_options", {}))


@pytest.mark.parametrize(("placement", "options"), [case for case in VARIANTS if case[1]], ids=str)
def test_a_stack_equals_the_papers_equation_with_options(placement: str, options: dict[str, Any]) -> None:
    check(placement, build(placement, placement_options=options), options)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_number_of_norms_is_the_papers(placement: str) -> None:
    model = build(placement)
    count = sum(isinstance(module, NORMS["layer"]) for module in model.modules())
    assert count == NORM_COUNTS[placement](N, M)


def test_no_two_placements_are_the_same_function() -> None:
    """So swapping the oracles of two would be noticed: their models differ on the same weights.

    ReZero's gates, LayerScale's and the like start at what makes them another one's equal; here they are 0.7.
    """
    source, target = batch()
    outputs = {}
    for placement in PLACEMENTS:
        norm = "none" if usual(placement) == "none" else "layer_simple"
        model = build(placement, norm=norm, encoder_layers=4, decoder_layers=4)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                draws = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                matrix = torch.randn(parameter.shape, generator=draws) * 0.4
                parameter.copy_(matrix if parameter.dim() > 1 else torch.full_like(parameter, 0.7))
        outputs[placement] = model(source, target)
    names = list(outputs)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert (outputs[one] - outputs[other]).abs().max() > 1e-3, (one, other)


def test_deepnorm_constants_for_six_and_six_layers() -> None:
    """Two places from the closed form at N = M = 6, where N^4 M = 6^5."""
    encoder, decoder = (deepnorm_constants(side, 6, 6) for side in ("encoder", "decoder"))
    assert encoder == pytest.approx((0.81 * 6 ** (5 / 16), 0.87 * 6 ** (-5 / 16)))
    assert decoder == pytest.approx((18**0.25, 72**-0.25))
    model = Transformer(V, V, placement="deepnorm", d_model=16, heads=2, d_ff=16)
    for residual, _ in model.sites():
        expected = encoder if residual.site.stack == "encoder" else decoder
        assert (residual.gains.alpha, residual.gains.beta) == pytest.approx(expected)


def test_decoder_and_encoder_may_differ_in_placement_and_norm() -> None:
    model = build(
        {"encoder": "post", "decoder": "pre"},
        norm={"encoder": "layer", "decoder": {"final": "rms", "default": "layer_simple"}},
    )
    assert isinstance(model.encoder.final_norm, nn.Identity)
    assert isinstance(model.decoder.final_norm, NORMS["rms"])
    assert {type(r) for r, _ in model.encoder.sites()} == {PLACEMENTS["post"]}
    assert {type(r) for r, _ in model.decoder.sites()} == {PLACEMENTS["pre"]}
    assert {type(r.norm) for r, _ in model.decoder.sites()} == {NORMS["layer_simple"]}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_dropout_is_on_the_branchs_output_and_never_on_the_residual(placement: str) -> None:
    """With dropout near 1 a branch that gives numbers acts as one that gives 0: the residual is whole.

    The norm has no bias, so that a norm behind the branch, before its dropout or after, makes 0 of 0.
    """
    model = build(placement, norm="none" if usual(placement) == "none" else "layer_simple")
    for residual, _ in list(model.encoder.sites())[:2]:
        residual.dropout.p = 0.999999
        residual.train()
        stream = residual.open(torch.randn(2, 3, 16))
        dropped = residual(stream, torch.randn_like)
        zero = residual.eval()(stream, torch.zeros_like)
        for a, b in zip(dropped, zero, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_branch_gets_its_input_undropped(placement: str) -> None:
    """Training and evaluation hand the branch the same tensor: dropout comes after it."""
    residual, _ = next(iter(build(placement, dropout=0.5).encoder.sites()))
    stream = residual.open(torch.randn(2, 3, 16))
    seen: list[Tensor] = []

    def branch(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    residual.train()(stream, branch)
    residual.eval()(stream, branch)
    assert torch.equal(*seen)

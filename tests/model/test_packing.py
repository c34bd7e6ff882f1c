"""A model laid out for inference computes what the model computes."""

from __future__ import annotations

import copy

import pytest
import torch
from pairs import usual
from torch import nn

from transformer import PLACEMENTS, Transformer
from transformer.decoding.config import DecodeConfig
from transformer.decoding.engine import Models, Request
from transformer.decoding.limits import Limits
from transformer.model.packing import LaidOut, can_be_laid_out
from transformer.modules.packed import PackedLinear, PackedProducts, has_packed_products

pytestmark = pytest.mark.skipif(not has_packed_products(), reason="this torch has no packed products")
SHAPE = {"d_model": 32, "heads": 2, "d_ff": 48, "encoder_layers": 1, "decoder_layers": 2}


def model(seed: int = 0, **flags: object) -> Transformer:
    made = Transformer(50, 50, **{**SHAPE, **flags})
    draws = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2, generator=draws)
    return made.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_is_the_product(dtype: torch.dtype, tolerance: float, bias: bool) -> None:
    linear, x = nn.Linear(24, 40, bias=bias), torch.randn(3, 5, 24)
    with torch.inference_mode():
        ours = PackedLinear(linear, PackedProducts(linear.parameters(), dtype))(x)
        torch.testing.assert_close(ours.float(), linear(x), atol=tolerance, rtol=tolerance)


def test_a_row_of_a_packed_product_does_not_depend_on_which_others_there_are() -> None:
    linear, x = nn.Linear(64, 200), torch.randn(90, 64)
    with torch.inference_mode():
        product = PackedLinear(linear, PackedProducts(linear.parameters(), torch.float32))
        whole = product(x)
        assert all(torch.equal(product(x[:n]), whole[:n]) for n in (2, 7, 33))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_is_the_same_laid_out(placement: str) -> None:
    _equal(model(placement=placement, norm=usual(placement)))


@pytest.mark.parametrize(
    "flags",
    [
        {"tie_embeddings": "none"},
        {"tie_embeddings": "target_output", "fix_norm": True},
        {"activation": "swiglu", "qk_norm": "rms"},
        {"activation": "tlu", "norm": "frn", "qk_norm": "l2"},
        {"encoder_layers": 0},
    ],
)
def test_so_are_other_parts(flags: dict[str, object]) -> None:
    _equal(model(**flags))


def _equal(plain: Transformer) -> None:
    source, target = torch.randint(4, 50, (4, 6)), torch.randint(4, 50, (4, 7))
    source[1, 4:], source[3, 2:] = 0, 0
    with torch.inference_mode():
        ours = LaidOut(plain, torch.float32).model(source, target)
        torch.testing.assert_close(ours, plain(source, target), atol=1e-4, rtol=1e-4)


def test_it_shares_parameters_and_follows_their_changes() -> None:
    plain = model()
    engine = Models([plain], "float32")
    requests = [Request(0, [5, 6, 7], Limits(8)), Request(1, [9, 4], Limits(8))]

    def found() -> object:
        with engine.working():
            return engine.search(requests, DecodeConfig(beam=3))

    first = found()
    assert found() == first
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    changed = found()
    assert changed != first
    fresh = Models([copy.deepcopy(plain)], "float32")
    with fresh.working():
        assert changed == fresh.search(requests, DecodeConfig(beam=3))
    laid_out = LaidOut(plain, torch.bfloat16)
    assert {id(p) for p in laid_out.model.parameters()} == {id(p) for p in plain.parameters()}
    assert plain.packed is None


def test_other_number_formats_stay_as_they_are() -> None:
    assert can_be_laid_out(model())
    assert not can_be_laid_out(model().double())

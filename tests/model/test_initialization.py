"""Initial values: the variance the papers state, and arms that start from the same numbers."""

from __future__ import annotations

import math

import pytest
import torch

from transformer import PLACEMENTS, Transformer
from transformer.modules.attention import MultiHeadAttention

SHAPE = {"d_model": 96, "heads": 4, "d_ff": 192, "encoder_layers": 3, "decoder_layers": 2}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_matrices_have_xaviers_variance_times_the_placements_gain(placement: str) -> None:
    model = Transformer(300, 300, placement=placement, **SHAPE)
    for residual, sublayer in model.sites():
        beta = residual.gains.beta
        matrices = {name: m for name, m in sublayer.named_modules() if isinstance(m, torch.nn.Linear)}
        for name, linear in matrices.items():
            plain = isinstance(sublayer, MultiHeadAttention) and name in ("query", "key")
            gain = 1.0 if plain else beta
            expected = gain**2 * 2 / (linear.in_features + linear.out_features)
            assert linear.weight.var().item() == pytest.approx(expected, rel=0.06), (residual.site, name)
            assert linear.weight.abs().max().item() <= math.sqrt(
                3 * expected
            )  # uniform: the bound is sqrt(3) std
            assert linear.weight.abs().max().item() > 0.98 * math.sqrt(3 * expected)
            assert linear.bias.eq(0).all()


def test_embeddings_have_variance_one_over_d_and_an_empty_pad_row() -> None:
    model = Transformer(500, 700, tie_embeddings="none", **SHAPE)
    for table in (model.source_embedding.tokens.weight, model.target_embedding.tokens.weight):
        assert table[1:].var().item() == pytest.approx(1 / 96, rel=0.03)
        assert table[0].eq(0).all()
    assert model.output_weight.var().item() == pytest.approx(1 / 96, rel=0.03)


def test_arms_that_differ_in_placement_or_norm_start_from_the_same_numbers() -> None:
    base = dict(Transformer(100, 100, placement="post", norm="layer", seed=5, **SHAPE).named_parameters())
    for flags in ({"placement": "pre"}, {"norm": "rms"}, {"placement": "resi_dual", "norm": "none"}):
        arm = Transformer(100, 100, seed=5, **{**SHAPE, **flags})
        for name, parameter in arm.named_parameters():
            if name in base:
                assert torch.equal(parameter, base[name]), name
        assert sum(name in base for name, _ in arm.named_parameters()) > 60


def test_another_seed_gives_other_numbers_and_the_same_seed_the_same() -> None:
    one, same, other = (Transformer(50, 50, seed=s, **SHAPE) for s in (1, 1, 2))
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if a.dim() == 2:
            assert not torch.equal(a, c), name


def test_learned_positions_have_variance_one_over_d_and_follow_the_seed() -> None:
    flags = {**SHAPE, "positions": "learned", "max_length": 300}
    one, two = (Transformer(20, 20, seed=3, **flags).source_embedding.positions.weight for _ in range(2))
    assert torch.equal(one, two)
    assert one.var().item() == pytest.approx(1 / 96, rel=0.05)


def test_initial_values_do_not_depend_on_what_was_drawn_before() -> None:
    torch.manual_seed(0)
    one = Transformer(50, 50, **SHAPE)
    torch.rand(17)
    two = Transformer(50, 50, **SHAPE)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))

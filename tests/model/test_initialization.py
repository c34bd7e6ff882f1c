"""Initial values: the variance the papers state, and arms that start from the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from transformer import PLACEMENTS, Transformer

SHAPE = {"d_model": 96, "heads": 4, "d_ff": 192, "encoder_layers": 3, "decoder_layers": 2}
WITHOUT_NORM = ("rezero", "fixup", "tfixup")

Gain = Callable[[str, str, int, int], dict[str, float]]
ATTENTION, FEEDFORWARD = ("query", "key", "value", "output"), ("hidden", "output")


def plain(side: str, kind: str, n: int, m: int) -> dict[str, float]:
    """Xavier as it is; `kind` is self, cross or ffn."""
    return dict.fromkeys(FEEDFORWARD if kind == "ffn" else ATTENTION, 1.0)


def values(kind: str, gain: float) -> dict[str, float]:
    """Query and key as they are, the path of the values with a gain."""
    names = FEEDFORWARD if kind == "ffn" else ("value", "output")
    return plain("", kind, 0, 0) | dict.fromkeys(names, gain)


def deepnorm(side: str, kind: str, n: int, m: int) -> dict[str, float]:
    power = n * n * n * n * m
    return values(kind, 0.87 / power**0.0625 if side == "encoder" else 1 / (12 * m) ** 0.25)


def sub_ln(side: str, kind: str, n: int, m: int) -> dict[str, float]:
    if kind == "cross":
        return plain(side, kind, n, m)
    gain = math.sqrt(math.log(3 * m) * math.log(2 * n) / 3 if side == "encoder" else math.log(3 * m))
    return values(kind, gain)


def fixup(side: str, kind: str, n: int, m: int) -> dict[str, float]:
    branches = n + n + m + m + m
    if kind == "ffn":
        return {"hidden": 1 / math.sqrt(branches), "output": 0.0}
    return dict.fromkeys(("query", "key", "value"), 1 / branches ** (1 / 6)) | {"output": 0.0}


def tfixup(side: str, kind: str, n: int, m: int) -> dict[str, float]:
    return values(kind, 0.67 / math.sqrt(math.sqrt(n)) if side == "encoder" else 1 / math.sqrt(3 * m**0.5))


def released_b2t(side: str, kind: str, n: int, m: int) -> dict[str, float]:
    layers = n if side == "encoder" else m
    return {name: 1 / math.sqrt(layers) for name in plain(side, kind, n, m)}


GAINS: dict[str, Gain] = {
    "post": plain,
    "pre": plain,
    "sandwich": plain,
    "peri": plain,
    "res_post": plain,
    "normformer": plain,
    "hybrid": plain,
    "sub_ln": sub_ln,
    "layerscale": plain,
    "lns": plain,
    "mix": plain,
    "deepnorm": deepnorm,
    "admin": plain,
    "b2t": plain,
    "keel": plain,
    "rskip": plain,
    "xskip": plain,
    "resi_dual": plain,
    "reversible": plain,
    "hyper": plain,
    "rezero": plain,
    "fixup": fixup,
    "tfixup": tfixup,
}


def build(placement: str, **flags: Any) -> Transformer:
    norm = "none" if placement in WITHOUT_NORM else "layer"
    return Transformer(300, 300, placement=placement, norm=norm, **{**SHAPE, **flags})


def check_matrices(model: Transformer, gains: Gain, n: int, m: int) -> None:
    """Each matrix is uniform, with the bound gain * sqrt(6 / (fan_in + fan_out)); biases are 0."""
    checked = 0
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        kinds = ("self", "ffn") if side == "encoder" else ("self", "cross", "ffn")
        for i, (_, sublayer) in enumerate(stack.sites()):
            kind = kinds[i % len(kinds)]
            expected = gains(side, kind, n, m)
            linears = {k: v for k, v in sublayer.named_children() if isinstance(v, torch.nn.Linear)}
            assert linears.keys() == expected.keys()
            for name, linear in linears.items():
                bound = expected[name] * math.sqrt(6 / (linear.in_features + linear.out_features))
                where = (side, i, name)
                assert linear.weight.var().item() == pytest.approx(bound**2 / 3, rel=0.06), where
                assert 0.98 * bound <= linear.weight.abs().max().item() <= bound * (1 + 1e-6), where
                assert linear.bias is None or not linear.bias.any(), where
                checked += 1
    assert checked == n * 6 + m * 10


def test_every_placements_gains_are_known_here() -> None:
    assert set(GAINS) == set(PLACEMENTS), "write the paper's initial gains of each placement into GAINS"


@pytest.mark.parametrize(
    ("n", "m"),
    [pytest.param(2, 2, marks=pytest.mark.slow), pytest.param(6, 6, marks=pytest.mark.slow), (3, 5)],
)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_matrices_have_xaviers_variance_times_the_placements_gain(placement: str, n: int, m: int) -> None:
    check_matrices(build(placement, encoder_layers=n, decoder_layers=m), GAINS[placement], n, m)


def test_b2ts_rescaling_is_the_releases() -> None:
    model = build("b2t", encoder_layers=3, decoder_layers=5, placement_options={"rescale": True})
    check_matrices(model, released_b2t, 3, 5)


def test_tfixups_gains_are_those_of_six_layers() -> None:
    """Two numbers computed by hand: 0.67 / 6^(1/4) and 54^(-1/4)."""
    assert tfixup("encoder", "ffn", 6, 6)["hidden"] == pytest.approx(0.42809, abs=1e-5)
    assert tfixup("decoder", "cross", 6, 6)["value"] == pytest.approx(0.36889, abs=1e-5)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_gate_starts_without_a_gain(placement: str) -> None:
    """It multiplies the hidden layer, which has the gain already."""
    for _, sublayer in build(placement, activation="swiglu", decoder_layers=1).sites():
        for name, linear in sublayer.named_children():
            if name == "gate":
                assert linear.weight.var().item() == pytest.approx(2 / (96 + 192), rel=0.06)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("tying", ["none", "source_target", "target_output", "all"])
def test_embeddings_have_the_placements_gain_and_the_output_its_own(placement: str, tying: str) -> None:
    """T-Fixup alone has one: (9N)^(-1/4) and (9M)^(-1/4). A table shared by both sides has the source's."""
    scaled = placement == "tfixup"
    source = (9 * 3) ** -0.25 if scaled else 1.0
    target = (9 * 2) ** -0.25 if scaled else 1.0
    target = source if tying in ("source_target", "all") else target
    output = target if tying in ("target_output", "all") else 1.0
    model = build(placement, tie_embeddings=tying)
    for table, gain in (
        (model.source_embedding.tokens.weight, source),
        (model.target_embedding.tokens.weight, target),
        (model.output_weight, output),
    ):
        assert table[1:].var().item() == pytest.approx(gain**2 / 96, rel=0.03)


def test_without_encoder_layers_a_shared_table_has_the_decoders_gain() -> None:
    table = build("tfixup", encoder_layers=0, tie_embeddings="all").output_weight
    assert table[1:].var().item() == pytest.approx((9 * 2) ** -0.5 / 96, rel=0.03)


def test_stacks_of_two_placements_each_have_the_gains_of_their_own() -> None:
    model = Transformer(300, 300, placement={"encoder": "tfixup", "decoder": "post"}, **SHAPE)
    assert model.source_embedding.tokens.weight[1:].var().item() == pytest.approx(27**-0.5 / 96, rel=0.03)
    assert model.target_embedding.tokens.weight[1:].var().item() == pytest.approx(1 / 96, rel=0.03)
    check_matrices(model, lambda side, *rest: (tfixup if side == "encoder" else plain)(side, *rest), 3, 2)


def test_embeddings_have_variance_one_over_d_and_an_empty_pad_row() -> None:
    model = Transformer(500, 700, tie_embeddings="none", **SHAPE)
    for table in (model.source_embedding.tokens.weight, model.target_embedding.tokens.weight):
        assert table[1:].var().item() == pytest.approx(1 / 96, rel=0.03)
        assert table[0].eq(0).all()
    assert model.output_weight.var().item() == pytest.approx(1 / 96, rel=0.03)


def test_arms_that_differ_in_placement_or_norm_start_from_the_same_numbers() -> None:
    base = dict(Transformer(100, 100, placement="post", norm="layer", seed=5, **SHAPE).named_parameters())
    for flags in ({"placement": "pre", "norm": "none"}, {"norm": "rms"}, {"placement": "resi_dual"}):
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

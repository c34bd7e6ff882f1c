"""Folding: the plain Transformer, run by plain numpy, is the model; what is none is refused with its name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from transformer import NORMS, PLACEMENTS, Transformer
from transformer.core.errors import ConfigError
from transformer.core.special import BOS, EOS
from transformer.export.folding import fold
from transformer.export.plain import (
    Linear,
    PlainAttention,
    PlainNorm,
    PlainSite,
    PlainStack,
    PlainTransformer,
)
from transformer.model.pairing import normless
from transformer.modules.folded import Wiring

V, ROWS = 19, 12
SERVED = ("post", "deepnorm", "admin", "xskip", "pre", "layerscale", "lns", "mix", "sandwich", "peri")
SERVED_NORMS = ("layer", "layer_simple", "rms", "scale", "detach")
FLAGS: list[dict[str, Any]] = [
    {"placement": "mix", "placement_options": {"share": 0}, "norm": "rms"},
    {"placement": "mix", "placement_options": {"share": 1}},
    {"placement": "rskip", "placement_options": {"times": 1}},
    {"norm": "group", "norm_options": {"groups": 1}},
    {"norm": "prms", "norm_options": {"p": 1.0}},
    {"placement": "admin", "embedding_norm": True, "norm": "rms"},
    {"placement": "admin", "tie_embeddings": "all", "fix_norm": True},
    {"placement": "deepnorm", "positions": "learned", "max_length": 9, "tie_embeddings": "none"},
    {"placement": {"encoder": "deepnorm", "decoder": "sandwich"}},
    {"placement": {"encoder": {"1": "pre", "default": "layerscale"}, "decoder": "post"}},
    {"norm": {"encoder": "rms", "decoder": "layer"}},
    *({"placement": "admin", "activation": name} for name in ("gelu", "swiglu", "tlu")),
]


def model_of(**flags: Any) -> Transformer:
    """A small model in float64 whose every parameter has moved: a fold that is forgotten shows."""
    shape = {"d_model": 12, "heads": 2, "d_ff": 20, "encoder_layers": 2, "decoder_layers": 3, "dropout": 0.0}
    model = Transformer(V, V, **{**shape, **flags}).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() < 2 else 0.1
            parameter += spread * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def layer_norm(norm: PlainNorm | None, x: np.ndarray, eps: float) -> np.ndarray:
    if norm is None:
        return x
    x = x - x.mean(-1, keepdims=True) if norm.centred else x
    y = norm.gain * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return y if norm.bias is None else y + norm.bias


def apply(matrix: Linear, x: np.ndarray) -> np.ndarray:
    return x @ matrix.weight.T + matrix.bias


def activated(name: str, x: np.ndarray) -> np.ndarray:
    if name == "relu":
        return np.maximum(x, 0)
    return x * np.vectorize(
        (lambda v: (1 + math.erf(v / math.sqrt(2))) / 2)
        if name == "gelu"
        else (lambda v: 1 / (1 + math.exp(-v)))
    )(x)


def branch(site: PlainSite, x: np.ndarray, memory: np.ndarray | None, causal: bool, heads: int) -> np.ndarray:
    f = site.branch
    if not isinstance(f, PlainAttention):
        hidden = apply(f.hidden, x)
        hidden = activated(f.activation, hidden) if f.gate is None else hidden * activated(
            f.activation, apply(f.gate, x)
        )  # fmt: skip
        return apply(f.output, hidden)
    read = memory if f.of_memory and memory is not None else x
    query, key, value = apply(f.query, x), apply(f.key, read), apply(f.value, read)
    width = x.shape[-1] // heads
    joined = []
    for h in range(heads):
        q, k, v = (each[:, h * width : (h + 1) * width] for each in (query, key, value))
        logits = q @ k.T / math.sqrt(width)
        if causal and not f.of_memory:
            logits = np.where(np.tril(np.ones_like(logits)) > 0, logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        joined.append(weights / weights.sum(-1, keepdims=True) @ v)
    return apply(f.output, np.concatenate(joined, -1))


def climb(
    stack: PlainStack, plain: PlainTransformer, ids: list[int], memory: np.ndarray | None = None
) -> np.ndarray:
    x = layer_norm(stack.embedding_norm, stack.table[ids] + stack.positions[: len(ids)], plain.eps)
    for site in stack.sites:
        norms = [lambda y, n=n: layer_norm(n, y, plain.eps) for n in site.norms]
        f = lambda y, s=site: branch(s, y, memory, memory is not None, plain.heads)  # noqa: E731
        if stack.wiring is Wiring.POST:
            x = norms[0](x + f(x))
        elif stack.wiring is Wiring.PRE:
            x = x + f(norms[0](x))
        else:
            x = x + norms[1](f(norms[0](x)))
    return layer_norm(stack.final_norm, x, plain.eps)


def check(model: Transformer) -> PlainTransformer:
    plain = fold(model, ROWS)
    source, target = [4, 9, 4, 17, 6, EOS], [BOS, 5, 5, 18, 11]
    logits = climb(plain.decoder, plain, target, climb(plain.encoder, plain, source)) @ plain.output.T
    with torch.no_grad():
        expected = model(torch.tensor([source]), torch.tensor([target]))[0].numpy()
    assert np.abs(logits - expected).max() < 1e-6
    return plain


def reasons(model: Transformer) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        fold(model, ROWS)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("norm", ["layer", "rms", "scale"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_is_folded_exactly_or_refused_by_name(placement: str, norm: str) -> None:
    model = model_of(placement=placement, **({} if normless(placement) else {"norm": norm}))
    if placement in SERVED:
        check(model)
    else:
        assert all(f"model.placement: {placement}, " in reason for reason in reasons(model))


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_is_folded_exactly_or_refused_by_name(norm: str) -> None:
    model = model_of(norm={"encoder": norm, "decoder": norm if NORMS[norm].span != "batch" else "layer"},
                     allow_unsound=True)  # fmt: skip
    if norm in SERVED_NORMS:
        check(model)
    else:
        assert any(f"model.norm: {norm}, " in reason for reason in reasons(model))


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_what_instances_and_flags_make_servable_is_folded_exactly(flags: dict[str, Any]) -> None:
    check(model_of(**flags))


def test_learned_positions_keep_their_rows_and_formulas_get_as_many_as_asked() -> None:
    assert len(fold(model_of(positions="learned", max_length=9), ROWS).encoder.positions) == 9
    assert len(fold(model_of(), ROWS).encoder.positions) == ROWS


def test_all_reasons_are_told_at_once() -> None:
    plan = {"encoder": {"1": "post", "default": "pre"}, "decoder": "b2t"}
    model = model_of(
        placement=plan, norm={"encoder": "layer", "decoder": "ada"}, qk_norm="rms", attention_window=3
    )
    found = "\n".join(reasons(model))
    for words in (
        "model.attention_window: ",
        "model.qk_norm: ",
        "all layers of the encoder have to be wired alike",
        "model.placement: b2t, ",
        "model.norm: ada, ",
    ):
        assert words in found
    assert len(found.splitlines()) == 5


def test_norms_with_and_without_an_eps_are_not_served_together() -> None:
    assert reasons(model_of(norm={"encoder": "layer", "decoder": "scale"})) == [
        "model.norm_eps: all norms have to share one eps, these have 1e-05 and none"
    ]


def test_a_stack_without_layers_is_refused() -> None:
    assert "model.encoder_layers" in reasons(model_of(encoder_layers=0))[0]


def test_a_residual_of_nothing_cannot_be_divided_by() -> None:
    model = model_of(placement="admin")
    with torch.no_grad():
        model.decoder.residuals(1)[0].omega[3] = 0.0
    assert "factor is 0" in reasons(model)[0]


def test_a_residual_of_nothing_is_told_beside_other_reasons() -> None:
    model = model_of(placement="admin", attention_window=3)
    with torch.no_grad():
        for site, _ in model.sites():
            site.omega[3] = 0.0
    window, factor = reasons(model)
    assert window.startswith("model.attention_window: ")
    assert "factor is 0" in factor

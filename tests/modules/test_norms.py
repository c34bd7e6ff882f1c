"""Each norm against its formula, written out; an oracle is required for every registered norm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from transformer import NORMS

D = 12


def layer(x: Tensor, p: dict[str, Tensor], eps: float) -> Tensor:
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return p.get("weight", torch.tensor(1.0)) * (x - mean) / (variance + eps) ** 0.5 + p.get(
        "bias", torch.tensor(0.0)
    )


def rms(x: Tensor, p: dict[str, Tensor], eps: float) -> Tensor:
    return p["weight"] * x / ((x**2).sum(-1, keepdim=True) / x.shape[-1] + eps) ** 0.5


ORACLES: dict[str, Callable[[Tensor, dict[str, Tensor], float], Tensor]] = {
    "layer": layer,
    "layer_simple": layer,
    "rms": rms,
    "none": lambda x, p, eps: x,
}
PARAMETERS = {"layer": {"weight", "bias"}, "layer_simple": set(), "rms": {"weight"}, "none": set()}


def test_every_norm_has_an_oracle() -> None:
    missing = set(NORMS) ^ set(ORACLES) | set(NORMS) ^ set(PARAMETERS)
    assert not missing, f"no oracle for {sorted(missing)}: write its formula in {__file__}"


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_equals_its_formula_forward_and_backward(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    norm = NORMS[name](D, 1e-3)
    parameters = dict(norm.named_parameters())
    assert set(parameters) == PARAMETERS[name]
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter)
    x = (3 * torch.randn(4, 5, D) + 2).requires_grad_()
    upstream = torch.randn(4, 5, D)

    outputs = []
    for y in (norm(x), ORACLES[name](x, parameters, 1e-3)):
        gradients = torch.autograd.grad(y, [x, *parameters.values()], upstream)
        outputs.append([y, *gradients])
    for ours, oracle in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_statistics_are_float32_for_a_bf16_input(name: str) -> None:
    norm = NORMS[name](D)
    x = torch.randn(3, D).bfloat16()
    if name == "none":
        assert torch.equal(norm(x), x)
        return
    x = (x.float() + 300).bfloat16()  # far from zero, bf16 statistics would lose the variance
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, norm(x.float()).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_looks_at_one_token_only(name: str) -> None:
    norm = NORMS[name](D)
    x = torch.randn(2, 6, D)
    changed = x.clone()
    changed[0, 3] += 5.0
    difference = (norm(x) - norm(changed)).abs().sum(-1)
    untouched = torch.ones(2, 6, dtype=torch.bool)
    untouched[0, 3] = False
    assert difference[untouched].eq(0).all()
    assert difference[0, 3] > 0

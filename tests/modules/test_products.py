"""Products while training: oneDNN's are torch's, to rounding, and their derivatives too."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from transformer.modules import products
from transformer.modules.products import Linear, has_onednn, linear, multiply

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch has no such kernel here")


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products count as large ones."""
    monkeypatch.setattr(products, "_LARGE", 1)


def used(result: torch.Tensor) -> bool:
    """Is there a product of oneDNN's behind it?"""
    behind = [result.grad_fn]
    for node in behind:
        behind += [each for each, _ in getattr(node, "next_functions", ())]
    return any("_Product" in type(node).__name__ for node in behind)


def leaves(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@needs_onednn
@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("biased", [True, False])
def test_results_and_gradients_are_torch_s(biased: bool) -> None:
    x, weight, bias = leaves((3, 5, 7), (11, 7), (11,))
    arguments = (x, weight, bias) if biased else (x, weight)
    ours, theirs = linear(*arguments), F.linear(*arguments)
    assert used(ours)
    assert not used(theirs)
    torch.testing.assert_close(ours, theirs)
    weighting = torch.randn_like(theirs)
    got = torch.autograd.grad((ours * weighting).sum(), arguments)
    torch.testing.assert_close(got, torch.autograd.grad((theirs * weighting).sum(), arguments))


@needs_onednn
@pytest.mark.usefixtures("everything")
def test_second_derivatives_are_torch_s() -> None:
    x, weight = leaves((4, 6), (5, 6))
    found = []
    for product in (linear, F.linear):
        (first,) = torch.autograd.grad(product(x, weight).pow(3).sum(), weight, create_graph=True)
        found.append(torch.autograd.grad(first.pow(2).sum(), (x, weight)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.usefixtures("everything")
def test_transposed_views_are_multiplied_as_they_are() -> None:
    one, other = torch.randn(9, 4), torch.randn(9, 6)
    torch.testing.assert_close(multiply(one.T, other.T), one.T @ other)


@needs_onednn
def test_only_large_products_of_training_are_onednn_s() -> None:
    x, weight = torch.randn(2048, 64), torch.randn(64, 64, requires_grad=True)
    assert used(linear(x, weight))
    assert not used(linear(x[:8], weight))
    with torch.no_grad():
        assert torch.equal(linear(x, weight)[:8], F.linear(x, weight)[:8]), (
            "no row depends on those beside it"
        )
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16


def test_other_numbers_are_left_to_torch() -> None:
    layer = Linear(64, 4096).double()
    x = torch.randn(64, 64, dtype=torch.float64)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert isinstance(layer, torch.nn.Linear)


@needs_onednn
def test_the_same_twice() -> None:
    x, weight = torch.randn(4096, 256), torch.randn(256, 256)
    assert torch.equal(multiply(x, weight), multiply(x.clone(), weight.clone()))

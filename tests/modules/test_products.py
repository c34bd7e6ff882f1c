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
    """Small products count as large ones, on every processor."""
    monkeypatch.setattr(products, "_LARGE", 1)
    monkeypatch.setattr(products, "_prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "has_tiles", lambda: True)


def used(result: torch.Tensor) -> bool:
    """Is there a product of `multiply`'s behind it?"""
    behind = [result.grad_fn]
    for node in behind:
        behind += [each for each, _ in getattr(node, "next_functions", ())]
    return any("_Product" in type(node).__name__ for node in behind)


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


@needs_onednn
@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("rows", [(3, 5), (1, 32), (10, 7), (3, 200), (4, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_results_and_gradients_are_torch_s(biased: bool, dtype: torch.dtype, rows: tuple[int, int]) -> None:
    """Against float64: the second rounding of a sum of two parts is all that bf16 adds to torch's."""
    x, weight, bias = leaves((*rows, 7), (11, 7), (11,), dtype=dtype)
    arguments = (x, weight, bias) if biased else (x, weight)
    exact = [argument.detach().double().requires_grad_() for argument in arguments]
    ours, theirs, truth = linear(*arguments), F.linear(*arguments), F.linear(*exact)
    assert used(ours)
    assert not used(theirs)
    near = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(ours.double(), truth, rtol=near, atol=near)
    weighting = torch.randn_like(theirs)
    got = torch.autograd.grad((ours * weighting).sum(), arguments)
    wanted = torch.autograd.grad((truth * weighting).sum(), exact)
    for one, other in zip(got, wanted, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=near, atol=near * scale)


@needs_onednn
@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_derivatives_are_torch_s(dtype: torch.dtype) -> None:
    x, weight = leaves((37, 6), (5, 6), dtype=dtype)
    found = []
    for product in (linear, F.linear):
        (first,) = torch.autograd.grad(product(x, weight).pow(3).sum(), weight, create_graph=True)
        found.append(torch.autograd.grad(first.pow(2).sum(), (x, weight)))
    near = {torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=near, atol=near * float(other.abs().max()))


@needs_onednn
@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("varying", [None, products.ROWS, products.INNER, products.OUT])
@pytest.mark.parametrize("extents", [(9, 4, 6), (300, 4, 6), (9, 300, 6), (9, 4, 300), (32, 64, 96)])
def test_whatever_varies_the_product_is_the_same(varying: int | None, extents: tuple[int, int, int]) -> None:
    rows, inner, out = extents
    one, other = torch.randn(rows, inner).bfloat16(), torch.randn(out, inner).bfloat16()
    exact = one.double() @ other.double().T
    for x, weight in ((one, other), (one.T.contiguous().T, other.T.contiguous().T)):
        made = multiply(x, weight, varying)
        assert made.shape == exact.shape
        torch.testing.assert_close(made.double(), exact, rtol=2**-7, atol=2**-7 * float(exact.abs().max()))


@needs_onednn
@pytest.mark.usefixtures("everything")
def test_batches_of_many_sizes_make_products_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `mm` is called with: of 100 sizes at most sixteen for the whole part, and one for the rest."""
    sizes: set[tuple[int, ...]] = set()

    def noted(x: torch.Tensor, weight: torch.Tensor, **_: object) -> torch.Tensor:
        sizes.add((*x.shape, *weight.shape))
        return torch.empty(len(x), weight.shape[1])

    monkeypatch.setattr(torch, "mm", noted)
    weight = torch.randn(8, 16).bfloat16()
    for rows in range(2049, 4096, 20):
        multiply(torch.randn(rows, 16).bfloat16(), weight, products.ROWS)
    assert len(sizes) <= 9
    assert all(rows % 256 == 0 for rows, *_ in sizes)


@needs_onednn
@pytest.mark.usefixtures("everything")
def test_transposed_views_are_multiplied_as_they_are() -> None:
    one, other = torch.randn(9, 4), torch.randn(9, 6)
    torch.testing.assert_close(multiply(one.T, other.T), one.T @ other)


@needs_onednn
@pytest.mark.parametrize("tiles", [True, False])
def test_only_large_products_of_training_are_onednn_s(tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_prefers_onednn", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(products, "has_tiles", products.has_tiles.__wrapped__)
    x, weight = torch.randn(2048, 64), torch.randn(64, 64, requires_grad=True)
    assert used(linear(x, weight))
    assert not used(linear(x[:8], weight))
    with torch.no_grad():
        assert torch.equal(linear(x, weight)[:8], F.linear(x, weight)[:8]), (
            "no row depends on those beside it"
        )
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
        assert linear(x, weight, torch.ones(64)).dtype == torch.bfloat16
        assert used(linear(x, weight)) == tiles, "in bf16 only AMX's kernels take long to make"


@needs_onednn
@pytest.mark.parametrize(
    ("maker", "vectors", "expected"),
    [
        ("GenuineIntel Xeon", "AVX512", False),
        ("AuthenticAMD EPYC", "AVX512", True),
        ("AuthenticAMD EPYC", "AVX2", False),
    ],
)
def test_float32_is_left_to_torch_where_its_library_is_fast(
    maker: str, vectors: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = torch.randn(2048, 64), torch.randn(64, 64, requires_grad=True)
    monkeypatch.setattr(products, "processor", lambda: maker)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    monkeypatch.setattr(products, "_prefers_onednn", products._prefers_onednn.__wrapped__)
    assert used(linear(x, weight)) == expected


def test_other_numbers_are_left_to_torch() -> None:
    layer = Linear(64, 4096).double()
    x = torch.randn(64, 64, dtype=torch.float64)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert isinstance(layer, torch.nn.Linear)


@needs_onednn
def test_the_same_twice() -> None:
    x, weight = torch.randn(4096, 256), torch.randn(256, 256)
    assert torch.equal(multiply(x, weight), multiply(x.clone(), weight.clone()))

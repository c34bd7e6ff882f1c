"""Products of 8-bit integers are what rounding both factors makes of the product, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from transformer import Transformer
from transformer.core.errors import ConfigError
from transformer.decoding import engine
from transformer.modules.int8 import has_int8, int8_product, rounded
from transformer.modules.packed import PackedLinear, PackedProducts

needed = pytest.mark.skipif(not has_int8(), reason="this torch has no such product here")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * 10 ** torch.randn(
        *shape[:-1], 1, generator=generator
    )  # rows of very different sizes


@needed
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_the_rounded_numbers(bias: bool) -> None:
    x, weight, shift = drawn(7, 24), drawn(40, 24, seed=1), torch.randn(40) if bias else None
    ours = int8_product(weight, shift)(x.view(1, 7, 24))
    xs, ws = (m.abs().amax(1, keepdim=True).numpy().astype(np.float64) / 127 for m in (x, weight))
    whole = [np.rint(m.numpy() / s).astype(np.int64) for m, s in ((x, xs), (weight, ws))]
    expected = (whole[0] @ whole[1].T) * xs * ws.T + (0 if shift is None else shift.numpy())
    assert ours.shape == (1, 7, 40)
    np.testing.assert_allclose(ours[0].numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@needed
def test_it_is_as_near_to_the_product_as_rounding_allows() -> None:
    """Each factor is off by half a step at most, so: sum of |w| s_x / 2 + |x| s_w / 2 + s_x s_w / 4."""
    x, weight = drawn(16, 96), drawn(33, 96, seed=1)
    error = (int8_product(weight, None)(x) - x @ weight.T).abs()
    x_step, w_step = (m.abs().amax(1) / 127 for m in (x, weight))
    bound = (
        weight.abs().sum(1) * x_step[:, None] / 2
        + x.abs().sum(1)[:, None] * w_step / 2
        + 96 * x_step[:, None] * w_step / 4
    )
    assert (error <= bound * (1 + 1e-5)).all()
    assert (error > bound / 100).any()  # it is rounded at all


@needed
@pytest.mark.parametrize("terms", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("columns", [1, 2, 7, 33])
@pytest.mark.parametrize("rows", [1, 2, 19])
def test_products_of_every_shape_are_right(rows: int, terms: int, columns: int) -> None:
    """Whole numbers with 127 in each row are what rounding makes of them, so the product is exact."""
    x, weight = (torch.randint(-126, 127, size).float() for size in ((rows, terms), (columns, terms)))
    x[:, 0] = weight[:, 0] = 127
    torch.testing.assert_close(int8_product(weight, None)(x), x @ weight.T, rtol=1e-6, atol=0)


@needed
def test_a_row_depends_on_no_other_row() -> None:
    x, product = drawn(9, 32), int8_product(drawn(20, 32, seed=1), torch.randn(20))
    for row in range(9):
        assert torch.equal(product(x)[row], product(x[row : row + 1])[0])


def test_zeros_are_zeros_and_the_largest_is_whole() -> None:
    whole, scales = rounded(torch.tensor([[0.0, 0.0], [-3.0, 1.0], [1e-45, 0.0]]))
    assert whole.tolist()[:2] == [[0, 0], [-127, 42]]
    assert torch.isfinite(whole * scales).all()


@needed
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(broken: float) -> None:
    x = torch.ones(2, 8)
    x[0, 3] = broken
    made = int8_product(torch.randn(5, 8), None)(x)
    assert not torch.isfinite(made[0]).any()
    assert torch.isfinite(made[1]).all()


@needed
def test_a_packed_linear_takes_it() -> None:
    linear, x = nn.Linear(24, 40), torch.randn(3, 5, 24)
    with torch.inference_mode():
        ours = PackedLinear(linear, PackedProducts(torch.int8))(x)
        assert torch.equal(ours, int8_product(linear.weight, linear.bias)(x))


@pytest.mark.parametrize("missing", ["kernel", "format"])
def test_it_is_refused_where_it_cannot_be_had(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(20, 20, d_model=16, heads=2, d_ff=16, encoder_layers=1, decoder_layers=1)
    if missing == "kernel":
        monkeypatch.setattr(engine, "has_int8", lambda: False)
    else:
        model = model.double()
    with pytest.raises(ConfigError, match=r"decode\.precision.*use auto, bf16 or float32"):
        engine.Models([model], "int8")

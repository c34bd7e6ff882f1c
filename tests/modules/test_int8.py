"""Products of 8-bit integers are what rounding both factors makes of the product, row by row."""

from __future__ import annotations

import time
import timeit
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transformer import Transformer
from transformer.core.errors import ConfigError
from transformer.decoding import engine
from transformer.modules import int8
from transformer.modules.int8 import Way, int8_product, rounded, ways
from transformer.modules.packed import PackedLinear, PackedProducts


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * 10 ** torch.randn(
        *shape[:-1], 1, generator=generator
    )  # rows of very different sizes


FLOAT32 = Way(127, int8._by_float32)
HERE = [*ways(), FLOAT32]  # those of this processor and torch


@pytest.fixture(params=HERE, ids=lambda way: way.scaled.__name__)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Products are made by this one."""
    monkeypatch.setattr(int8, "ways", lambda: (request.param,))
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_the_rounded_numbers(bias: bool, way: Way) -> None:
    x, weight, shift = drawn(7, 24), drawn(40, 24, seed=1), torch.randn(40) if bias else None
    ours = int8_product(weight, shift)(x.view(1, 7, 24))
    xs, ws = (
        m.abs().amax(1, keepdim=True).numpy().astype(np.float64) / largest
        for m, largest in ((x, 127), (weight, way.largest))
    )
    whole = [np.rint(m.numpy() / s).astype(np.int64) for m, s in ((x, xs), (weight, ws))]
    expected = (whole[0] @ whole[1].T) * xs * ws.T + (0 if shift is None else shift.numpy())
    assert ours.shape == (1, 7, 40)
    np.testing.assert_allclose(ours[0].numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_it_is_as_near_to_the_product_as_rounding_allows(way: Way) -> None:
    """Each factor is off by half a step at most, so: sum of |w| s_x / 2 + |x| s_w / 2 + s_x s_w / 4."""
    x, weight = drawn(16, 96), drawn(33, 96, seed=1)
    error = (int8_product(weight, None)(x) - x @ weight.T).abs()
    x_step, w_step = x.abs().amax(1) / 127, weight.abs().amax(1) / way.largest
    bound = (
        weight.abs().sum(1) * x_step[:, None] / 2
        + x.abs().sum(1)[:, None] * w_step / 2
        + 96 * x_step[:, None] * w_step / 4
    )
    assert (error <= bound * (1 + 1e-5)).all()
    assert (error > bound / 100).any()  # it is rounded at all


@pytest.mark.parametrize("terms", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("columns", [1, 2, 7, 33])
@pytest.mark.parametrize("rows", [1, 2, 19])
def test_products_of_every_shape_are_right(rows: int, terms: int, columns: int, way: Way) -> None:
    """Whole numbers with the largest in each row are what rounding makes of them, so the product is exact."""
    x = torch.randint(-126, 127, (rows, terms)).float()
    weight = torch.randint(1 - way.largest, way.largest, (columns, terms)).float()
    x[:, 0], weight[:, 0] = 127, way.largest
    torch.testing.assert_close(int8_product(weight, None)(x), x @ weight.T, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (1, 8, 3),
        (7, 24, 40),
        (19, 256, 33),
        (64, 300, 96),
        (3, 1041, 5),
        (2, 5000, 7),
        (200, 70, 5),
    ],
)
def test_sums_are_exact_and_multiplied_once_by_the_scale(shape: tuple[int, int, int], way: Way) -> None:
    """The sums are the same whole numbers by every way, of the largest numbers too."""
    rows, terms, columns = shape
    for x_least, w_least in ((-127, -way.largest), (127, way.largest)):
        x = torch.randint(x_least, 128, (rows, terms), dtype=torch.int8)
        weight = torch.randint(w_least, way.largest + 1, (columns, terms), dtype=torch.int8)
        weight[::2] *= -1
        scales = torch.rand(columns)
        expected = (x.double() @ weight.double().T) * scales
        torch.testing.assert_close(way.scaled(weight, scales)(x).double(), expected, rtol=3e-7, atol=0)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with AMX."""
    monkeypatch.setattr(int8, "has_tiles", lambda: True)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("cut", [2**15 - 1, 2**31 - 1])
def test_a_way_is_taken_where_its_sums_are_exact(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes x + 128, adds two products at a time, and cuts them at 16 or 32 bits."""

    def kernel(whole: torch.Tensor, scales: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        pairs = ((rows + 128)[:, None] * whole).unflatten(-1, (-1, 2)).sum(-1)
        return (pairs.clamp(-cut, cut).sum(-1) - 128 * whole.sum(-1)) * scales

    for name in ("_by_onednn", "_by_onednn_unsigned"):
        monkeypatch.setattr(int8, name, lambda whole, scales: partial(kernel, whole, scales))
    monkeypatch.setattr(int8, "_seconds", lambda way: 1.0)
    found = int8.ways.__wrapped__()
    assert [way.largest for way in found] == ([127, 127, 64] if cut > 2**15 else [64])


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("zero", [0, 128])
def test_the_faster_of_equal_ways_is_taken(zero: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_by_onednn", "_by_onednn_unsigned"):
        monkeypatch.setattr(int8, name, lambda whole, scales: pytest.fail("not called"))
    monkeypatch.setattr(int8, "_is_exact", lambda way: True)
    monkeypatch.setattr(int8, "_seconds", lambda way: 2.0 if (way.zero, way.largest) == (zero, 127) else 3.0)
    found = [(way.largest, way.zero) for way in int8.ways.__wrapped__()]
    assert found == [(127, zero), (127, 128 - zero), (64, 128)]


@pytest.mark.parametrize("x86", [True, False])
@pytest.mark.parametrize("exact", [127, 64])
def test_without_amx_the_clock_chooses_nothing(
    exact: int, x86: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN has its reference alone for x with a sign, hundreds of times slower, which a busy machine hides."""
    monkeypatch.setattr(int8, "has_onednn", lambda: x86)
    monkeypatch.setattr(int8, "has_tiles", lambda: False)
    monkeypatch.setattr(int8, "_is_exact", lambda way: way.largest <= exact)
    for seconds in ({127: 1.0, 64: 2.0}, {127: 2e6, 64: 1.0}):
        monkeypatch.setattr(int8, "_seconds", lambda way, seconds=seconds: seconds[way.largest])
        found = [(way.largest, way.zero) for way in int8.ways.__wrapped__()]
        assert found == ([(127, 128), (64, 128)][0 if exact == 127 else 1 :] if x86 else [])


def test_a_product_is_timed_until_it_had_the_core_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have it for the first twenty calls."""
    calls = 0

    def product(rows: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls <= 20:
            time.sleep(0.004)
        return rows

    assert int8._seconds(Way(127, lambda whole, scales: product)) < 0.002
    assert calls > 20


def test_products_take_no_thousand_times_what_float32_takes() -> None:
    x, weight = torch.randn(8, 256), torch.randn(256, 256)
    product = int8_product(weight, None)
    ours = min(timeit.repeat(lambda: product(x), number=1, repeat=5))
    assert ours < 100 * min(timeit.repeat(lambda: x @ weight.T, number=1, repeat=5))


def test_a_torch_without_the_kernels_has_no_such_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    for name in ("_by_onednn", "_by_onednn_unsigned"):
        monkeypatch.setattr(int8, name, missing)
    assert int8.ways.__wrapped__() == ()


def test_sums_too_long_for_32_bits_are_of_float32() -> None:
    assert int8.way_for(133_145) == FLOAT32
    assert int8.way_for(133_144) == HERE[0]


LARGEST = float(torch.finfo(torch.float32).max)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.floats(-37, 38.53), min_size=1, max_size=4),
    columns=st.lists(st.floats(-37, 31), min_size=1, max_size=4),
    terms=st.integers(1, 9),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_rows_of_any_magnitude_give_the_right_number(
    rows: list[float], columns: list[float], terms: int, bias: bool, seed: int
) -> None:
    """Magnitudes 10**rows and 10**columns; a number too large for float32 is infinite, with its sign."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(powers: list[float]) -> torch.Tensor:
        drawn = torch.rand(len(powers), terms, generator=generator, dtype=torch.float64) * 2 - 1
        drawn[:, 0] = 1
        return (
            (drawn * 10 ** torch.tensor(powers, dtype=torch.float64)[:, None])
            .float()
            .clamp(-LARGEST, LARGEST)
        )

    x, weight = matrix(rows), matrix(columns)
    shift = torch.randn(len(weight), generator=generator) if bias else None
    ours = int8_product(weight, shift)(x).double()
    (x_whole, x_scales), (w_whole, w_scales) = rounded(x), rounded(weight, int8.way_for(terms).largest)
    expected = x_whole.double() @ w_whole.double().T * x_scales.double() * w_scales.double().T
    expected = expected if shift is None else expected + shift.double()
    right = (ours - expected).abs() <= 1e-6 * (expected.abs() + (0 if shift is None else 9)) + 1e-44
    beyond = (expected.abs() > LARGEST * (1 - 1e-6)) & (ours == expected.sign() * torch.inf)
    assert (right | beyond).all()


@settings(max_examples=50, deadline=None)
@given(row=st.floats(-35, 38.53), column=st.floats(31, 38.53))
def test_of_weights_beyond_reason_a_number_is_right_or_infinite(row: float, column: float) -> None:
    """Rows below 1.5e-36 have steps of the smallest normal number, which are too large for them."""
    x, weight = (
        torch.tensor([[10.0**power, -(10.0**power) / 3]]).clamp(-LARGEST, LARGEST) for power in (row, column)
    )
    made = int8_product(weight, None)(x).item()
    expected = 10.0 ** min(row, 38.532) * 10.0 ** min(column, 38.532) * (1 + 1 / 9)
    assert made == torch.inf or made == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("terms", [1_040, 1_041, 133_144, 133_145, 300_000])
def test_a_sum_of_any_length_is_right(terms: int, way: Way) -> None:
    """All the largest, of one sign: float32 holds 1,040 of their products exactly, 32 bits 133,144."""
    x = torch.ones(3, terms)
    x[1, ::2] = -1
    weight = torch.ones(2, terms)
    weight[1] = -1
    made = int8_product(weight, None)(x)
    torch.testing.assert_close(made, x @ weight.T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("terms", [1_040, 4_000])
def test_sums_in_float32_are_rounded_once(terms: int) -> None:
    """Sums of large numbers, of which float32 would round each part's."""
    draws = torch.Generator().manual_seed(0)
    rows, weight = (torch.randint(90, 128, (size, terms), generator=draws) for size in (50, 100))
    made = int8._by_float32(weight.float(), torch.ones(100))(rows.float())
    assert torch.equal(made, (rows @ weight.T).float())


def test_a_row_depends_on_no_other_row(way: Way) -> None:
    x, product = drawn(9, 32), int8_product(drawn(20, 32, seed=1), torch.randn(20))
    for row in range(9):
        assert torch.equal(product(x)[row], product(x[row : row + 1])[0])


def test_zeros_are_zeros_and_the_largest_is_whole() -> None:
    whole, scales = rounded(torch.tensor([[0.0, 0.0], [-3.0, 1.0], [1e-45, 0.0]]))
    assert whole.tolist()[:2] == [[0, 0], [-127, 42]]
    assert torch.isfinite(whole * scales).all()
    assert rounded(torch.tensor([[2.0, -1.0, 0.0]]), 64)[0].tolist() == [[64, -32, 0]]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("small", ["x", "weight"])
def test_rows_of_zeros_and_of_tiny_magnitudes_are_off_by_half_a_step_at_most(
    small: str, bias: bool, way: Way
) -> None:
    """A step is a 127th of the row's largest magnitude, at least the smallest normal number: 1.2e-38."""
    magnitudes = torch.tensor([0.0, 1e-45, 1e-40, 1e-38, 3e-38, 1e-37, 1e-36, 1e-35, 1.0])
    tiny = magnitudes[:, None] * torch.tensor([1.0, 0.8, -0.3, 0.1])
    large = 1e30 * torch.tensor([[1.0, 1.0, -1.0, 0.5], [-0.2, -1.0, 0.3, 1.0]])
    x, weight = (tiny, large) if small == "x" else (large, tiny)
    shift = 1e-8 * torch.arange(1.0, len(weight) + 1) if bias else None
    ours = int8_product(weight, shift)(x).double().numpy()
    x, weight = x.double().numpy(), weight.double().numpy()
    steps = [
        np.maximum(np.abs(m).max(1) / largest, 2.0**-126) for m, largest in ((x, 127), (weight, way.largest))
    ]
    bound = (
        np.outer(steps[0], np.abs(weight).sum(1)) / 2
        + np.outer(np.abs(x).sum(1), steps[1]) / 2
        + x.shape[1] * np.outer(*steps) / 4
    )
    exact = x @ weight.T + (0 if shift is None else shift.double().numpy())
    assert (np.abs(ours - exact) <= bound * (1 + 1e-4) + 1e-6 * np.abs(exact)).all()
    of_zeros = (0, slice(None)) if small == "x" else (slice(None), 0)
    np.testing.assert_array_equal(ours[of_zeros], exact[of_zeros])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(broken: float, way: Way) -> None:
    x = torch.ones(2, 8)
    x[0, 3] = broken
    made = int8_product(torch.randn(5, 8), None)(x)
    assert not torch.isfinite(made[0]).any()
    assert torch.isfinite(made[1]).all()


def test_a_packed_linear_takes_it() -> None:
    linear, x = nn.Linear(24, 40), torch.randn(3, 5, 24)
    with torch.inference_mode():
        ours = PackedLinear(linear, PackedProducts(torch.int8))(x)
        assert torch.equal(ours, int8_product(linear.weight, linear.bias)(x))


@pytest.mark.parametrize("missing", ["kernel", "format"])
def test_it_is_refused_where_it_cannot_be_had(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(20, 20, d_model=16, heads=2, d_ff=16, encoder_layers=1, decoder_layers=1)
    if missing == "kernel":
        monkeypatch.setattr(engine, "has_onednn", lambda: False)
    else:
        model = model.double()
    with pytest.raises(ConfigError, match=r"decode\.precision.*use auto, bf16 or float32"):
        engine.Models([model], "int8")

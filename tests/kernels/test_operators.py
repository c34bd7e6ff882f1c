"""The operators in C are those of torch: each against its twin, in float64 where that tells more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transformer import Transformer
from transformer.core.errors import CheckpointError
from transformer.decoding.config import DecodeConfig
from transformer.decoding.engine import Models, Request
from transformer.decoding.limits import Limits
from transformer.decoding.next_token import _log_softmax
from transformer.decoding.ranking import best_sums
from transformer.kernels import operators
from transformer.kernels.building import library
from transformer.modules import int8
from transformer.modules.attention import attend
from transformer.modules.dropout import Dropout

pytestmark = pytest.mark.skipif(library() is None, reason="there is no C compiler")
NONE = Dropout(0.0).eval()
NAMES = {"attend", "best_sums", "log_softmax", "rounded"}
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- where they are at work


def test_they_are_at_work_where_that_is_said_and_nowhere_else() -> None:
    assert not any(map(operators.has, NAMES))
    with operators.at_work():
        with operators.at_work():
            assert all(map(operators.has, NAMES))
        assert all(map(operators.has, NAMES))
        assert not operators.has("gather")
    assert not any(map(operators.has, NAMES))


def test_another_thread_is_not_at_work() -> None:
    found = []
    with operators.at_work():
        thread = threading.Thread(target=lambda: found.append(operators.has("attend")))
        thread.start()
        thread.join()
    assert found == [False]


def test_many_threads_of_torch_are_faster() -> None:
    torch.set_num_threads(3)
    with operators.at_work():
        assert not any(map(operators.has, NAMES))


def test_a_library_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of arithmetic that drops NaN, or folds what rounds to an integer."""
    right = operators._compiled.__wrapped__()
    assert set(right) == NAMES
    assert operators._are_right(right)
    for name, wrong in (("log_softmax", lambda *_: None), ("best_sums", lambda *_: 0)):
        assert not operators._are_right({**right, name: wrong})
    monkeypatch.setattr(operators, "_are_right", lambda functions: False)
    assert operators._compiled.__wrapped__() == {}


# --- log-softmax


@pytest.mark.parametrize("size", [1, 7, 8, 15, 16, 17, 100, 8003])
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_log_softmax(size: int, scale: float) -> None:
    logits = drawn(5, size) * scale
    expected = logits.double().log_softmax(-1)
    with operators.at_work():
        found = _log_softmax(logits)
    assert found.data_ptr() == logits.data_ptr()
    torch.testing.assert_close(found.double(), expected, rtol=3e-7, atol=2e-6)


@pytest.mark.parametrize("size", [20, 64])
def test_log_softmax_of_rows_with_what_is_not_finite_is_torchs(size: int) -> None:
    logits = drawn(5, size)
    logits[0, 3], logits[1, -1], logits[2, 2], logits[3, :7], logits[4] = NAN, NAN, INF, -INF, -INF
    expected = logits.log_softmax(-1)
    with operators.at_work():
        found = _log_softmax(logits)
    assert found[:3].isnan().all()
    assert found[4].isnan().all()
    torch.testing.assert_close(found[3], expected[3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_log_softmax_is_in_float32_at_least(dtype: torch.dtype) -> None:
    logits = drawn(3, 40).to(dtype)
    expected = logits.double().log_softmax(-1)
    with operators.at_work():
        found = _log_softmax(logits)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_exponentials_are_right_to_the_last_bits() -> None:
    """Of rows 0, x, x, ... of 16, which are one vector after the other: 0 becomes -log(1 + 15 e^x)."""
    x = torch.linspace(-90, 0, 100_001)
    rows = torch.stack([torch.zeros_like(x), *[x] * 15], 1)
    expected = rows.double().log_softmax(-1)[:, 0]
    with operators.at_work():
        found = _log_softmax(rows)[:, 0]
    assert (found - expected).abs().max() < 2.5e-7


# --- the best sums


@settings(max_examples=120, deadline=None)
@given(
    groups=st.integers(1, 4),
    width=st.integers(1, 6),
    size=st.integers(256, 700),
    k=st.integers(1, 6),
    values=st.sampled_from(["few", "all", "dead", "equal"]),
    seed=st.integers(0, 99),
)
def test_best_sums_are_those_of_torch(
    groups: int, width: int, size: int, k: int, values: str, seed: int
) -> None:
    """To the bit, with ties, beams that are dead and columns that are forbidden."""
    size = max(size, 256 * k)  # below, both are torch's
    x = drawn(groups * width, size, seed=seed)
    addends = drawn(groups, width, seed=seed + 1).double()
    if values == "few":
        x, addends = x.round(), addends.round()
    if values == "equal":
        x = torch.zeros_like(x)
    if values == "dead":
        addends[:, 1:] = -INF
        x[:, k // 2 :] = -INF
    expected = best_sums(x, addends, k)
    with operators.at_work():
        found = best_sums(x, addends, k)
    finite = expected[0].isfinite()
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours[finite], theirs[finite])
    rows, columns = found[1:]
    assert ((rows >= 0) & (rows < len(x)) & (columns >= 0) & (columns < size)).all()


@pytest.mark.parametrize("column", [0, 63, 64, 255, 258, 259])
def test_a_missing_number_is_an_error_wherever_it_is(column: int) -> None:
    x, addends = drawn(6, 260), torch.zeros(2, 3, dtype=torch.float64)
    x[4, column] = NAN
    addends[1, 1] = -INF
    with operators.at_work(), pytest.raises(CheckpointError, match="diverged"):
        best_sums(x, addends, 1)


def test_an_addend_that_is_none_is_an_error() -> None:
    x, addends = drawn(6, 260), torch.zeros(2, 3, dtype=torch.float64)
    addends[1, 1] = NAN
    with operators.at_work(), pytest.raises(CheckpointError, match="diverged"):
        best_sums(x, addends, 1)


def test_addends_may_be_a_view() -> None:
    x, addends = drawn(6, 260), drawn(3, 2).double().T
    with operators.at_work():
        found = best_sums(x, addends, 1)
    assert all(map(torch.equal, found, best_sums(x, addends.contiguous(), 1)))


# --- attention


@pytest.mark.parametrize("width", [8, 24, 32, 64, 72])
@pytest.mark.parametrize(("length", "columns"), list(product([1, 5], [1, 7, 8, 9, 33])))
@pytest.mark.parametrize("masked", ["none", "sentence", "row"])
def test_attention(width: int, length: int, columns: int, masked: str) -> None:
    """Of queries and keys as projections leave them, and of buffers with columns to spare."""
    sentences, heads = 3, 2
    together = drawn(sentences, length, 3, heads, width)
    query = together[:, :, 0].transpose(1, 2)
    room = drawn(2, sentences, heads, columns + 5, width, seed=1)[..., :columns, :]
    loose = drawn(2, sentences, columns, heads, width, seed=1).transpose(2, 3)
    mask = None
    if masked == "sentence":
        mask = torch.arange(columns) <= torch.arange(sentences)[:, None, None, None]
    if masked == "row":
        mask = drawn(sentences, 1, length, columns, seed=3) > 0
        mask[..., -1] = True
    for keys, values in (room, loose):
        assert not operators.can_attend(query, keys, values, mask)
        expected = attend(*(x.double() for x in (query, keys, values)), mask, False, NONE)
        with operators.at_work():
            assert operators.can_attend(query, keys, values, mask)
            found = attend(query, keys, values, mask, False, NONE)
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6)


def test_what_a_query_does_not_see_does_not_reach_it_and_what_it_sees_does() -> None:
    query, keys, values = drawn(1, 1, 3, 8), drawn(1, 1, 12, 8), drawn(1, 1, 12, 8)
    seen = torch.ones(1, 1, 3, 12, dtype=torch.bool)
    seen[..., 0, 4] = seen[..., 1, 4] = seen[..., 1, 9] = False
    expected = attend(query, keys, values, seen, False, NONE)
    keys[..., 4, 2], values[..., 9, 0] = NAN, INF
    with operators.at_work():
        found = attend(query, keys, values, seen, False, NONE)[0, 0]
    assert found[0, 0] == INF
    torch.testing.assert_close(found[0, 1:], expected[0, 0, 0, 1:])
    torch.testing.assert_close(found[1], expected[0, 0, 1])
    assert found[2].isnan().all()


def test_a_query_that_sees_nothing_gets_zeros() -> None:
    query, keys = drawn(1, 2, 1, 8), drawn(1, 2, 3, 8)
    with operators.at_work():
        found = attend(query, keys, keys, torch.zeros(1, 1, 1, 3, dtype=torch.bool), False, NONE)
    assert torch.equal(found, torch.zeros(1, 2, 1, 8))


@pytest.mark.parametrize("large", [100.0, 1e4])
def test_scores_far_apart_choose_one(large: float) -> None:
    query, keys, values = torch.full((1, 1, 1, 8), large), torch.zeros(1, 1, 11, 8), drawn(1, 1, 11, 8)
    keys[0, 0, 6] = large
    with operators.at_work():
        found = attend(query, keys, values, None, False, NONE)
    torch.testing.assert_close(found[0, 0, 0], values[0, 0, 6])


def test_what_they_do_not_do_is_torchs() -> None:
    query, keys = drawn(2, 2, 3, 8), drawn(2, 2, 4, 8)
    mask = torch.ones(2, 2, 3, 4, dtype=torch.bool)
    others = [
        (query.double(), keys.double(), keys.double(), None),
        (query[..., :7].contiguous(), keys[..., :7].contiguous(), keys[..., :7].contiguous(), None),
        (query, keys.mT.contiguous().mT, keys, None),
        (query, keys, keys, mask),  # of each head its own
        (query, keys, keys, mask[:, :1].float()),
        (query, keys, keys, mask[:, :1, :, :3]),
        (query, keys, keys, mask[:, :1, :2]),
        (query, keys, keys, mask[[0, 0, 1], :1]),
        (query[:1], keys, keys, None),
    ]
    with operators.at_work():
        assert operators.can_attend(query, keys, keys, mask[:, :1])
        assert operators.can_attend(query, keys, keys, mask[:1, :1, :1].expand(2, -1, 3, -1))
        assert not any(operators.can_attend(*other) for other in others)
        trained = Dropout(0.5).train()
        torch.manual_seed(0)
        assert not torch.equal(
            attend(query, keys, keys, None, False, trained), attend(query, keys, keys, None, False, NONE)
        )
        square = drawn(2, 2, 3, 8, seed=1)
        causal = attend(query, square, square, None, True, NONE)
    torch.testing.assert_close(causal, attend(query, square, square, None, True, NONE), rtol=0, atol=0)


# --- rounding


@pytest.mark.parametrize("size", [1, 7, 8, 20, 64, 1024])
@pytest.mark.parametrize("zero", [0, 128])
def test_rounding_is_torchs_to_the_bit(size: int, zero: int) -> None:
    x = drawn(40, size) * 10 ** (10 * drawn(40, 1, seed=1))
    x[0], x[1], x[2, 0] = 0, 1e-45, torch.finfo(torch.float32).max
    x[3] = torch.arange(size) - size / 2  # halves, which go to the even one
    whole, scales = int8.rounded(x)
    with operators.at_work():
        ours, of_rows = operators.rounded(x, zero)
    assert ours.dtype == (torch.uint8 if zero else torch.int8)
    assert torch.equal(ours.float() - zero, whole)
    assert torch.equal(of_rows, scales)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("column", [0, 9, 19])
def test_the_scale_of_a_row_that_is_not_finite_is_not(value: float, column: int) -> None:
    x = drawn(3, 20)
    x[1, column] = value
    with operators.at_work():
        _, scales = operators.rounded(x, 0)
    assert scales.isfinite().squeeze(1).tolist() == [True, False, True]


def test_rounding_of_a_view() -> None:
    x = drawn(9, 20).T
    with operators.at_work():
        whole, scales = operators.rounded(x, 0)
    expected = int8.rounded(x)
    assert torch.equal(whole.float(), expected[0])
    assert torch.equal(scales, expected[1])


# --- a search


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("beam", [1, 4])
def test_a_search_finds_the_same_in_c_and_calls_all_of_them(
    precision: str, beam: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Transformer(
        1100, 1100, d_model=32, heads=2, d_ff=64, encoder_layers=2, decoder_layers=2, tie_embeddings="all"
    )
    with torch.no_grad():
        model.output_weight.mul_(4)  # probabilities apart
    rows = [Request(i, [4 + i, 9, 30 + i, 7][: 2 + i % 3], Limits(3, 9)) for i in range(7)]
    engine, config = Models([model], precision), DecodeConfig(beam=beam)  # type: ignore[arg-type]
    called: set[str] = set()

    def told(operator: str) -> bool:
        called.add(operator)
        return in_c and has(operator)

    has, found = operators.has, {}
    monkeypatch.setattr(operators, "has", told)
    for in_c in (False, True):
        with engine.working():
            found[in_c] = engine.search(rows, config)
    assert called == NAMES - ({"rounded"} if precision == "float32" else set()) - (
        {"best_sums"} if beam == 1 else set()
    )
    for ours, theirs in zip(found[True], found[False], strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx(
            [h.score for h in theirs], rel=1e-5 if precision == "float32" else 2e-2
        )

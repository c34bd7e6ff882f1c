"""Attention against its formula, masks by hand, positions, dropout."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from transformer.modules import attention as attention_module
from transformer.modules.attention import MultiHeadAttention, attend, softmax
from transformer.modules.dropout import Dropout
from transformer.modules.embeddings import Embedding, LearnedPositions, SinusoidalPositions, sinusoids
from transformer.modules.masks import causal_mask, padding_mask
from transformer.modules.precision import autocast, fast_bf16, resolve_precision


def test_attention_is_softmax_of_scaled_products_head_by_head() -> None:
    torch.set_default_dtype(torch.float64)
    attention = MultiHeadAttention(12, 3)
    x, memory = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    mask = torch.rand(2, 1, 4, 5) > 0.3
    mask[..., 0] = True
    q, k, v = attention.query(x), attention.key(memory), attention.value(memory)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].mT / math.sqrt(4)
        scores = scores.masked_fill(~mask[:, 0], -math.inf)
        heads.append(torch.softmax(scores, -1) @ v[..., part])
    expected = attention.output(torch.cat(heads, -1))
    torch.testing.assert_close(attention(x, memory, mask), expected)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("columns", [1, 2, 7, 15, 16, 17])
def test_the_softmax_of_short_rows_is_torchs(
    columns: int, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "has_wide_vectors", lambda: wide)
    draws = torch.Generator().manual_seed(columns)
    scores = torch.randn(2, 3, 4, columns, generator=draws).mul_(3)
    scores[0, 0, 0, : columns // 2] = torch.finfo(scores.dtype).min  # may not be attended to
    scores[1, 0, 0] = torch.finfo(scores.dtype).min  # nothing may
    upstream = torch.randn(scores.shape, generator=draws)
    found = []
    for way in (softmax, lambda x: x.softmax(-1)):
        leaf = scores.clone().requires_grad_()
        made = way(leaf)
        made.backward(upstream)
        found.append((made.detach(), leaf.grad))
    torch.testing.assert_close(*found)


def test_causal_attention_is_attention_with_the_causal_mask() -> None:
    torch.set_default_dtype(torch.float64)
    attention = MultiHeadAttention(12, 3)
    x = torch.randn(2, 6, 12)
    torch.testing.assert_close(attention(x, causal=True), attention(x, mask=causal_mask(6)))


def test_masks_say_true_where_one_may_attend() -> None:
    assert causal_mask(3, past=1).tolist() == [
        [[[True, True, False, False], [True, True, True, False], [True, True, True, True]]]
    ]
    assert padding_mask(torch.tensor([[5, 6, 0], [7, 0, 0]])).tolist() == [
        [[[True, True, False]]],
        [[[True, False, False]]],
    ]


def test_a_row_of_padding_only_is_finite() -> None:
    tokens = torch.tensor([[5, 6], [0, 0]])
    attention = MultiHeadAttention(8, 2)
    y = attention(torch.randn(2, 2, 8), mask=padding_mask(tokens))
    assert y.isfinite().all()
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


def test_sinusoids_are_the_papers() -> None:
    table = sinusoids(50, 10)
    for t in (0, 1, 7, 49):
        for i in range(5):
            assert table[t, 2 * i].item() == pytest.approx(math.sin(t / 10000 ** (2 * i / 10)), abs=1e-12)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(t / 10000 ** (2 * i / 10)), abs=1e-12)


def test_the_sinusoidal_table_grows_on_demand_and_keeps_its_values() -> None:
    positions = SinusoidalPositions(4, 8)
    torch.testing.assert_close(positions(30, offset=5), sinusoids(35, 8)[5:].float())


def test_learned_positions_end_with_a_clear_error() -> None:
    positions = LearnedPositions(6, 8)
    torch.nn.init.normal_(positions.weight)
    assert torch.equal(positions(2, offset=4), positions.weight[4:])
    with pytest.raises(ValueError, match=r"position 7 is beyond model\.max_length = 6"):
        positions(3, offset=4)


def test_an_embedding_is_scaled_by_the_root_of_d_and_offset_moves_the_positions() -> None:
    embedding = Embedding(torch.nn.Embedding(9, 16), SinusoidalPositions(20, 16))
    tokens = torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(embedding(tokens), 4 * embedding.tokens(tokens) + sinusoids(3, 16).float())
    torch.testing.assert_close(embedding(tokens[:, 2:], offset=2), embedding(tokens)[:, 2:])


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_dropout_drops_with_probability_p_and_keeps_the_mean(p: float) -> None:
    x = torch.ones(400_003, requires_grad=True)
    y = Dropout(p)(x)
    dropped = (y == 0).float().mean().item()
    assert dropped == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / x.numel()))
    assert y.mean().item() == pytest.approx(1.0, abs=0.01)
    assert y[y != 0].unique().numel() == 1
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())


def test_dropout_masks_are_independent_between_calls_and_follow_the_seed() -> None:
    x, dropout = torch.ones(10_000), Dropout(0.5)
    torch.manual_seed(7)
    one, two = dropout(x), dropout(x)
    assert ((one > 0) & (two > 0)).float().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.manual_seed(7)
    assert torch.equal(dropout(x), one)
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_has_no_pattern_between_neighbours() -> None:
    """Eight elements share one 64-bit word: their joint frequencies are those of independent draws."""
    kept = (Dropout(0.3)(torch.ones(1_600_000)) > 0).view(-1, 8).long()
    codes = (kept * 2 ** torch.arange(8)).sum(1).bincount(minlength=256) / 200_000
    dropped = 8 - torch.tensor([code.bit_count() for code in range(256)])
    expected = 0.3**dropped * 0.7 ** (8 - dropped)
    deviations = (codes - expected) / (expected * (1 - expected) / 200_000).sqrt()
    assert deviations[expected > 1e-4].abs().max() < 5, "in standard deviations"


@pytest.mark.parametrize("p", [2**-19, 1 - 2**-19])
def test_dropout_is_right_where_a_byte_cannot_tell_p(p: float) -> None:
    torch.manual_seed(3)
    x = torch.ones(1 << 22)
    y = Dropout(p)(x)
    rare = int((y != 0).sum()) if p > 0.5 else int((y == 0).sum())
    assert rare == pytest.approx(8, abs=5 * math.sqrt(8))
    assert rare > 0
    torch.testing.assert_close(y[y != 0].unique(), torch.tensor([1 / (1 - p)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [1 / 4096, 1 / 256, 0.1, 0.75, 255 / 256, 4095 / 4096])
def test_dropout_drops_what_its_bytes_and_its_places_say(p: float, dtype: torch.dtype) -> None:
    """The same draws, looked at one by one: bytes below 256 p, and places of which there are a Poisson's."""
    x = torch.randn(4_001, dtype=dtype, requires_grad=True)
    torch.manual_seed(5)
    y = Dropout(p)(x)
    torch.manual_seed(5)
    keep, level = torch.ones(4_001, dtype=torch.bool), math.floor(p * 256)
    if level:
        drawn = torch.empty(501, dtype=torch.int64).random_(-(2**63), None).view(torch.int8)[:4_001].tolist()
        keep = torch.tensor([byte + 128 >= level for byte in drawn])
    if level != p * 256:
        left = 1 - (1 - p) * 256 / (256 - level)
        mean = torch.tensor(-4_001 * math.log(1 - left), dtype=torch.float64)
        for place in torch.randint(4_001, (int(torch.poisson(mean)),)).tolist():
            keep[place] = False
    scale = 1 / (1 - p)
    assert torch.equal(y, torch.where(keep, x, 0) * scale)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(gradient, keep.to(dtype) * scale)


def test_precision_follows_the_request_or_the_hardware() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("float32", cpu) == torch.float32
    assert resolve_precision("bf16", cpu) == torch.bfloat16
    assert resolve_precision("auto", cpu) == (torch.bfloat16 if fast_bf16(cpu) else torch.float32)
    linear = torch.nn.Linear(3, 3)
    with autocast(cpu, torch.bfloat16):
        assert linear(torch.ones(1, 3)).dtype == torch.bfloat16
    with autocast(cpu, torch.float32):
        assert linear(torch.ones(1, 3)).dtype == torch.float32


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("dtype", "rows", "columns"),
    [
        (torch.bfloat16, 5, 5),
        (torch.bfloat16, 50, 50),
        (torch.float64, 1, 1),
        (torch.float64, 15, 15),
        (torch.float64, 16, 16),
        (torch.float64, 17, 17),
        (torch.float64, 5, 24),
        (torch.float64, 50, 50),
        (torch.float32, 9, 9),
    ],
)
def test_written_out_or_not_it_equals_torch_s_kernel(
    dtype: torch.dtype, rows: int, columns: int, causal: bool
) -> None:
    """With rows shorter than a vector and longer ones, few scores and many."""
    if causal and rows != columns:
        return
    query = torch.randn(2, 3, rows, 4).to(dtype)
    leaves = [query, *(torch.randn(2, 3, columns, 4).to(dtype) for _ in range(2))]
    mask = None
    if not causal:
        mask = torch.rand(2, 1, 1, columns) > 0.3
        mask[..., 0] = True
    outputs = []
    for ours, exact in ((True, dtype), (False, torch.float64)):
        q, k, v = (leaf.to(exact).requires_grad_() for leaf in leaves)
        if ours:
            y = attend(q, k, v, mask, causal, Dropout(0.0).eval())
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        outputs.append([y, *torch.autograd.grad(y.double().square().sum(), (q, k, v))])
    close = {torch.bfloat16: 0.05, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for low, high in zip(*outputs, strict=True):
        torch.testing.assert_close(low.double(), high, rtol=close, atol=close)


def test_few_scores_on_a_cpu_and_bf16_training_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is faster where is measured by benchmarks/attention.py; here, which is taken."""
    calls: list[int] = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    off = Dropout(0.0).eval()
    taken = []
    for dtype, length, gradients in (
        (torch.float32, 8, False),
        (torch.float32, 8, True),
        (torch.float32, 60, True),
        (torch.bfloat16, 60, True),
        (torch.bfloat16, 60, False),
    ):
        x = torch.randn(1, 1, length, 4, dtype=dtype, requires_grad=gradients)
        calls.clear()
        attend(x, x, x, None, False, off)
        taken.append("kernel" if calls else "written out")
    assert taken == ["written out", "written out", "kernel", "written out", "kernel"]

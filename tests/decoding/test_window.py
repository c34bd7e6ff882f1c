"""A decoder that sees the last N columns, and the ring in which it keeps them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from decoding_toys import sources, tiny
from torch import Tensor

from transformer import Transformer
from transformer.decoding import DecoderCache, Limits, ModelNextToken, beam_search, greedy_search
from transformer.modules.masks import causal_mask, padding_mask

EXACT = {"rtol": 1e-9, "atol": 1e-10}
WINDOWS = [1, 2, 3, 5, 8]


def targets(length: int) -> Tensor:
    return torch.randint(4, 9, (3, length), generator=torch.Generator().manual_seed(5))


def by_columns(attention: Any, x: Tensor, window: int) -> Tensor:
    """Self-attention column by column, over a list of the columns that each one sees."""
    q, k, v = attention.query(x), attention.key(x), attention.value(x)
    width = x.shape[-1] // attention.heads
    rows = []
    for t in range(x.shape[1]):
        seen, heads = [s for s in range(t + 1) if t - s < window], []
        for h in range(attention.heads):
            part = slice(h * width, (h + 1) * width)
            scores = torch.stack([(q[:, t, part] * k[:, s, part]).sum(-1) for s in seen]) / math.sqrt(width)
            weights = scores.softmax(0)
            heads.append(sum(w[:, None] * v[:, s, part] for w, s in zip(weights, seen, strict=True)))
        rows.append(attention.output(torch.cat(heads, -1)))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("window", WINDOWS)
def test_each_column_attends_to_the_last_n(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = tiny(attention_window=window), targets(7)
    memory, mask = torch.randn(3, 5, 8, dtype=torch.float64), torch.ones(3, 1, 1, 5, dtype=torch.bool)
    ours = model.decode(target, memory, mask)
    for layer in model.decoder.layers:
        attention = layer.self_attention
        monkeypatch.setattr(attention, "forward", lambda x, a=attention, **_: by_columns(a, x, window))
    torch.testing.assert_close(ours, model.decode(target, memory, mask), **EXACT)


def test_a_column_before_the_window_of_all_layers_is_never_seen() -> None:
    """Of two layers with a window of 3 a column sees 2 * (3 - 1) before itself, and none before those."""
    model, target = tiny(attention_window=3), targets(9)
    memory, mask = torch.randn(3, 5, 8, dtype=torch.float64), torch.ones(3, 1, 1, 5, dtype=torch.bool)
    before = model.decode(target, memory, mask)
    target[:, 0] = 4 + (target[:, 0] - 3) % 5
    differs = (model.decode(target, memory, mask) != before).flatten(2).any(-1).any(0)
    assert differs.tolist() == [True] * 5 + [False] * 4


def test_the_mask_is_a_band() -> None:
    assert causal_mask(3, 1, window=2).int().tolist() == [[[[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]]]
    assert torch.equal(causal_mask(4, 2, window=6), causal_mask(4, 2))


@pytest.mark.parametrize("window", [7, 8, 100_000])
def test_a_window_that_covers_all_columns_changes_no_bit(window: int) -> None:
    source, target = sources(3, 6), targets(7)
    full, windowed = tiny()(source, target), tiny(attention_window=window)(source, target)
    assert torch.equal(full, windowed)
    with torch.inference_mode():
        runs = [
            beam_search(ModelNextToken(tiny(attention_window=w)), source, [Limits(window - 1)] * 3, beam=3)
            for w in (None, window)
            if window < 100
        ]
    assert all(run == runs[0] for run in runs)


def steps_agree(model: Transformer, window: int, widths: list[int]) -> None:
    """Columns come several at a time, rows are reordered, repeated and dropped in between."""
    draws = torch.Generator().manual_seed(3)
    source = sources(3, 6)
    memory, mask = model.encode(source), padding_mask(source)
    cache = DecoderCache(2, 3, window=window)
    prefix, sentence = torch.empty(3, 0, dtype=torch.int64), torch.arange(3)
    kept = mask
    for width in widths:
        new = torch.randint(4, 9, (len(sentence), width), generator=draws)
        prefix = torch.cat((prefix, new), 1)
        cached = model.decode(new, memory, cache.as_attended(kept), cache)
        uncached = model.decode(prefix, memory[sentence], mask[sentence])[:, -width:]
        torch.testing.assert_close(cached, uncached, **EXACT)
        assert cache.length == prefix.shape[1]
        for layer in cache.layers:
            assert layer.self_attention._buffers[0].shape[2] <= window
        rows = torch.randint(len(sentence), (6,), generator=draws)
        rows = torch.cat((rows, torch.tensor([int((sentence == s).nonzero()[0]) for s in sentence.unique()])))
        rows = rows[sentence[rows].argsort(stable=True)]
        if (still := cache.select(rows)) is not None:
            kept = kept[still]
        prefix, sentence = prefix[rows], sentence[rows]


@pytest.mark.parametrize(
    "widths", [[1] * 20, [4, 1, 1, 3, 1, 1, 1, 9, 1, 2], [12, 1, 1, 12, 1], [2, 2, 2, 2, 2]]
)
@pytest.mark.parametrize("window", WINDOWS)
def test_cached_columns_equal_uncached_ones(window: int, widths: list[int]) -> None:
    with torch.inference_mode():
        steps_agree(tiny(attention_window=window), window, widths)


def test_a_ring_may_grow_before_it_closes() -> None:
    with torch.inference_mode():
        steps_agree(tiny(attention_window=37), 37, [1] * 80)


@pytest.mark.parametrize("placement", ["post", "resi_dual", "hyper", "reversible", "hybrid", "b2t"])
def test_every_placement_has_it(placement: str) -> None:
    with torch.inference_mode():
        steps_agree(tiny(attention_window=3, placement=placement), 3, [1, 1, 1, 1, 4, 1, 1, 2, 1])


@pytest.mark.parametrize("window", WINDOWS)
def test_search_finds_the_same_with_and_without_cache(window: int) -> None:
    model, source = tiny(attention_window=window, seed=1), sources(5, 5)
    limits = [Limits(14, 10)] * 5
    with torch.inference_mode():
        for search in (
            lambda m: greedy_search(m, source, limits),
            lambda m: beam_search(m, source, limits, beam=4, n_best=4, length_penalty="wu"),
        ):
            cached, uncached = (search(ModelNextToken(model, incremental)) for incremental in (True, False))
            for ours, theirs in zip(cached, uncached, strict=True):
                assert [h.tokens for h in ours] == [h.tokens for h in theirs]
                assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], rel=1e-10)


def test_search_gives_its_cache_the_window() -> None:
    with torch.inference_mode():
        continuation = ModelNextToken(tiny(attention_window=3)).start(sources(2, 4))
        for _ in range(20):
            continuation.step(torch.full((2,), 5))
    assert continuation.cache.length == 20
    assert continuation.cache.layers[0].self_attention._buffers[0].shape[2] == 3

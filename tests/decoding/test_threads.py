"""Several batches at a time find what one after the other finds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain

import pytest
import torch

from transformer import Transformer
from transformer.core.errors import CheckpointError
from transformer.decoding import DecodeConfig, Hypothesis, Limits
from transformer.decoding.engine import Models, Request
from transformer.modules.products import has_onednn

pytestmark = pytest.mark.skipif(not has_onednn(), reason="one batch at a time without them")
SHAPE = {"d_model": 32, "heads": 2, "d_ff": 48, "encoder_layers": 1, "decoder_layers": 2}


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def batches() -> list[list[Request]]:
    draws = torch.Generator().manual_seed(1)
    numbers = iter(range(100))
    return [
        [
            Request(next(numbers), torch.randint(4, 50, (size,), generator=draws).tolist(), Limits(9))
            for _ in "abc"
        ]
        for size in (9, 7, 7, 5, 4, 2)
    ]


def found(models: list[Transformer], config: DecodeConfig, together: bool) -> list[list[list[Hypothesis]]]:
    engine = Models(models, "float32")
    with engine.working():
        if together:
            return engine.search_all(batches(), config)
        return [engine.search(batch, config) for batch in batches()]


@pytest.mark.parametrize("search", ["beam", "greedy", "sampling"])
@pytest.mark.parametrize("norm", ["layer", {"encoder": "layer", "decoder": "instance"}])
def test_threads_change_nothing(search: str, norm: object, threads: int) -> None:
    config = DecodeConfig(search=search)
    models = [Transformer(50, 50, norm=norm, seed=seed, **SHAPE) for seed in (1, 2)]
    together, alone = (found(models, config, at_once) for at_once in (True, False))
    for ours, theirs in zip(chain(*together), chain(*alone), strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], rel=1e-4)
    assert torch.get_num_threads() == threads


def test_each_thread_has_its_share_of_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, whole = [], Models._search

    def searched(self: Models, *arguments: object) -> object:
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return whole(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Models, "_search", searched)
    torch.set_num_threads(6)
    engine = Models([Transformer(50, 50, **SHAPE)], "float32")
    with engine.working():
        engine.search_all(batches()[:3], DecodeConfig())
        engine.search_all(batches()[:1], DecodeConfig())
    assert [threads for _, threads in seen] == [2, 2, 2, 6]
    assert seen[3][0] == threading.get_ident() not in {thread for thread, _ in seen[:3]}
    assert torch.get_num_threads() == 6


def test_what_goes_wrong_in_a_thread_is_said() -> None:
    model = Transformer(50, 50, **SHAPE)
    with torch.no_grad():
        model.output_table.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not numbers"):
        found([model], DecodeConfig(), together=True)
    assert torch.get_num_threads() == 3

"""The table of where translation's time goes counts every operator once."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchmarks import decoding_parts
from benchmarks.decoding_parts import (
    ATTENTION,
    FORMATTING,
    OF_VOCABULARY,
    OTHER,
    PROBABILITIES,
    PRODUCTS,
    measure,
    part_of,
)
from benchmarks.parts import Counted, Rates
from transformer import Transformer
from transformer.modules.int8 import int8_product, ways
from transformer.modules.products import has_onednn

V, D, ROW = 50, 16, torch.tensor([1])


@pytest.mark.parametrize(
    ("work", "part"),
    [
        (lambda x, w, v: F.linear(x, w), PRODUCTS),
        (lambda x, w, v: F.linear(x, v), OF_VOCABULARY),
        (lambda x, w, v: x.view(2, 4, D) @ x.view(2, D, 4), ATTENTION),
        (lambda x, w, v: x.softmax(-1), ATTENTION),
        (lambda x, w, v: v.T.log_softmax(-1), PROBABILITIES),
        (lambda x, w, v: v.T.topk(3), PROBABILITIES),
        (lambda x, w, v: v.view(5, 10, D).amax(-1), PROBABILITIES),
        (lambda x, w, v: x.abs().amax(-1), FORMATTING),
        (lambda x, w, v: x.to(torch.bfloat16), FORMATTING),
        (lambda x, w, v: x.index_select(0, ROW), "rows moved"),
        (lambda x, w, v: x.isnan(), OTHER),
    ],
)
@pytest.mark.parametrize("inference", [True, False])
def test_an_operator_belongs_to_one_part(work: Any, part: str, inference: bool) -> None:
    """Under inference_mode torch hands some over whole, that it takes apart elsewhere."""
    tensors = torch.randn(8, D), torch.randn(D, D), torch.randn(V, D)
    with torch.inference_mode(inference), Counted(partial(part_of, V)) as seen:
        work(*tensors)
    assert set(seen.parts) == {part}
    if part in (PRODUCTS, OF_VOCABULARY):
        assert seen.parts[part].operations == 2 * 8 * D * (V if part == OF_VOCABULARY else D)


@pytest.mark.skipif(not ways(), reason="this torch has no such product here")
def test_products_of_whole_numbers_are_counted() -> None:
    product = int8_product(torch.randn(V, D), None)
    with Counted(partial(part_of, V)) as seen:
        product(torch.randn(8, D))
    assert seen.parts[OF_VOCABULARY].operations == 2 * 8 * D * V
    assert seen.parts[OF_VOCABULARY].bytes >= 8 * D + V * D + 4 * 8 * V


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_batch_is_taken_apart(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_parts, "SENTENCES", 8)
    monkeypatch.setattr(decoding_parts, "LENGTH", 4)
    if precision == "int8" and not has_onednn():
        pytest.skip("this torch has no such product here")
    model = Transformer(V, V, d_model=16, heads=2, d_ff=16, encoder_layers=1, decoder_layers=1).eval()
    before = torch.get_num_threads()
    seconds, parts = measure(model, precision, 2, 1)
    assert seconds > 0
    assert min(part.seconds for part in parts.values()) > 0
    assert {PRODUCTS, OF_VOCABULARY, ATTENTION, PROBABILITIES} <= set(parts)
    assert torch.get_num_threads() == before


def test_a_format_that_does_not_exist_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["decoding_parts.py", "--precisions", "bf16,fp4"])
    with pytest.raises(SystemExit, match="2"):
        decoding_parts.main()
    assert "fp4; there are float32, bf16, int8" in capsys.readouterr().err


def test_processes_side_by_side_are_added_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoding_parts, "SENTENCES", 2)
    monkeypatch.setattr(decoding_parts, "LENGTH", 2)
    monkeypatch.setattr(Rates, "of", lambda dtype: Rates(1e11, 1e10))
    wanted = "--shape tiny --precisions float32 --batches 1 --beam 1 --processes 2"
    monkeypatch.setattr("sys.argv", ["decoding_parts.py", *wanted.split()])
    reports = decoding_parts.reports
    made: list[tuple[str, list[float]]] = []

    def seen(*arguments: Any) -> list[tuple[str, list[float]]]:
        made.extend(reports(*arguments))
        return made

    monkeypatch.setattr(decoding_parts, "reports", seen)
    assert decoding_parts.main() == 0
    (one, speeds), (_, others) = made
    out = capsys.readouterr().out
    assert out.startswith(one)
    assert f"sentences/s of 2 processes: {speeds[0] + others[0]:,.0f}; the operators alone: " in out
    assert min(*speeds, *others) > 0

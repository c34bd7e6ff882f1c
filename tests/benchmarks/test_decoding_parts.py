"""The table of where translation's time goes counts every operator once."""

from __future__ import annotations

import pytest
import torch

from benchmarks import decoding_parts
from benchmarks.decoding_parts import PARTS, measure, part_of
from transformer import Transformer
from transformer.modules.int8 import has_int8


@pytest.mark.parametrize(
    ("name", "shapes", "part"),
    [
        ("aten::addmm", [[4], [8, 16], [16, 4]], "products"),
        ("aten::_int_mm", [[8, 16], [16, 50]], "vocabulary's product"),
        ("aten::_log_softmax", [[8, 50]], "probabilities"),
        ("aten::_softmax", [[8, 4, 1, 9]], "attention"),
        ("aten::index_select", [[8, 4]], "rows moved"),
        ("aten::empty", [], "other"),
    ],
)
def test_an_operator_belongs_to_one_part(name: str, shapes: list[list[int]], part: str) -> None:
    assert part_of(name, shapes, 50) == part


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_batch_is_taken_apart(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_parts, "SENTENCES", 8)
    monkeypatch.setattr(decoding_parts, "LENGTH", 4)
    if precision == "int8" and not has_int8():
        pytest.skip("this torch has no such product here")
    model = Transformer(50, 50, d_model=16, heads=2, d_ff=16, encoder_layers=1, decoder_layers=1).eval()
    before = torch.get_num_threads()
    seconds, parts = measure(model, precision, 2, 1)
    assert seconds > 0
    assert min(parts.values()) >= 0
    assert min(parts[name] for name in ("products", "vocabulary's product", "attention")) > 0
    assert set(parts) <= {*PARTS, "vocabulary's product", "other", "python"}
    assert torch.get_num_threads() == before

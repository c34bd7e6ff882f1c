"""The work that is counted is the work that torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transformer import ModelConfig, Transformer
from transformer.data.batching import Batch, collate
from transformer.model.cost import cost_of
from transformer.speed.ceilings import Ceilings
from transformer.speed.work import Work, training_work, translation_work
from transformer.training.loss import sequence_loss

SOURCE, TARGET = 23, 31
CONFIG = ModelConfig(
    d_model=16, heads=2, d_ff=24, encoder_layers=2, decoder_layers=3, dropout=0.0, tie_embeddings="none"
)


def batch(source: int, target: int, pairs: int = 3) -> Batch:
    """Pairs of equal length: no padding."""
    ids = [([5] * (source - 1), [6] * (target - 1)) for _ in range(pairs)]
    return collate(ids, list(range(pairs)))


def test_an_update_is_what_torch_counts() -> None:
    model = Transformer(SOURCE, TARGET, CONFIG, seed=1)
    one = batch(source=7, target=5)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        hidden = model.hidden(one.source, one.target_in)
        sequence_loss(hidden, model.output_weight, one.target_out)[0].backward()
    counted = training_work(cost_of(CONFIG, SOURCE, TARGET), CONFIG, [one])
    # torch computes the decoder's future as well: the upper half of its own attention
    future = 3 * 4 * 16 * CONFIG.decoder_layers * 3 * (5 * 5 / 2)
    assert counter.get_total_flops() == pytest.approx(counted.operations + future)


def test_padding_is_no_work() -> None:
    cost = cost_of(CONFIG, SOURCE, TARGET)
    short, long = batch(4, 3, pairs=1), batch(9, 8, pairs=1)
    mixed = collate([([5] * 3, [6] * 2), ([5] * 8, [6] * 7)], [0, 1])
    apart = training_work(cost, CONFIG, [short, long])
    assert training_work(cost, CONFIG, [mixed]).operations == pytest.approx(apart.operations)
    assert training_work(cost, CONFIG, [mixed]).bytes == apart.bytes / 2


def test_a_translation_is_what_torch_counts() -> None:
    model = Transformer(SOURCE, TARGET, CONFIG, seed=1).eval()
    cost = cost_of(CONFIG, SOURCE, TARGET)
    source = torch.full((1, 6), 5)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(source, torch.full((1, 4), 6))  # four steps at once: the same products, and the future
    work = translation_work(cost, CONFIG, [(6, 4)], beam=1, bytes_each=4)
    future = 4 * 16 * CONFIG.decoder_layers * (16 - 10)
    assert counter.get_total_flops() == pytest.approx(work.operations + future)
    five = translation_work(cost, CONFIG, [(6, 4)], beam=5, bytes_each=4)
    encoder = cost.source * 6 + 4 * 16 * CONFIG.encoder_layers * 36
    assert five.operations - encoder == pytest.approx(5 * (work.operations - encoder))


def test_the_slower_of_products_and_copies_is_the_limit() -> None:
    ceilings = Ceilings({"float32": 100.0}, copy=10.0)
    assert Work(1000.0, 50.0).seconds(ceilings, "float32") == 10.0
    assert Work(1000.0, 500.0).seconds(ceilings, "float32") == 50.0

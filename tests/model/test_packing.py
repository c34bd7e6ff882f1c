"""A model packed for inference computes what the model computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from pairs import usual
from torch import nn
from torch.nn import functional as F

from transformer import NORMS, PLACEMENTS, Transformer
from transformer.core.errors import ConfigError
from transformer.decoding.config import DecodeConfig
from transformer.decoding.engine import Models, Request
from transformer.decoding.limits import Limits
from transformer.model.packing import Packed, can_be_packed
from transformer.modules import packed
from transformer.modules.packed import PackedLinear, PackedProducts
from transformer.modules.precision import InferencePrecision
from transformer.modules.products import has_onednn, onednn

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this torch has no such kernel here")
SHAPE = {"d_model": 32, "heads": 2, "d_ff": 48, "encoder_layers": 1, "decoder_layers": 2}


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products count as large ones."""
    monkeypatch.setattr(packed, "_LARGE", 1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Several batches at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def model(seed: int = 0, **flags: object) -> Transformer:
    made = Transformer(50, 50, **{**SHAPE, **flags})
    draws = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2, generator=draws)
    return made.eval()


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_is_the_product(dtype: torch.dtype, tolerance: float, bias: bool) -> None:
    linear, x = nn.Linear(24, 40, bias=bias), torch.randn(3, 5, 24)
    with torch.inference_mode():
        ours = PackedLinear(linear, PackedProducts(dtype))(x)
        torch.testing.assert_close(ours.float(), linear(x), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("wide", [True, False])
def test_a_product_with_the_vocabulary_s_table_is_the_product(
    wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "has_wide_vectors", lambda: wide)
    table, x = torch.randn(4000, 24), torch.randn(3, 50, 24)
    with torch.inference_mode():
        ours = PackedProducts(torch.float32).by(table, lambda: 2 * table)(x)
        torch.testing.assert_close(ours, F.linear(x, 2 * table), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("rows", "wide", "ours"), [(1, True, False), (40, True, True), (40, False, False)])
def test_large_float32_products_are_onednn_s_where_vectors_are_wide(
    monkeypatch: pytest.MonkeyPatch, rows: int, wide: bool, ours: bool
) -> None:
    linear, x, calls = nn.Linear(64, 500), torch.randn(rows, 64), []
    monkeypatch.setattr(packed, "has_wide_vectors", lambda: wide)
    monkeypatch.setattr(packed, "onednn", lambda *given: calls.append(given) or onednn(*given))
    with torch.inference_mode():
        found = PackedLinear(linear, PackedProducts(torch.float32))(x)
        torch.testing.assert_close(found, linear(x))
    assert bool(calls) is ours


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_is_the_same_packed(placement: str) -> None:
    _equal(model(placement=placement, norm=usual(placement)))


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_is_the_same_packed(norm: str) -> None:
    decoder = "layer" if NORMS[norm].span == "batch" else norm
    _equal(model(norm={"encoder": norm, "decoder": decoder}, allow_unsound=True))


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize(
    "flags",
    [
        {"tie_embeddings": "none"},
        {"tie_embeddings": "target_output", "fix_norm": True},
        {"activation": "swiglu", "qk_norm": "rms"},
        {"activation": "tlu", "norm": "frn", "qk_norm": "l2"},
        {"encoder_layers": 0},
    ],
)
def test_so_are_other_parts(flags: dict[str, object]) -> None:
    _equal(model(**flags))


def _equal(plain: Transformer) -> None:
    source, target = torch.randint(4, 50, (4, 6)), torch.randint(4, 50, (4, 7))
    source[1, 4:], source[3, 2:] = 0, 0
    with torch.inference_mode():
        ours = Packed(plain, torch.float32).copy()(source, target)
        torch.testing.assert_close(ours, plain(source, target), atol=1e-4, rtol=1e-4)


def found(engine: Models) -> object:
    requests = [Request(0, [5, 6, 7], Limits(4)), Request(1, [9, 4], Limits(4))]
    with engine.working():
        batches = [requests, [Request(2, [8, 9, 10, 11], Limits(4))], [Request(3, [12, 7], Limits(4))]]
        return engine.search_all(batches, DecodeConfig(beam=3))


def rewrite(model: Transformer) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)


def rewrite_unseen(model: Transformer) -> None:
    """As fused optimizers do: no version of a parameter counts it."""
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn_like(parameter) * 0.3)


def train(model: Transformer) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        ids = torch.randint(4, 50, (4, 6))
        model.train()(ids, ids).logsumexp(-1).sum().backward()
        optimizer.step()
    model.eval()


def replace(model: Transformer) -> None:
    for layer in model.decoder.layers:
        layer.feedforward.hidden = nn.Linear(32, 48)


def load(model: Transformer) -> None:
    rewritten = copy.deepcopy(model)
    rewrite(rewritten)
    model.load_state_dict(rewritten.state_dict())


CHANGES = [rewrite, rewrite_unseen, train, replace, load, Transformer.double]
FOLLOWED = [(change, "float32") for change in CHANGES]
FOLLOWED += [(replace, "bf16"), (rewrite_unseen, "bf16"), (load, "int8"), (Transformer.double, "int8")]
REST = [(c, p) for c in CHANGES for p in ("bf16", "int8") if (c, p) not in FOLLOWED]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("change", "precision"), [*FOLLOWED, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)]
)
def test_translation_follows_the_model(
    change: Callable[[Transformer], None], precision: InferencePrecision
) -> None:
    plain = model(decoder_layers=1)
    engine = Models([plain], precision)
    before = found(engine)
    assert found(engine) == before
    change(plain)
    if precision == "int8" and change is Transformer.double:
        with pytest.raises(ConfigError, match="int8 needs float32 weights"):
            found(engine)
        return
    after = found(engine)
    assert after != before
    assert after == found(Models([copy.deepcopy(plain)], precision))


def test_copies_share_parameters_and_products() -> None:
    plain = model()
    shared = Packed(plain, torch.bfloat16)
    copies = [shared.copy(), shared.copy()]
    ids = torch.randint(4, 50, (2, 5))
    with torch.inference_mode():
        copies[0](ids, ids)
        made = dict(shared.products._made)
        copies[1](ids, ids)
    assert made == shared.products._made
    for copied in copies:
        assert {id(p) for p in copied.parameters()} == {id(p) for p in plain.parameters()}
    assert plain.packed is None


def test_other_number_formats_stay_as_they_are() -> None:
    assert can_be_packed(model())
    assert not can_be_packed(model().double())

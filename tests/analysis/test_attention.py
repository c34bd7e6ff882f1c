"""Entropies, logits and lengths against numbers made by hand and against torch's own attention."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from transformer import PLACEMENTS
from transformer.analysis.attention import Attention, attention_of, head_statistics, projected
from transformer.analysis.setting import Arm, Batch, arms, build, random_batches
from transformer.core.special import PAD
from transformer.model.config import ModelConfig
from transformer.training.monitor import Monitor

TINY = {"d_model": 8, "heads": 2, "d_ff": 16, "encoder_layers": 2, "decoder_layers": 2}
SEEN = torch.ones(1, 1, 1, 3, dtype=torch.bool)


def real(*lengths: int, of: int) -> Tensor:
    return torch.arange(of)[None] < torch.tensor(lengths)[:, None]


def test_equal_keys_are_looked_at_alike() -> None:
    """Entropy ln 3, all of the possible."""
    key = torch.tensor([[[[1.0, 2.0]] * 3]])
    query = torch.tensor([[[[3.0, 4.0]]]])
    found = head_statistics(query, key, SEEN, real(1, of=1), real(3, of=3))
    assert found.entropy.tolist() == pytest.approx([math.log(3)])
    assert found.share.tolist() == pytest.approx([1])
    assert found.logit.tolist() == pytest.approx([11 / math.sqrt(2)])
    assert found.query.tolist() == pytest.approx([5])
    assert found.key.tolist() == pytest.approx([math.sqrt(5)])


def test_weights_of_a_half_and_two_quarters_by_hand() -> None:
    """Logits ln 2, 0, 0: weights 1/2, 1/4, 1/4, entropy 1.5 ln 2."""
    key = torch.tensor([[[[math.log(2)], [0.0], [0.0]]]])
    found = head_statistics(torch.ones(1, 1, 1, 1), key, SEEN, real(1, of=1), real(3, of=3))
    assert found.entropy.item() == pytest.approx(1.5 * math.log(2))
    assert found.share.item() == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert found.logit.item() == pytest.approx(math.log(2))


def test_a_huge_logit_leaves_no_entropy() -> None:
    key = torch.tensor([[[[500.0], [0.0], [0.0]]]])
    found = head_statistics(torch.ones(1, 1, 1, 1), key, SEEN, real(1, of=1), real(3, of=3))
    assert found.entropy.item() == 0
    assert found.logit.item() == 500


def test_keys_out_of_sight_and_padding_do_not_count() -> None:
    """Two sentences; the second has one query of two, and two keys of three, with nonsense in its padding."""
    query = torch.tensor([[[[0.0], [0.0]]], [[[0.0], [9e3]]]])
    key = torch.tensor([[[[2.0], [2.0], [2.0]]], [[[1.0], [1.0], [-7e3]]]])
    known, asked = real(3, 2, of=3), real(2, 1, of=2)
    found = head_statistics(query, key, known[:, None, None, :], asked, known)
    assert found.entropy.item() == pytest.approx((2 * math.log(3) + math.log(2)) / 3)
    assert found.share.item() == pytest.approx(1)
    assert found.logit.item() == 0
    assert found.query.item() == 0
    assert found.key.item() == pytest.approx((3 * 2 + 2 * 1) / 5)


def test_a_query_that_sees_one_key_has_no_share() -> None:
    """Causal, three columns: entropies 0, ln 2, ln 3; the shares of the last two are 1."""
    query = key = torch.zeros(1, 1, 3, 4)
    causal = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    found = head_statistics(query, key, causal, real(3, of=3), real(3, of=3))
    assert found.entropy.item() == pytest.approx((math.log(2) + math.log(3)) / 3)
    assert found.share.item() == pytest.approx(1)


def test_heads_are_kept_apart() -> None:
    query = torch.ones(1, 2, 1, 1)
    key = torch.tensor([[[[0.0], [0.0], [0.0]], [[50.0], [0.0], [0.0]]]])
    found = head_statistics(query, key, SEEN, real(1, of=1), real(3, of=3))
    assert found.share.tolist() == pytest.approx([1, 0], abs=1e-6)
    assert found.logit.tolist() == [0, 50]


@pytest.mark.parametrize("qk_norm", ["none", "l2", "rms"])
def test_queries_and_keys_are_those_that_the_module_attends_with(qk_norm: str) -> None:
    """With its own values they give the module's output, masks and norms of queries and keys included."""
    config = ModelConfig.model_validate({**TINY, "qk_norm": qk_norm})
    module = build(Arm("x", config), (20, 20), 1).decoder.layers[0].cross_attention
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    mask = real(5, 2, of=5)[:, None, None, :]
    query, key = projected(module, x, memory)
    value = module.value(memory).unflatten(-1, (2, 4)).transpose(1, 2)
    weights = (query @ key.mT / math.sqrt(4)).masked_fill(~mask, -math.inf).softmax(-1)
    expected = module.output((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, memory, mask), expected)


@pytest.fixture
def batch() -> Batch:
    return random_batches(1, 4, 9, 20, seed=1)[0]


def test_each_attention_of_a_model_sees_what_it_may_see(batch: Batch) -> None:
    """With query matrices of zeros every row is uniform: entropies count the visible keys."""
    model = build(Arm("pre", ModelConfig.model_validate(TINY)), (20, 20), 1)
    for name, parameter in model.named_parameters():
        if ".query." in name:
            parameter.data.zero_()
    found = attention_of(model, [batch])
    assert list(found) == [(n, i) for n in ("encoder self", "decoder self", "cross") for i in (1, 2)]
    sources = (batch[0] != PAD).sum(1).tolist()
    targets = (batch[2] != PAD).sum(1).tolist()
    encoder = sum(s * math.log(s) for s in sources) / sum(sources)
    decoder = sum(math.log(c) for t in targets for c in range(1, t + 1)) / sum(targets)
    cross = sum(t * math.log(s) for s, t in zip(sources, targets, strict=True)) / sum(targets)
    for (name, _), heads in found.items():
        expected = {"encoder self": encoder, "decoder self": decoder, "cross": cross}[name]
        assert heads.entropy.tolist() == pytest.approx([expected] * 2, rel=1e-5), name
        assert heads.share.tolist() == pytest.approx([1, 1], rel=1e-5)
        assert heads.logit.tolist() == [0, 0]


def test_a_window_narrows_what_the_decoder_sees(batch: Batch) -> None:
    config = ModelConfig.model_validate({**TINY, "attention_window": 2})
    model = build(Arm("pre", config), (20, 20), 1)
    for name, parameter in model.named_parameters():
        if ".query." in name:
            parameter.data.zero_()
    targets = (batch[2] != PAD).sum(1).tolist()
    expected = sum((t - 1) * math.log(2) for t in targets) / sum(targets)
    assert attention_of(model, [batch])["decoder self", 1].entropy.tolist() == pytest.approx([expected] * 2)


def test_batches_count_by_their_tokens() -> None:
    """Two batches of unequal size and length give what one of all their sentences gives."""
    one, other = random_batches(1, 4, 9, 20, seed=1)[0], random_batches(1, 2, 5, 20, seed=2)[0]
    widths = [max(a.shape[1], b.shape[1]) for a, b in zip(one, other, strict=True)]
    joined = [
        torch.cat([F.pad(side, (0, width - side.shape[1]), value=PAD) for side in pair])
        for pair, width in zip(zip(one, other, strict=True), widths, strict=True)
    ]
    model = build(Arm("pre", ModelConfig.model_validate(TINY)), (20, 20), 1)
    found, expected = attention_of(model, [one, other]), attention_of(model, [tuple(joined)])
    first = attention_of(model, [one])
    for key, heads in expected.items():
        for name in ("logit", "entropy", "share", "query", "key"):
            torch.testing.assert_close(getattr(found[key], name), getattr(heads, name))
        assert not torch.allclose(first[key].entropy, heads.entropy)


def test_listening_leaves_the_model_as_it_was(batch: Batch) -> None:
    model = build(Arm("post", ModelConfig.model_validate({**TINY, "placement": "post"})), (20, 20), 1)
    before = model(*batch[:2])
    attention_of(model, [batch])
    assert torch.equal(model(*batch[:2]), before)
    assert not any(sub._forward_pre_hooks for _, sub in model.sites())


def test_every_placement_can_be_measured(batch: Batch) -> None:
    chosen = arms(ModelConfig.model_validate(TINY), list(PLACEMENTS))
    finding = Attention().run(chosen, [batch], (20, 20), [1], lambda text: None)
    assert len(finding.rows) == 6 * len(PLACEMENTS)
    assert all(math.isfinite(value) for row in finding.rows for value in row[3:])
    assert all(0 <= row[5] <= 1 for row in finding.rows)


def test_one_row_a_head_on_request(batch: Batch) -> None:
    chosen = arms(ModelConfig.model_validate(TINY), ["pre"])
    by_head = Attention(heads=True).run(chosen, [batch], (20, 20), [1], lambda text: None)
    by_layer = Attention().run(chosen, [batch], (20, 20), [1], lambda text: None)
    assert len(by_head.rows) == 2 * len(by_layer.rows)
    assert all(len(row) == len(by_head.columns) for row in by_head.rows)
    two, one = by_head.rows[:2], by_layer.rows[0]
    assert one[3] == max(row[4] for row in two)
    assert one[5] == pytest.approx(sum(row[6] for row in two) / 2)


def test_the_same_numbers_as_torchs_fused_attention(batch: Batch) -> None:
    """The weights behind F.scaled_dot_product_attention, read off with the identity for values."""
    model = build(Arm("pre", ModelConfig.model_validate(TINY)), (20, 20), 1)
    module = model.encoder.layers[0].self_attention
    x = torch.randn(4, batch[0].shape[1], 8)
    query, key = projected(module, x, x)
    known = batch[0] != PAD
    identity = torch.eye(key.shape[2]).expand(4, 2, -1, -1)
    weights = F.scaled_dot_product_attention(query, key, identity, known[:, None, None, :])
    rows = -(weights * weights.clamp(min=1e-30).log()).sum(-1)  # (B, H, S)
    expected = (rows * known[:, None]).sum((0, 2)) / known.sum()
    found = head_statistics(query, key, known[:, None, None, :], known, known)
    torch.testing.assert_close(found.entropy, expected)


@pytest.mark.parametrize("qk_norm", ["none", "rms"])
def test_training_logs_the_mean_of_the_heads_entropies_and_their_largest_logit(
    qk_norm: str, batch: Batch
) -> None:
    """Two codes measure attention: by head here, a number a module in `training.monitor`. They agree."""
    model = build(Arm("pre", ModelConfig.model_validate({**TINY, "qk_norm": qk_norm})), (20, 20), 1)
    monitor = Monitor(model, every=1)
    source, target_in, _ = batch
    with torch.no_grad(), monitor.at(1).forward(SimpleNamespace(source=source, target_in=target_in)):
        model.hidden(source, target_in)
    logged = monitor.read()
    assert logged is not None
    for (name, layer), heads in attention_of(model, [batch]).items():
        stack, prefix = ("decoder", "cross_") if name == "cross" else (name.split()[0], "")
        entropy, logit = (logged[stack][f"{prefix}{what}"][layer - 1] for what in ("entropy", "logit"))
        assert heads.entropy.mean().item() == pytest.approx(entropy, rel=1e-3)
        assert heads.logit.max().item() == pytest.approx(logit, rel=1e-3)

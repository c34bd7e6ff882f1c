"""Norms whose statistics span tokens: their formulas, padding, the future, decoding, whole models."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from norm_oracles.tokens import CASES, ORACLES
from norm_passes import lengths_to_real, made, run
from torch import Tensor, nn

from transformer import NORMS, Transformer
from transformer.core.special import BOS, PAD
from transformer.decoding.cache import DecoderCache
from transformer.decoding.next_token import ModelNextToken

D = 6
OF_SENTENCE = [name for name in NORMS if NORMS[name].span == "sentence"]
OF_BATCH = [name for name in NORMS if NORMS[name].span == "batch"]
RUNS = [(name, options) for name in (*OF_SENTENCE, *OF_BATCH) for options in CASES.get(name, [{}])]
FORMS = [(n, o, causal) for n, o in RUNS for causal in (False, True) if n in OF_SENTENCE or not causal]
REAL = lengths_to_real([5, 2, 1], 5)


def inputs(batch: int = 3, length: int = 5) -> Tensor:
    return 3 * torch.randn(batch, length, D, dtype=torch.float64) + 2


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("name", "options", "causal"), FORMS)
def test_a_norm_equals_its_formula_forward_and_backward(
    name: str, options: dict[str, Any], causal: bool, masked: bool
) -> None:
    torch.set_default_dtype(torch.float64)
    norm, x, upstream = made(name, D, causal=causal, **options), inputs().requires_grad_(), inputs()
    holes = REAL.clone()  # padding may stand anywhere
    holes[0, 2] = holes[1, 0] = False
    parameters, real = dict(norm.named_parameters()), holes if masked else None
    form = {"causal": True} if causal else {}
    outputs = []
    for y in (run(norm, x, real), ORACLES[name](x, parameters, 1e-3, real=real, **form, **options)):
        outputs.append([y, *torch.autograd.grad(y, [x, *parameters.values()], upstream)])
    for ours, oracle in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "causal"), [(n, c) for n, _, c in FORMS])
def test_nothing_that_padding_holds_gets_out(name: str, causal: bool, training: bool) -> None:
    norm, x = made(name, D, causal=causal).double().train(training), inputs()
    results = []
    for garbage in (0.0, 1e6, float("nan")):
        own = copy.deepcopy(norm)
        given = x.masked_fill(~REAL[..., None], garbage).requires_grad_()
        y = run(own, given, REAL)
        y.sum().backward()
        results.append([y, given.grad, *own.buffers(), *(p.grad for p in own.parameters())])
        assert y[~REAL].eq(0).all()
        assert y[REAL].abs().sum() > 0
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", OF_SENTENCE)
def test_a_sentence_is_normed_as_if_it_were_alone(name: str, causal: bool) -> None:
    norm, x = made(name, D, causal=causal).double(), inputs()
    together = run(norm, x, REAL)
    for row, length in enumerate(REAL.sum(1).tolist()):
        alone = run(norm, x[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OF_BATCH)
def test_a_batch_is_normed_as_if_its_tokens_stood_in_one_row(name: str, training: bool) -> None:
    norm, x = made(name, D).double().train(training), inputs()
    alone = copy.deepcopy(norm)
    y = run(norm, x, REAL)
    torch.testing.assert_close(y[REAL], run(alone, x[REAL][None])[0], rtol=1e-12, atol=1e-12)
    for one, other in zip(norm.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "causal"), [(n, c) for n, _, c in FORMS])
def test_a_row_of_padding_only_is_safe(name: str, causal: bool, training: bool) -> None:
    norm = made(name, D, causal=causal).double().train(training)
    other, x = copy.deepcopy(norm), inputs().requires_grad_()
    real = lengths_to_real([4, 0, 3], 5)
    y = run(norm, x, real)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    without = run(other, x[[0, 2]], real[[0, 2]])
    torch.testing.assert_close(y[[0, 2]], without, rtol=1e-12, atol=1e-12)

    nothing = run(norm, torch.zeros_like(x), torch.zeros_like(real))
    assert nothing.eq(0).all()
    assert all(value.isfinite().all() for value in norm.state_dict().values())


@pytest.mark.parametrize("name", OF_SENTENCE)
def test_a_causal_norm_does_not_see_the_future_and_sees_the_past(name: str) -> None:
    norm, x = made(name, D, causal=True).double(), inputs()
    y = run(norm, x)
    for t in range(5):
        changed = x.clone()
        changed[0, t] += 1.0 + torch.rand(D)
        difference = (run(norm, changed) - y).abs().sum(-1)
        assert difference[0, :t].eq(0).all()
        assert difference[0, t + 1 :].gt(1e-3).all()
        assert difference[1:].eq(0).all()
    assert not torch.allclose(run(made(name, D).double(), x)[:, :-1], y[:, :-1])


@pytest.mark.parametrize("columns", [[1] * 7, [3, 1, 2, 1], [7]])
@pytest.mark.parametrize("name", OF_SENTENCE)
def test_decoding_step_by_step_equals_the_whole_also_when_rows_change_places(
    name: str, columns: list[int]
) -> None:
    norm, neighbour = (made(name, D, causal=True).double() for _ in range(2))
    neighbour.join(norm.tokens)
    assert norm.place == 0
    norm.join(norm.tokens)
    x, real = inputs(4, 7), torch.ones(4, 7, dtype=torch.bool)
    real[1, 4] = False
    cache, rows, past = DecoderCache(1, 4), torch.arange(4), 0
    for width in columns:
        part = slice(past, past + width)
        step = run(norm, x[:, part], real[:, part], cache.norms, past)
        other = run(neighbour, -x[:, part], real[:, part], cache.norms, past)
        past += width
        torch.testing.assert_close(step, run(norm, x[:, :past], real[:, :past])[:, part])
        torch.testing.assert_close(other, run(neighbour, -x[:, :past], real[:, :past])[:, part])
        rows = torch.tensor([2, 0, 0, len(x) - 1, 1])
        cache.select(rows)
        x, real = x[rows], real[rows]


@pytest.mark.parametrize("name", OF_SENTENCE)
def test_cumulative_statistics_in_float32_are_those_of_float64(name: str) -> None:
    """Far from zero, and after a first token that stands out, the variance does not cancel."""
    x = torch.randn(2, 300, D) + 1000
    x[1] = torch.randn(300, D)
    x[1, 0] = 300.0
    norm = made(name, D, causal=True, floor=1e-5)
    expected = run(copy.deepcopy(norm).double(), x.double())
    torch.testing.assert_close(run(norm, x).double(), expected, rtol=2e-3, atol=2e-3)


def test_a_constant_channel_has_no_cumulative_variance() -> None:
    norm = made("instance", D, causal=True, floor=1e-12)
    x = torch.tensor([1 / 3, 1e4, -7.7, 0.0, 1e-4, 333.3]).expand(2, 50, D)
    torch.testing.assert_close(run(norm, x), norm.bias.expand(2, 50, D))


def test_without_padding_instance_norm_is_torchs() -> None:
    norm, theirs = (
        made("instance", D, floor=1e-3).double(),
        nn.InstanceNorm1d(D, eps=1e-3, affine=True).double(),
    )
    theirs.load_state_dict(norm.state_dict())
    x = inputs()
    torch.testing.assert_close(run(norm, x), theirs(x.mT).mT, rtol=1e-12, atol=1e-12)


def test_frn_learns_its_eps_or_takes_the_given_one() -> None:
    assert NORMS["frn"](D, floor=0.5).eps.item() == 0.5
    fixed = NORMS["frn"](D, floor=0.5, learn_eps=False)
    assert fixed.eps == 0.5
    assert "eps" not in dict(fixed.named_parameters())
    norm, x = NORMS["frn"](D).double(), inputs(1, 1) / 100
    positive = norm(x)
    norm.eps.data.neg_()
    assert torch.equal(norm(x), positive)
    norm(x).pow(2).sum().backward()
    assert norm.eps.grad > 0  # d/d eps of 1 / (nu2 + |eps|) is negative, of |eps| too


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_statistics_are_float32_for_a_bf16_input(name: str, options: dict[str, Any]) -> None:
    norm = NORMS[name](D, **options)
    x = (torch.randn(3, 50, D) + 300).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = copy.deepcopy(norm)(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, norm(x.float()).bfloat16())


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_a_norm_survives_copying_pickling_and_loading(name: str, options: dict[str, Any]) -> None:
    norm, x = made(name, D, **options).double(), inputs()
    run(norm, x).sum().backward()
    loaded = NORMS[name](D, 1e-3, **options).double()
    loaded.load_state_dict(norm.state_dict())
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), loaded):
        for training in (False, True):
            assert torch.equal(copy.deepcopy(norm).train(training)(x), other.train(training)(x))


# The length of a sentence is nothing to a norm of one token.
@pytest.mark.parametrize(
    ("name", "length"),
    [
        pytest.param(name, length, marks=pytest.mark.slow if length == 2 and name not in OF_SENTENCE else [])
        for name in NORMS
        if NORMS[name].span != "batch" and NORMS[name].normalises
        for length in (20, 2)
    ],
)
def test_the_float32_gradient_of_six_and_six_layers_is_float64s_within_a_thousandth(
    name: str, length: int
) -> None:
    """A causal stack's first columns and a sentence of two tokens have statistics of one or two numbers: in
    each site rounding errors grow by the norm's slope there.
    """
    model = Transformer(60, 60, norm=name, d_model=64, heads=4, d_ff=128, dropout=0.0, seed=1)
    source, target = torch.randint(4, 60, (2, length)), torch.randint(4, 60, (2, 21))
    gradients = []
    for each in (model, copy.deepcopy(model).double()):
        logits = each(source, target[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
        found = torch.autograd.grad(loss, list(each.parameters()))
        gradients.append(torch.cat([g.double().flatten() for g in found]))
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert 0 < error < 1e-3


PLANS: list[Any] = [
    *OF_SENTENCE,
    *({"encoder": name, "decoder": "layer"} for name in OF_BATCH),
    {"encoder": "power", "decoder": "instance"},
]
CAPTURED = [{"encoder": "power", "decoder": "instance"}, {"encoder": "batch", "decoder": "frn"}]


def small(norm: Any, placement: str = "pre", **flags: Any) -> Transformer:
    flags = {"d_model": 8, "heads": 2, "d_ff": 12, "encoder_layers": 2, "decoder_layers": 2} | flags
    model = Transformer(19, 19, placement=placement, norm=norm, dropout=0.0, **flags)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0)
    return model


SOURCE = torch.tensor([[5, 6, 7, 8, 9], [4, 5, PAD, PAD, PAD], [9, 8, 7, PAD, PAD]])
TARGET = torch.tensor([[BOS, 5, 6, 7, 8], [BOS, 9, 10, PAD, PAD], [BOS, 4, 5, 6, 7]])


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("norm", PLANS, ids=str)
def test_a_model_of_them_is_causal_and_knows_no_padding(norm: Any, placement: str) -> None:
    torch.set_default_dtype(torch.float64)
    model = small(norm, placement).train()
    model(SOURCE, TARGET)  # running statistics
    model.eval()
    logits = model(SOURCE, TARGET)
    for t in range(1, 5):
        changed = TARGET.clone()
        changed[0, t] = 15
        difference = (model(SOURCE, changed) - logits).abs().sum(-1)
        assert difference[0, :t].eq(0).all()
        assert difference[0, t:].gt(0).any()
    for row in range(3):
        source, target = SOURCE[row][SOURCE[row] != PAD], TARGET[row][TARGET[row] != PAD]
        alone = model(source[None], target[None])[0]
        torch.testing.assert_close(alone, logits[row, : len(target)], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", PLANS, ids=str)
def test_more_padding_changes_no_gradient_and_no_running_statistic(norm: Any) -> None:
    torch.set_default_dtype(torch.float64)
    models = [small(norm, "post").train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    more = (nn.functional.pad(SOURCE, (0, 3), value=PAD), nn.functional.pad(TARGET, (0, 2), value=PAD))
    upstream = torch.randn(3, 5, 19)
    for model, (source, target) in zip(models, ((SOURCE, TARGET), more), strict=True):
        logits = model(source, target)[:, :5]
        (logits * upstream)[TARGET != PAD].sum().backward()
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-10, msg=name)
    for one, other in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("norm", PLANS, ids=str)
def test_a_model_of_them_decodes_the_same_with_and_without_a_cache(norm: Any, placement: str) -> None:
    torch.set_default_dtype(torch.float64)
    model = small(norm, placement).train()
    model(SOURCE, TARGET)
    model.eval()
    steps = [ModelNextToken(model, incremental=i).start(SOURCE) for i in (True, False)]
    rows = [torch.tensor(r) for r in ([0, 0, 1, 1, 2], [4, 2, 0, 1, 3], [1, 0, 3, 3], [0, 1])]
    tokens = torch.full((3,), BOS)
    for chosen in rows:
        cached, whole = (step.step(tokens) for step in steps)
        torch.testing.assert_close(cached, whole, rtol=1e-9, atol=1e-9)
        for step in steps:
            step.select(chosen)
        tokens = torch.randint(4, 19, (len(chosen),))


@pytest.mark.parametrize("name", [*OF_SENTENCE, *OF_BATCH])
def test_a_norm_of_them_is_captured_with_its_backward_pass(name: str) -> None:
    norm, x = NORMS[name](D).double(), inputs().requires_grad_()
    twin = copy.deepcopy(norm)
    captured = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for training in (True, True, False):
        upstream, found = inputs(), []
        for each, call in ((norm, norm), (twin, captured)):
            each.train(training)
            y = call(x)
            found.append([y, *torch.autograd.grad(y, [x, *each.parameters()], upstream), *each.buffers()])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)
    torch._dynamo.reset()


@pytest.mark.parametrize(  # aot_eager captures the backward pass too
    ("norm", "backend"),
    [
        pytest.param(
            norm, backend, marks=pytest.mark.slow if norm in CAPTURED[1:] or backend != "eager" else []
        )
        for norm in CAPTURED
        for backend in ("eager", "aot_eager")
    ],
    ids=str,
)
def test_a_model_of_them_is_captured_whole(norm: Any, backend: str) -> None:
    model = small(norm, encoder_layers=1, decoder_layers=1).double()
    twin = copy.deepcopy(model)
    captured = torch.compile(twin, fullgraph=True, backend=backend)
    for training in (True, True, False):
        upstream = torch.randn(3, 5, 19, dtype=torch.float64)
        for each, call in ((model, model), (twin, captured)):
            each.train(training)
            (call(SOURCE, TARGET) * upstream).sum().backward()
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        for one, other in zip(model.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(one, other)
    torch._dynamo.reset()

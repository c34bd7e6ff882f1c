"""The matrix: what every placement must keep with every norm that goes with it.

Small models, one layer or two a stack; a pair that makes no sense is refused, with the reason. `make slow`
tries the pairs that cannot disturb each other: `pairs.MATRIX` says which.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pairs import ILLEGAL, MATRIX, ONCE, OVER_A_BATCH, PAIRS, extras, plan, usual
from pydantic import ValidationError
from torch import Tensor

from transformer import NORMS, PLACEMENTS, ModelConfig, Transformer
from transformer.decoding import ModelNextToken
from transformer.modules.masks import padding_mask
from transformer.modules.norms import Norm
from transformer.modules.precision import autocast

V = 24
SHAPE = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 2, "decoder_layers": 2}
matrix = pytest.mark.parametrize(("placement", "norm"), MATRIX)
once = pytest.mark.parametrize(
    ("placement", "norm"),
    [pair if pair in ONCE else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS],
)


def build(placement: str, norm: str, **flags: Any) -> Transformer:
    return Transformer(
        V, V, placement=placement, norm=plan(norm), **extras(placement, norm), **{**SHAPE, **flags}, seed=1
    )


def ids(*shape: int) -> Tensor:
    return torch.randint(4, V, shape)


@pytest.mark.parametrize(("placement", "norm"), ILLEGAL)
def test_a_pair_that_makes_no_sense_is_refused_with_the_reason(placement: str, norm: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        ModelConfig(placement=placement, norm=plan(norm))
    assert norm in str(refusal.value)
    assert placement in str(refusal.value)


@pytest.mark.parametrize("norm", sorted(OVER_A_BATCH))
def test_a_decoder_refuses_statistics_over_a_batch(norm: str) -> None:
    with pytest.raises(ValidationError, match="decoder"):
        ModelConfig(placement="pre", norm=norm)
    ModelConfig(placement="pre", norm=norm, allow_unsound=True)


@matrix
def test_a_token_never_changes_the_logits_before_it(placement: str, norm: str) -> None:
    """Row t of the batch has another token in column t; the last row has none."""
    torch.set_default_dtype(torch.float64)
    model = build(placement, norm, dropout=0.0)
    length = 5
    target = ids(1, length).repeat(length + 1, 1)
    for t in range(length):
        target[t, t] = 4 + (target[t, t] - 3) % (V - 4)
    source = ids(1, 6).repeat(length + 1, 1)
    for train in (True, False):
        logits = model.train(train)(source, target)
        difference = (logits - logits[-1]).abs().amax(-1)
        for t in range(length):
            assert difference[t, :t].le(1e-12).all()
            assert difference[t, t:].max() > 1e-6


@matrix
def test_padding_never_changes_a_result(placement: str, norm: str) -> None:
    """Evaluation in every case; in training where a batch's other sentences are no part of a result."""
    torch.set_default_dtype(torch.float64)
    model = build(placement, norm, dropout=0.0)
    source, target, other = ids(1, 5), ids(1, 4), ids(1, 7)
    padded = torch.cat([source, source.new_zeros(1, 4)], 1), torch.cat([target, target.new_zeros(1, 3)], 1)
    for train in (True, False):
        alone = model.train(train)(source, target)
        torch.testing.assert_close(model(*padded)[:, :4], alone, rtol=1e-10, atol=1e-10)
        if train and norm in OVER_A_BATCH:
            continue
        beside = model(torch.cat([padded[0], ids(1, 9)]), torch.cat([padded[1], other]))[:1, :4]
        torch.testing.assert_close(beside, alone, rtol=1e-10, atol=1e-10)


@once
def test_two_steps_have_finite_gradients_that_reach_the_embedding(placement: str, norm: str) -> None:
    """The second step's: gates and last matrices that start at zero let nothing through before."""
    for dtype in (torch.float32, torch.bfloat16):
        model = build(placement, norm).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        source, target = ids(3, 5), ids(3, 6)
        source[0, 3:], target[1, 4:] = 0, 0
        for _ in range(2):
            with autocast(torch.device("cpu"), dtype):
                logits = model(source, target[:, :-1])
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), target[:, 1:].flatten(), ignore_index=0
            )
            optimizer.zero_grad()
            loss.backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
            optimizer.step()
        used = source.unique()[1:]
        assert model.source_embedding.tokens.weight.grad[used].abs().sum(1).gt(0).all()


@matrix
def test_cached_steps_equal_the_whole_pass(placement: str, norm: str) -> None:
    """In evaluation, with rows that change places and repeat, as in beam search."""
    torch.set_default_dtype(torch.float64)
    model = build(placement, norm).eval()
    source = ids(3, 6)
    source[1, 4:] = 0
    with torch.inference_mode():
        cached, whole = (ModelNextToken(model, incremental).start(source) for incremental in (True, False))
        tokens = torch.full((3,), 2)
        for move in ([0, 0, 1, 2], [1, 0, 3, 2], [3, 2, 1], [0, 1, 2]):
            expected = whole.step(tokens)
            torch.testing.assert_close(cached.step(tokens), expected, rtol=1e-9, atol=1e-10)
            rows = torch.tensor(move)
            cached.select(rows)
            whole.select(rows)
            tokens = expected.topk(2).indices[:, 1].index_select(0, rows)


@once
def test_a_state_dict_round_trip_gives_the_same_model(placement: str, norm: str) -> None:
    model, other = build(placement, norm), build(placement, norm).eval()
    source, target = ids(2, 5), ids(2, 5)
    model(source, target)  # running statistics, where there are some, are no longer the initial ones
    model.eval()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    assert not torch.equal(model(source, target), other(source, target))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(source, target), other(source, target))


def mixed(placement: str, turn: int, encoder: int, decoder: int) -> tuple[dict[str, Any], set[str]]:
    """A plan of so many layers with the placement's norms, one sublayer after the other; and these norms."""
    norms = [norm for p, norm in PAIRS if p == placement]
    plans, found = dict[str, Any](), set[str]()
    for stack, layers, parts in (
        ("encoder", encoder, ["self_attention", "feed_forward"]),
        ("decoder", decoder, ["self_attention", "cross_attention", "feed_forward"]),
    ):
        legal = [norm for norm in norms if stack == "encoder" or norm not in OVER_A_BATCH]
        sites = [(str(layer), part) for layer in range(1, layers + 1) for part in parts]
        plans[stack] = {layer: {"default": legal[0]} for layer, _ in sites}
        for i, (layer, part) in enumerate(sites):
            plans[stack][layer][part] = legal[(len(sites) * turn + i) % len(legal)]
            found.add(plans[stack][layer][part])
    return plans, found


def compiles(
    placement: str, norms: dict[str, Any], found: set[str], training: bool, whole: bool = True
) -> None:
    """The model, or its encoder alone, is one graph with the same numbers (in float64: layers amplify)."""
    shape = {**SHAPE, **{f"{stack}_layers": len(plan) or 1 for stack, plan in norms.items()}}
    dropout = 0.0 if training else 0.1
    options = extras(placement, "layer")
    norm = {"default": usual(placement), **{stack: plan for stack, plan in norms.items() if plan}}
    model = Transformer(V, V, placement=placement, norm=norm, dropout=dropout, **options, **shape).double()
    part = model if whole else model.encoder
    assert {type(m) for m in part.modules() if isinstance(m, Norm)} >= {NORMS[n] for n in found - {"none"}}
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    source = ids(2, 5)
    given = (
        (source, ids(2, 4)) if whole else (torch.randn(2, 5, 16, dtype=torch.float64), padding_mask(source))
    )
    # Statistics over a batch go on in training: of each the first pass.
    expected = copy.deepcopy(part).train(training)(*given)
    compiled = torch.compile(part.train(training), backend=count, fullgraph=True)
    torch.testing.assert_close(compiled(*given), expected, rtol=1e-9, atol=1e-9)
    assert len(graphs) == 1
    torch._dynamo.reset()


# Each placement in one of the two modes, in turn, and a layer of the encoder: compiling takes seconds. By
# `make test` the first of those that are wired alike; hyper and reversible have tests of their own.
ONE_LAYER = {name: mixed(name, i, 1, 0) for i, name in enumerate(PLACEMENTS)}
WIRED = ("post", "b2t", "admin", "pre", "mix", "hybrid", "resi_dual", "rezero")


@pytest.mark.parametrize(
    ("placement", "training"),
    [
        pytest.param(name, i % 2 == 0, marks=[] if name in WIRED else pytest.mark.slow)
        for i, name in enumerate(PLACEMENTS)
    ],
)
def test_a_placement_with_several_norms_compiles_into_one_graph(placement: str, training: bool) -> None:
    compiles(placement, *ONE_LAYER[placement], training, whole=False)


def test_each_norm_is_among_those_that_compile() -> None:
    assert set().union(*(found for _, found in ONE_LAYER.values())) == set(NORMS)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_model_with_every_norm_compiles_into_one_graph(placement: str, training: bool) -> None:
    norms, found = mixed(placement, 0, 8, 5)
    assert found == {norm for p, norm in PAIRS if p == placement}
    compiles(placement, norms, found, training)


VARYING = [  # by `make test` one norm of a token, in tests/training/test_compilation.py
    pytest.param("post", "layer", marks=pytest.mark.slow),
    pytest.param("pre", "instance", marks=pytest.mark.slow),
    pytest.param("hyper", "layer", marks=pytest.mark.slow),
    pytest.param("reversible", "rms", marks=pytest.mark.slow),
    pytest.param("pre", "power", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("placement", "norm"), VARYING)
def test_a_compiled_model_takes_other_lengths_without_a_graph_for_each(placement: str, norm: str) -> None:
    model = build(placement, norm, dropout=0.0, encoder_layers=0, decoder_layers=1)
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count, fullgraph=True)
    for source_length, length in ((5, 4), (7, 6), (9, 5), (6, 11)):
        source, target = ids(2, source_length), ids(2, length)
        torch.testing.assert_close(compiled(source, target), model(source, target), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 2  # one for the first lengths, one for all others
    torch._dynamo.reset()

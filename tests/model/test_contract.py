"""What every placement x norm must keep: causality, padding invariance, determinism, round trips."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor

from transformer import NORMS, PLACEMENTS, Transformer
from transformer.core.errors import ConfigError
from transformer.modules.precision import autocast

PAIRS = list(itertools.product(PLACEMENTS, NORMS))
V = 24
SHAPE = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 2, "decoder_layers": 2}


def build(placement: str, norm: str, **flags: object) -> Transformer:
    return Transformer(V, V, placement=placement, norm=norm, **{**SHAPE, **flags}, seed=1)


def ids(*shape: int) -> Tensor:
    return torch.randint(4, V, shape)


@pytest.mark.parametrize(("placement", "norm"), PAIRS)
def test_a_token_never_changes_the_logits_before_it(placement: str, norm: str) -> None:
    torch.set_default_dtype(torch.float64)
    model = build(placement, norm, dropout=0.0)
    source, target = ids(2, 6), ids(2, 7)
    for train in (True, False):
        model.train(train)
        before = model(source, target)
        for t in range(7):
            changed = target.clone()
            changed[:, t] = 4 + (changed[:, t] - 3) % (V - 4)
            after = model(source, changed)
            assert torch.equal(before[:, :t], after[:, :t])
            assert not torch.allclose(before[:, t:], after[:, t:])


@pytest.mark.parametrize(("placement", "norm"), PAIRS)
def test_padding_never_changes_a_result(placement: str, norm: str) -> None:
    torch.set_default_dtype(torch.float64)
    model = build(placement, norm, dropout=0.0)
    source, target = ids(1, 5), ids(1, 4)
    for train in (True, False):
        model.train(train)
        alone = model(source, target)
        padded_source = torch.cat([torch.cat([source, source.new_zeros(1, 4)], 1), ids(1, 9)])
        padded_target = torch.cat([torch.cat([target, target.new_zeros(1, 3)], 1), ids(1, 7)])
        together = model(padded_source, padded_target)[:1, :4]
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("placement", "norm"), PAIRS)
def test_two_steps_have_finite_gradients_that_reach_the_embedding(placement: str, norm: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = build(placement, norm).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        source, target = ids(3, 5), ids(3, 6)
        for _ in range(2):
            with autocast(torch.device("cpu"), dtype):
                logits = model(source, target[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), target[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
            used = source.unique()
            assert model.source_embedding.tokens.weight.grad[used].abs().sum(1).gt(0).all()
            optimizer.step()


@pytest.mark.parametrize(("placement", "norm"), PAIRS)
def test_a_state_dict_round_trip_gives_the_same_model(placement: str, norm: str) -> None:
    model, other = build(placement, norm).eval(), build(placement, norm).eval()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    source, target = ids(2, 5), ids(2, 5)
    assert not torch.equal(model(source, target), other(source, target))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(source, target), other(source, target))


DROPOUTS = ["dropout", "embedding_dropout", "attention_dropout", "activation_dropout"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", DROPOUTS)
def test_each_kind_of_dropout_acts_alone_in_training_and_not_in_evaluation(
    which: str, dtype: torch.dtype
) -> None:
    model = build("pre", "layer", **{name: 0.4 if name == which else 0.0 for name in DROPOUTS})
    source, target = ids(2, 5), ids(2, 5)
    with autocast(torch.device("cpu"), dtype):
        assert not torch.equal(model(source, target), model(source, target))
        model.eval()
        assert torch.equal(model(source, target), model(source, target))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_branch_dropout_acts_in_every_placement(placement: str) -> None:
    model = build(placement, "layer", dropout=0.3, embedding_dropout=0.0)
    source, target = ids(2, 5), ids(2, 5)
    assert not torch.equal(model(source, target), model(source, target))


LOSS_CASES = [
    *itertools.product(["post", "pre"], ["none", "source_target", "target_output", "all"]),
    *itertools.product(["deepnorm"], ["none", "source_target"]),
]


@pytest.mark.parametrize(("placement", "tie"), LOSS_CASES)
def test_the_loss_starts_near_the_uniform_one(placement: str, tie: str) -> None:
    """Unit-variance logits cost ln V + 1/2. Tying the output adds the token's own logit, which positions
    and branches dilute; under DeepNorm alpha keeps it, so there only the untied cases are near.
    """
    size = 400
    model = Transformer(
        size, size, placement=placement, d_model=128, heads=4, d_ff=256, tie_embeddings=tie, seed=2
    ).eval()
    source, target = torch.randint(4, size, (16, 12)), torch.randint(4, size, (16, 13))
    logits = model(source, target[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
    assert math.log(size) < loss.item() < math.log(size) + 1.5


@pytest.mark.parametrize("tie", ["none", "source_target", "target_output", "all"])
def test_tied_matrices_are_one_and_counted_once(tie: str) -> None:
    model = build("pre", "layer", tie_embeddings=tie)
    source, target = model.source_embedding.tokens.weight, model.target_embedding.tokens.weight
    assert (source is target) == (tie in ("source_target", "all"))
    assert (model.output_weight is target) == (tie in ("target_output", "all"))
    tables = {"none": 3, "source_target": 2, "target_output": 2, "all": 1}[tie]
    rest = build("pre", "layer", tie_embeddings="all").parameter_count() - V * 16
    assert model.parameter_count() == rest + tables * V * 16


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_the_feedforward_is_its_formula(activation: str) -> None:
    torch.set_default_dtype(torch.float64)
    ff = build("pre", "layer", activation=activation).encoder.layers[0].feedforward
    x = torch.randn(2, 3, 16)
    hidden = x @ ff.hidden.weight.T + ff.hidden.bias
    if activation == "relu":
        hidden = hidden * (hidden > 0)
    elif activation == "gelu":
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    else:
        gate = x @ ff.gate.weight.T + ff.gate.bias
        hidden = gate / (1 + torch.exp(-gate)) * hidden
    torch.testing.assert_close(ff(x), hidden @ ff.output.weight.T + ff.output.bias)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_compiled_model_is_one_graph_and_equals_the_eager_one(placement: str, training: bool) -> None:
    model = build(placement, "layer", dropout=0.0 if training else 0.1).train(training)
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    source, target = ids(2, 5), ids(2, 4)
    compiled = torch.compile(model, backend=count, fullgraph=True)
    torch.testing.assert_close(compiled(source, target), model(source, target), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_dropout_compiles_into_one_graph() -> None:
    model = torch.compile(build("pre", "layer", dropout=0.3).train(), backend="eager", fullgraph=True)
    source, target = ids(2, 5), ids(2, 4)
    assert not torch.equal(model(source, target), model(source, target))
    torch._dynamo.reset()


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_a_model_can_be_copied_and_pickled(activation: str) -> None:
    model = build("resi_dual", "rms", activation=activation).eval()
    source, target = ids(2, 5), ids(2, 4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(source, target), model(source, target))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_runs_in_other_types_and_comes_back(dtype: torch.dtype) -> None:
    model = build("pre", "layer").eval()
    source, target = ids(2, 5), ids(2, 4)
    before = model(source, target)
    low = copy.deepcopy(model).to(dtype)(source, target)
    assert low.dtype == dtype
    torch.testing.assert_close(low.float(), before, rtol=0.1, atol=0.15)


def test_the_position_table_is_exact_whatever_types_a_model_went_through() -> None:
    one = build("pre", "layer", max_length=4).double()
    two = build("pre", "layer", max_length=64).bfloat16().float().double()
    positions = [m.source_embedding.positions(9) for m in (one, two)]
    assert torch.equal(*positions)
    assert positions[0].dtype == torch.float64


@pytest.mark.parametrize("sizes", [(0, 30), (30, -3), (30.5, 30)])
def test_a_vocabulary_without_room_for_the_special_ids_is_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="_vocab is"):
        Transformer(*sizes, **SHAPE)

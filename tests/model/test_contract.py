"""What every model must keep: dropout where it belongs, a sane start, tied matrices, copies, other types."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from pairs import usual
from torch import Tensor

from transformer import PLACEMENTS, Transformer
from transformer.core.errors import ConfigError
from transformer.modules.precision import autocast

V = 24
SHAPE = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 2, "decoder_layers": 2}


def build(placement: str, norm: str, **flags: object) -> Transformer:
    return Transformer(V, V, placement=placement, norm=norm, **{**SHAPE, **flags}, seed=1)


def ids(*shape: int) -> Tensor:
    return torch.randint(4, V, shape)


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
    model = build(placement, usual(placement), dropout=0.3, embedding_dropout=0.0)
    for parameter in model.parameters():  # gates and last matrices may start at zero
        torch.nn.init.normal_(parameter, std=0.3)
    source, target = ids(2, 5), ids(2, 5)
    assert not torch.equal(model(source, target), model(source, target))


# The loss at the start above ln V: from, to. Unit-variance logits cost 1/2. An output that is tied to the
# target's embedding adds the token's own logit, up to sqrt(D) = 11, which positions and branches dilute.
USUAL = 0.0, 1.5
EXCESS = {
    # x + LN(d): of two normed streams that have much in common the variance is between 2 and 4.
    ("resi_dual", False): (1.0, 2.0),
    ("resi_dual", True): (1.0, 2.5),
    # Little or nothing is added to the embedding at the start, so its own logit is hardly diluted.
    ("deepnorm", True): (3.0, 5.0),
    ("layerscale", True): (3.0, 5.0),
    ("rezero", True): (4.0, 7.0),
    ("fixup", True): (4.0, 7.0),
}
TYINGS = {"none": False, "source_target": False, "target_output": True, "all": True}


# What counts is whether the output is an embedding: of each kind one, the other by `make slow`.
@pytest.mark.parametrize(
    ("placement", "tie"),
    [
        pytest.param(*case, marks=[] if case[1] in ("none", "all") else pytest.mark.slow)
        for case in itertools.product(PLACEMENTS, TYINGS)
    ],
)
def test_the_loss_starts_near_the_uniform_one(placement: str, tie: str) -> None:
    size = 400
    shape = {"d_model": 128, "heads": 4, "d_ff": 256}
    model = Transformer(size, size, placement=placement, tie_embeddings=tie, **shape, seed=2).eval()
    source, target = torch.randint(4, size, (16, 12)), torch.randint(4, size, (16, 13))
    logits = model(source, target[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
    low, high = EXCESS.get((placement, TYINGS[tie]), USUAL)
    assert low < loss.item() - math.log(size) < high


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


def test_dropout_compiles_into_one_graph() -> None:
    plain = build("pre", "layer", dropout=0.3, encoder_layers=1, decoder_layers=1).train()
    model = torch.compile(plain, backend="eager", fullgraph=True)
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

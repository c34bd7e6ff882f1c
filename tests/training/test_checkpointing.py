"""`train.checkpoint_activations`: the same gradients to the bit, and less that is kept for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from transformer import NORMS, PLACEMENTS
from transformer.cli.config import Config
from transformer.core.errors import ConfigError
from transformer.core.loading import load
from transformer.training.config import CHANGEABLE
from transformer.training.passes import Passes

SMALL = {"d_model": 16, "d_ff": 32, "heads": 2, "encoder_layers": 3, "decoder_layers": 3, "dropout": 0.2}
WITHOUT_BATCHES = [name for name in NORMS if NORMS[name].span != "batch"]


def gradients(workshop: Any, checkpointed: bool, dtype: torch.dtype, **flags: Any) -> dict[str, Tensor]:
    model = workshop.model(**SMALL | {"encoder_layers": 2, "decoder_layers": 2} | flags).train()
    passes = Passes(model, dtype, 0.1, seed=3, checkpointed=checkpointed)
    passes.run([workshop.batch(3), workshop.batch(2)], update=1)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


PARTS = [(stack, part) for stack in ("encoder", "decoder") for part in ("self_attention", "feed_forward")]


def several(names: list[str]) -> dict[str, Any]:
    """A norm for each of so many places of a model, the first ones in the encoder."""
    norm: dict[str, Any] = {
        "default": "layer",
        "encoder": {"default": "layer"},
        "decoder": {"default": "layer"},
    }
    for (stack, part), name in zip(PARTS, names, strict=False):
        norm[stack][part] = name
    return {"norm": norm}


ALONE: list[dict[str, Any]] = [
    {"norm": {"encoder": name, "decoder": "layer"} if NORMS[name].unfit("decoder") else name}
    for name in WITHOUT_BATCHES
]
UNFIT_FIRST = sorted(WITHOUT_BATCHES, key=lambda name: not NORMS[name].unfit("decoder"))
MODELS = -(-len(UNFIT_FIRST) // len(PARTS))
EVERY: list[dict[str, Any]] = [
    *({"placement": name, "allow_unsound": True} for name in PLACEMENTS),
    *(several(UNFIT_FIRST[i::MODELS]) for i in range(MODELS)),
    {"placement": {1: "post", "2-": "pre"}},
]
IN_HALF = ({"placement": "reversible", "allow_unsound": True}, {"norm": "instance"}, EVERY[-1])


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        *((flags, torch.float32) for flags in EVERY),
        *((flags, torch.bfloat16) for flags in IN_HALF),
        *(
            pytest.param(flags, dtype, marks=pytest.mark.slow)
            for flags in (*ALONE, *EVERY)
            for dtype in (torch.float32, torch.bfloat16)
            if (flags in ALONE if dtype == torch.float32 else flags not in IN_HALF)
        ),
    ],
    ids=str,
)
def test_the_gradients_are_the_same(workshop: Any, flags: dict[str, Any], dtype: torch.dtype) -> None:
    expected, found = (gradients(workshop, way, dtype, **flags) for way in (False, True))
    assert expected
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_between_layers_nothing_but_the_stream_is_kept(workshop: Any) -> None:
    """Bytes that autograd keeps of three layers, without the embedding and the loss."""
    kept = {}
    for checkpointed in (False, True):
        model = workshop.model(**SMALL).train()
        model.encoder.checkpointed = checkpointed
        x = torch.randn(4, 7, SMALL["d_model"], requires_grad=True)
        found: list[int] = []
        with saved_tensors_hooks(lambda tensor, found=found: found.append(tensor.nbytes), lambda _: None):
            model.encoder(x, torch.ones(4, 1, 1, 7, dtype=torch.bool))
        kept[checkpointed] = sum(found)
    assert kept[True] < kept[False] / 5


def test_a_run_goes_on_with_it_and_ends_with_the_same_weights(workshop: Any) -> None:
    assert "checkpoint_activations" in CHANGEABLE
    whole = workshop.trainer(updates=4)
    whole.fit()
    workshop.trainer("cut", updates=2).fit()
    resumed = workshop.trainer("cut", updates=4, checkpoint_activations=True)
    resumed.resume()
    resumed.fit()
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("norm", [name for name in NORMS if NORMS[name].span == "batch"])
def test_running_statistics_would_count_twice(norm: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.checkpoint_activations.*{norm}'s running statistics"):
        load(
            Config,
            None,
            [f"model.norm={{encoder: {norm}, decoder: layer}}", "train.checkpoint_activations=true"],
        )

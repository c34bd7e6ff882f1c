"""Slices of the weights (FSDP2) in one process, for every placement and norm; several: test_ranks.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pairs import ONCE, OVER_A_BATCH, extras, plan, usual
from torch import distributed

from transformer import NORMS, PLACEMENTS, Transformer
from transformer.data.batching import collate
from transformer.modules.qk_norm import QK_NORMS
from transformer.training.config import TrainConfig
from transformer.training.layouts import Whole, refusals
from transformer.training.optimizers import OPTIMIZERS, make_optimizer
from transformer.training.passes import Passes
from transformer.training.ranks import Processes
from transformer.training.sharded import Sharded

V = 24
SHAPE = {"d_model": 8, "heads": 2, "d_ff": 8, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
BATCH = collate([([4, 5, 6], [7, 8]), ([9], [10, 11, 12])], [0, 1])
CONFIG = TrainConfig(parallel="fsdp")


@pytest.fixture(scope="module")
def alone() -> Iterator[Processes]:
    """The only rank of a group."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield Processes(0, 1)
    distributed.destroy_process_group()


def updated(
    layout: Whole, config: TrainConfig = CONFIG, moments: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Copies of weights and the optimizer's state after an update of two micro-batches."""
    optimizer = make_optimizer(layout.model, config)
    if moments is not None:
        layout.load_optimizer(optimizer, copy.deepcopy(moments))
    Passes(layout.model, torch.float32, 0.1, 1, layout=layout).run([BATCH, BATCH], update=1)
    optimizer.step()
    optimizer.zero_grad()
    return copy.deepcopy((layout.weights(), layout.optimizer_state(optimizer)))


def two(encoder: str, decoder: str) -> dict[str, Any]:
    """A placement in each stack, with norms that go with them."""
    options = {"allow_unsound": True, **extras(encoder, "layer"), **extras(decoder, "layer")}
    norms = {"encoder": usual(encoder), "decoder": usual(decoder)}
    norm = norms if set(norms.values()) != {"none"} else "none"
    return {"placement": {"encoder": encoder, "decoder": decoder}, "norm": norm, **options}


def several(encoder: list[str], decoder: list[str]) -> dict[str, Any]:
    """A norm for each place of a Pre-LN model."""
    parts = ("self_attention", "feed_forward", "final", "cross_attention")
    norms = {
        stack: {"default": "layer", **dict(zip(parts, names, strict=False))}
        for stack, names in (("encoder", encoder), ("decoder", decoder))
    }
    return {
        "placement": "pre",
        "norm": norms,
        "norm_options": {"prms": {"p": 0.5}} if "prms" in str(norms) else {},
    }


SHARDED = [name for name in PLACEMENTS if name != "reversible"]
NAMES = [*sorted(OVER_A_BATCH), *(name for name in NORMS if name not in OVER_A_BATCH)]


@pytest.mark.parametrize(
    "flags",
    [
        *(two(*pair) for pair in zip(SHARDED[::2], SHARDED[1::2], strict=True)),
        {"placement": "reversible"},
        *(several(NAMES[i:9:3], NAMES[9 + i :: 3]) for i in range(3)),
        *({"qk_norm": name} for name in QK_NORMS),
        *(
            pytest.param({"placement": p, "norm": plan(n), **extras(p, n)}, marks=pytest.mark.slow)
            for p, n in ONCE
        ),
    ],
    ids=str,
)
def test_every_placement_and_norm_is_sharded_as_it_is_or_refused_by_name(
    flags: dict[str, Any], alone: Processes
) -> None:
    """fully_shard takes no scalar parameter, and what it takes is there only while its own part runs."""
    model = Transformer(V, V, **SHAPE, **flags, seed=1).double()
    if problems := list(refusals(model, CONFIG, 2)):
        assert [problem.path for problem in problems] == ["model.placement"]
        assert flags["placement"] == "reversible"
        return
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)  # gates of 0 would hide what is behind them
    whole, sharded = Whole(copy.deepcopy(model), 0.1), Sharded(model, 0.1, alone)
    weights, moments = updated(whole)
    ours, our_moments = updated(sharded)
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in weights.items()}
    torch.testing.assert_close(ours, weights, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(our_moments["state"], moments["state"], rtol=1e-9, atol=1e-12)
    sharded.load(weights, "here")  # of one process, and it goes on
    torch.testing.assert_close(sharded.weights(), dict(weights), rtol=0, atol=0)
    torch.testing.assert_close(sharded.whole(weights).state_dict(), dict(weights), rtol=0, atol=0)
    second = updated(whole, moments=moments)[0]
    assert any(not torch.equal(second[name], weights[name]) for name in weights)
    torch.testing.assert_close(updated(sharded, moments=moments)[0], second, rtol=1e-9, atol=1e-9)


def test_each_placement_and_norm_is_in_one_of_those_models() -> None:
    assert len(SHARDED) % 2 == 0
    assert set(NAMES) == set(NORMS)
    assert len(NAMES) <= 9 + 3 * 4, "more models, for there are more norms"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_slices_or_is_refused_by_name(name: str, alone: Processes) -> None:
    config = TrainConfig(parallel="fsdp", optimizer=name)
    model = Transformer(V, V, **SHAPE, norm="scale", seed=1).double()
    if problems := list(refusals(model, config, 2)):
        assert [problem.path for problem in problems] == ["train.optimizer"]
        assert not OPTIMIZERS[name].elementwise
        return
    whole, sharded = Whole(copy.deepcopy(model), 0.1), Sharded(model, 0.1, alone)
    weights, moments = updated(whole, config)
    ours, our_moments = updated(sharded, config)
    torch.testing.assert_close(ours, weights, rtol=1e-9, atol=1e-9)
    for layout in (whole, sharded):  # each goes on with what the other one has kept
        layout.load(weights, "here")
    second, _ = updated(whole, config, our_moments)
    torch.testing.assert_close(updated(sharded, config, moments)[0], second, rtol=1e-9, atol=1e-9)

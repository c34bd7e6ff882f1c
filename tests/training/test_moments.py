"""What an optimizer takes up from a file: its own moments, whatever the rule, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from transformer import Transformer
from transformer.core.errors import CheckpointError
from transformer.training.config import TrainConfig
from transformer.training.moments import fitting
from transformer.training.optimizers import OPTIMIZERS, make_optimizer
from transformer.training.states import load_training, save_training

MODEL = Transformer(9, 9, d_model=8, heads=2, d_ff=12, encoder_layers=1, decoder_layers=1, placement="rezero")


def stepped(name: str, **options: Any) -> torch.optim.Optimizer:
    """An optimizer after a step: the model has matrices, vectors and scalars."""
    assert {p.ndim for p in MODEL.parameters()} == {0, 1, 2}
    model = deepcopy(MODEL)
    optimizer = make_optimizer(model, TrainConfig(optimizer=name, **options))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


def parts(state: dict[str, Any]) -> list[dict[str, Any]]:
    return state.get("parts", [state])


def fresh(name: str, **options: Any) -> torch.optim.Optimizer:
    return make_optimizer(deepcopy(MODEL), TrainConfig(optimizer=name, **options))


WRONG: dict[str, Callable[[torch.Tensor], object]] = {
    "shorter": lambda moment: moment.flatten()[:-1].clone(),
    "empty": lambda moment: moment.new_empty(0),
    "longer": lambda moment: torch.cat([moment.flatten(), moment.flatten()]),
    "turned": lambda moment: moment[..., None].expand(*moment.shape, 2),
    "one number many times": lambda moment: torch.zeros(()).expand(*moment.shape, 2)[..., 0],
    "complex": lambda moment: moment.to(torch.complex64),
    "whole numbers": lambda moment: moment.long(),
    "sparse": lambda moment: moment.reshape(1, -1).to_sparse(),
    "nowhere": lambda moment: moment.to("meta"),
    "a text": lambda moment: "moment",
    "nothing": lambda moment: None,
}
ALL = [*((name, {}) for name in OPTIMIZERS), ("sgd", {"momentum": 0.9})]


@pytest.mark.parametrize(("name", "options"), ALL, ids=str)
def test_every_optimizer_takes_up_what_it_has_kept(name: str, options: dict[str, Any]) -> None:
    saved = stepped(name, **options).state_dict()
    new = fresh(name, **options)
    new.load_state_dict(fitting(deepcopy(saved), new))
    for kept, taken in zip(parts(saved), parts(new.state_dict()), strict=True):
        assert kept["param_groups"] == taken["param_groups"]
        torch.testing.assert_close(taken["state"], kept["state"], rtol=0, atol=0)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("name", "options"), ALL, ids=str)
def test_each_moment_of_every_optimizer_is_refused_if_it_is_another(
    name: str, options: dict[str, Any], wrong: str
) -> None:
    saved, new = stepped(name, **options).state_dict(), fresh(name, **options)
    tried = set()
    for part in parts(saved):
        for moments in part["state"].values():
            for moment, value in moments.items():
                kind = moment, value.ndim, len(part["state"])  # one of each will do
                if kind in tried or (wrong == "one number many times" and value.numel() < 2):
                    continue
                moments[moment] = WRONG[wrong](value)
                with pytest.raises(ValueError, match=rf"^{moment} of the optimizer is"):
                    fitting(saved, new)
                moments[moment] = value
                tried.add(kind)
    assert tried or (name, options) == ("sgd", {})  # which keeps nothing
    fitting(saved, new)


def test_moments_that_are_missing_or_of_another_rule_are_refused() -> None:
    saved = stepped("adam").state_dict()
    del saved["state"][0]["exp_avg_sq"]
    with pytest.raises(ValueError, match="has step, exp_avg of parameter 0"):
        fitting(saved, fresh("adam"))
    with pytest.raises(ValueError, match="has step, exp_avg, exp_avg_sq of parameter 0"):
        fitting(stepped("adam").state_dict(), fresh("sgd", momentum=0.9))
    saved = stepped("adam").state_dict()
    saved["state"][len(list(MODEL.parameters()))] = saved["state"][0]
    with pytest.raises(KeyError):
        fitting(saved, fresh("adam"))


def test_settings_are_the_configurations_and_the_rate_is_the_files() -> None:
    saved = stepped("adam").state_dict()
    for group in saved["param_groups"]:
        group |= {"lr": 0.125, "betas": "x", "fused": None, "amsgrad": True, "eps": torch.ones(2)}
        group.pop("foreach")
    new = fresh("adam")
    ours = deepcopy(new.state_dict()["param_groups"])
    assert fitting(saved, new)["param_groups"] == [{**group, "lr": 0.125} for group in ours]


@pytest.mark.parametrize("rate", ["x", None, float("nan"), True, torch.tensor(1.0)], ids=str)
def test_a_rate_that_is_no_number_is_refused(rate: Any) -> None:
    saved = stepped("adam").state_dict()
    saved["param_groups"][0]["lr"] = rate
    with pytest.raises(ValueError, match="has the rate"):
        fitting(saved, fresh("adam"))


def test_groups_of_other_parameters_are_refused() -> None:
    saved = stepped("adam").state_dict()
    saved["param_groups"][0]["params"].reverse()
    with pytest.raises(ValueError, match="a group of the optimizer"):
        fitting(saved, fresh("adam"))
    with pytest.raises(ValueError, match="zip"):
        fitting({**saved, "param_groups": []}, fresh("adam"))


def test_a_parameter_of_one_number_may_be_kept_as_a_scalar() -> None:
    """fully_shard takes none: there it is a vector."""
    scalar, vector = (torch.optim.Adam([nn.Parameter(torch.zeros(shape))]) for shape in ((), (1,)))
    for optimizer in (scalar, vector):
        (parameter,) = optimizer.param_groups[0]["params"]
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    fitting(scalar.state_dict(), vector)
    fitting(vector.state_dict(), scalar)


def test_a_run_is_not_resumed_with_moments_of_another_shape(workshop: Any) -> None:
    trainer = workshop.trainer(updates=1)
    trainer.fit()
    weights, state = load_training(trainer.shelf.last)
    for values in state["optimizer"]["state"].values():
        values["exp_avg"] = torch.zeros(3)
    save_training(trainer.shelf.last, weights, {k: v for k, v in state.items() if k != "update"}, 1)
    with pytest.raises(CheckpointError, match=r"trainer\.pt: .*exp_avg of the optimizer is of shape \(3,\)"):
        workshop.trainer(updates=1).resume()

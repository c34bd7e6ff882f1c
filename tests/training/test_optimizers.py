"""Which parameters decay, which go to Muon, and that every optimizer learns and resumes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from transformer.training.config import TrainConfig
from transformer.training.optimizers import OPTIMIZERS, MuonWithAdamW, make_optimizer


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    wanted = {id(p) for p in parameters}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tying", ["none", "all"])
def test_only_matrices_that_multiply_decay(name: str, tying: str, workshop: Any) -> None:
    model = workshop.model(tie_embeddings=tying, positions="learned", norm="rms")
    optimizer = make_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.1))
    decays: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for group in optimizer.param_groups:
        decays[group["weight_decay"] > 0] += group["params"]
    decayed, free = names_of(model, decays[True]), names_of(model, decays[False])
    assert decayed | free == {name for name, _ in model.named_parameters()}
    assert len(decays[True]) + len(decays[False]) == len(list(model.parameters()))
    linear = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert decayed == linear


def test_the_weight_decay_of_sgd_is_an_l2_term_on_matrices_alone(workshop: Any) -> None:
    model = workshop.model()
    optimizer = make_optimizer(model, TrainConfig(optimizer="sgd", lr=0.5, weight_decay=0.1))
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    linear = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, parameter in model.named_parameters():
        shrunk = before[name] * (0.95 if name in linear else 1.0)
        torch.testing.assert_close(parameter.detach(), shrunk)


def test_muon_takes_hidden_matrices_and_adamw_the_rest(workshop: Any) -> None:
    model = workshop.model(tie_embeddings="none", positions="learned")
    optimizer = make_optimizer(model, TrainConfig(optimizer="muon"))
    assert isinstance(optimizer, MuonWithAdamW)
    parts = {type(part): [p for g in part.param_groups for p in g["params"]] for part in optimizer.parts}
    hidden = names_of(model, parts[torch.optim.Muon])
    rest = names_of(model, parts[torch.optim.AdamW])
    assert rest >= {"output.weight", "source_embedding.tokens.weight", "target_embedding.tokens.weight"}
    assert all("positions" not in name and "bias" not in name for name in hidden)
    assert hidden == {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path != "output"
    }


def test_a_rate_set_on_muon_reaches_both_parts_also_after_loading(workshop: Any) -> None:
    model = workshop.model()
    config = TrainConfig(optimizer="muon")
    optimizer = make_optimizer(model, config)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_one_batch(name: str, workshop: Any) -> None:
    # Adafactor's rate is relative to a tensor's size and SGD has no step size of its own.
    rate = {"sgd": 0.5, "adafactor": 0.05, "muon": 5e-3}.get(name, 1e-2)
    trainer = workshop.trainer(
        model=workshop.model(dropout=0.0), optimizer=name, lr=rate, schedule="constant", warmup=5
    )
    batch = workshop.batch(0)
    losses = []
    for _ in range(40):
        trainer.step([batch])
        losses.append(trainer.window.read()["nll"] / trainer.window.tokens)
        trainer.window.clear()
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_survives_a_file(name: str, workshop: Any, tmp_path: Any) -> None:
    def train(trainer: Any, start: int) -> None:
        for seed in range(start, start + 3):
            trainer.step([workshop.batch(seed)])

    straight = workshop.trainer("straight", optimizer=name)
    train(straight, 0)
    torch.save(straight.optimizer.state_dict(), tmp_path / "state.pt")
    resumed = workshop.trainer("resumed", model=copy.deepcopy(straight.model), optimizer=name)
    resumed.optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.progress.update = 3
    for trainer in (straight, resumed):
        train(trainer, 3)
    torch.testing.assert_close(resumed.model.state_dict(), straight.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_options_an_optimizer_reads_reach_it(name: str, workshop: Any) -> None:
    config = TrainConfig(optimizer=name, lr=0.02, betas=(0.7, 0.8), epsilon=1e-5, momentum=0.6)
    optimizer = make_optimizer(workshop.model(), config)
    parts = optimizer.parts if isinstance(optimizer, MuonWithAdamW) else [optimizer]
    seen: dict[str, set[Any]] = {}
    for part in parts:
        for group in part.param_groups:
            for key in ("betas", "eps", "momentum"):
                if key in group and not (key == "eps" and "betas" not in group):
                    seen.setdefault(key, set()).add(group[key])
    wanted = {"betas": {(0.7, 0.8)}, "eps": {1e-5}, "momentum": {0.6}}
    read = {"epsilon": "eps"}
    for option in OPTIMIZERS[name].options:
        if option in ("betas", "epsilon", "momentum"):
            key = read.get(option, option)
            assert seen[key] == wanted[key], (name, option)

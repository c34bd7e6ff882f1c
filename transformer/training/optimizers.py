"""Update rules, torch's own, over two groups of parameters: those that decay and those that do not.

Weight decay pulls on matrices that multiply a hidden vector. Norm gains, biases and every other vector stay
free of it, and so do embeddings and learned positions, whose rows are vectors too; a tied output projection
counts as the embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.registry import Registry
from ..modules.embeddings import POSITIONS

if TYPE_CHECKING:
    from .config import TrainConfig

Groups = list[dict[str, Any]]


class Rule(ABC):
    """How an optimizer is built; `options` are the keys of `train` it reads beside lr.

    `elementwise`: does what a number becomes hang on nothing but its own past? Then tensors may be cut.
    """

    options: ClassVar[tuple[str, ...]] = ()
    elementwise: ClassVar[bool] = True

    @staticmethod
    @abstractmethod
    def build(model: nn.Module, config: TrainConfig) -> Optimizer: ...


OPTIMIZERS: Registry[type[Rule]] = Registry("optimizer")


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer of a configuration over a model's trainable parameters, tied ones once."""
    return OPTIMIZERS[config.optimizer].build(model, config)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def embedding_parameters(model: nn.Module) -> set[int]:
    """Identities of the parameters whose rows are looked up: token embeddings and learned positions."""
    looked_up: tuple[type[nn.Module], ...] = (nn.Embedding, *POSITIONS.values())
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, looked_up)
        for parameter in module.parameters(recurse=False)
    }


def decay_groups(model: nn.Module, weight_decay: float) -> Groups:
    """Two groups: matrices with `weight_decay`, vectors and embeddings with none. Empty ones are left out."""
    embeddings = embedding_parameters(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in embeddings]
    free = [p for p in trainable if p.ndim < 2 or id(p) in embeddings]
    groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def fused(groups: Iterable[dict[str, Any]]) -> bool:
    """True where torch has the rule as one kernel: floating-point parameters on a CPU or a CUDA device."""
    return all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])


@OPTIMIZERS.register(
    "adam",
    title="Adam",
    equation="w -= lr m / (sqrt(v) + eps)",
    paper="Kingma and Ba 2015, arXiv 1412.6980, algorithm 1",
    note="Reads betas, epsilon. weight_decay is an L2 term in the gradient.",
)
@final
class Adam(Rule):
    options = ("betas", "epsilon", "weight_decay")

    @staticmethod
    def build(model: nn.Module, config: TrainConfig) -> Optimizer:
        groups = decay_groups(model, config.weight_decay)
        return torch.optim.Adam(
            groups, lr=config.lr, betas=config.betas, eps=config.epsilon, fused=fused(groups)
        )


@OPTIMIZERS.register(
    "adamw",
    title="AdamW",
    equation="w -= lr (m / (sqrt(v) + eps) + weight_decay w)",
    paper="Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2",
    note="Reads betas, epsilon. weight_decay is decoupled from the gradient.",
)
@final
class AdamW(Rule):
    options = ("betas", "epsilon", "weight_decay")

    @staticmethod
    def build(model: nn.Module, config: TrainConfig) -> Optimizer:
        groups = decay_groups(model, config.weight_decay)
        return torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, eps=config.epsilon, fused=fused(groups)
        )


@OPTIMIZERS.register(
    "radam",
    title="RAdam",
    equation="w -= lr r_t m / (sqrt(v) + eps); plain momentum while the variance of v is unknown",
    paper="Liu et al. 2020, arXiv 1908.03265, algorithm 2",
    note="Reads betas, epsilon. With beta2 0.98 the rectification is over within a few hundred updates.",
)
@final
class RAdam(Rule):
    options = ("betas", "epsilon", "weight_decay")

    @staticmethod
    def build(model: nn.Module, config: TrainConfig) -> Optimizer:
        groups = decay_groups(model, config.weight_decay)
        return torch.optim.RAdam(groups, lr=config.lr, betas=config.betas, eps=config.epsilon)


@OPTIMIZERS.register(
    "sgd",
    title="SGD",
    equation="b = momentum b + g; w -= lr b",
    note="Reads momentum (null: 0, plain descent). weight_decay is an L2 term in the gradient.",
)
@final
class SGD(Rule):
    options = ("momentum", "weight_decay")

    @staticmethod
    def build(model: nn.Module, config: TrainConfig) -> Optimizer:
        groups = decay_groups(model, config.weight_decay)
        # torch has no such kernel for parameters that are cut over several processes.
        plain = all(type(p) is nn.Parameter for group in groups for p in group["params"])
        one = plain and fused(groups)
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum or 0.0, fused=one)


@OPTIMIZERS.register(
    "adafactor",
    title="Adafactor",
    equation="w -= max(1e-3, rms(w)) min(lr, 1 / sqrt(t)) clip(g / sqrt(row x column second moments))",
    paper="Shazeer and Stern 2018, arXiv 1804.04235, algorithms 4 and 5",
    note="lr is relative to each tensor's own size, and capped at 1 / sqrt(t). Reads no betas, no epsilon."
    " weight_decay is decoupled from the gradient.",
)
@final
class Adafactor(Rule):
    options = ("weight_decay",)
    elementwise = False

    @staticmethod
    def build(model: nn.Module, config: TrainConfig) -> Optimizer:
        return torch.optim.Adafactor(decay_groups(model, config.weight_decay), lr=config.lr)


@OPTIMIZERS.register(
    "muon",
    title="Muon for hidden matrices, AdamW for the rest",
    equation="W -= lr 0.2 sqrt(max(rows, columns)) orthogonalised(momentum)",
    paper="Jordan et al. 2024; scale of Liu et al. 2025, arXiv 2502.16982, eq. 4",
    note="Reads momentum (null: 0.95), and betas and epsilon for its AdamW. Both share lr: a matrix's update"
    " is scaled to AdamW's size. weight_decay is decoupled from the gradient.",
)
@final
class Muon(Rule):
    options = ("momentum", "betas", "epsilon", "weight_decay")
    elementwise = False

    @staticmethod
    def build(model: nn.Module, config: TrainConfig) -> Optimizer:
        return MuonWithAdamW(model, config)


class MuonWithAdamW(Optimizer):
    """torch's Muon on 2-D hidden matrices and AdamW on all else, as one optimizer.

    Embeddings, learned positions and the output projection, though matrices, go to AdamW as Muon's author
    advises: their rows are independent vectors, and orthogonalising across the vocabulary means nothing.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        apart = embedding_parameters(model) | {id(model.output_table)}
        groups = decay_groups(model, config.weight_decay)
        hidden: Groups = []
        rest: Groups = []
        for group in groups:
            for chosen, is_hidden in ((hidden, True), (rest, False)):
                members = [p for p in group["params"] if (p.ndim == 2 and id(p) not in apart) == is_hidden]
                if members:
                    chosen.append({**group, "params": members})
        momentum = 0.95 if config.momentum is None else config.momentum
        self.parts: list[Optimizer] = []
        if hidden:
            self.parts.append(
                torch.optim.Muon(
                    hidden, lr=config.lr, momentum=momentum, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
                )
            )
        if rest:
            self.parts.append(
                torch.optim.AdamW(
                    rest, lr=config.lr, betas=config.betas, eps=config.epsilon, fused=fused(rest)
                )
            )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        # The parts' groups themselves, so that a rate set on this optimizer reaches the part that steps.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> Tensor | None:  # type: ignore[override]
        assert closure is None
        for part in self.parts:
            part.step()
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]

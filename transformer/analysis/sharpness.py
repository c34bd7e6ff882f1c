"""The largest curvature of the loss, and the learning rate it allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from ..core.configuration import Count, CountOrZero, Positive
from ..core.errors import CheckpointError, ConfigError
from ..core.seeding import derive_seed
from ..core.signature import Doc
from ..model.transformer import Transformer
from ..training.config import TrainConfig
from ..training.optimizers import make_optimizer
from ..training.states import STATE, read_state
from .curvature import Eigenvalue, adam_scale, hessian_product, largest_rate, scaled, top_eigenvalue
from .finding import COLOURS, MARKERS, Finding, of_seeds
from .registry import PROBES, Probe, Say
from .setting import Arm, Batch, build, mean_loss
from .steps import descend, keep_activations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Torch's words where an operation has no second derivative; other errors are not about that. The last is of
# norms that move running statistics in the backward pass.
NO_SECOND = ("differentiate twice", "double backward", "is not implemented", "modified by an inplace")
FAR = 10.0  # how far beyond the values a line may be, as a factor, to be drawn


@dataclass(frozen=True)
class Curvature:
    """Sharpness of one run at one update: None where it is not finite.

    `adam`, the preconditioned one, is None too before Adam has seen gradients.
    """

    update: int
    plain: Eigenvalue | None
    adam: Eigenvalue | None
    loss: float | None
    momentum: float  # b1 of the Adam

    @property
    def both(self) -> tuple[Eigenvalue | None, Eigenvalue | None]:
        return self.plain, self.adam


def moments_of(weights: Path | None, model: Transformer, config: TrainConfig) -> Optimizer | None:
    """The Adam of a run with what it has seen; None where no state of an Adam lies beside the weights.

    It does in checkpoints/last. AdamW and RAdam have the same second moments. No weights decay from here on.
    """
    path = None if weights is None else weights.parent / STATE
    if path is None or not path.exists():
        return None
    optimizer = make_optimizer(model, config)
    try:
        state = read_state(path)["optimizer"]
        seen = state.get("state", {}).values()
        if not seen or not all("exp_avg_sq" in each for each in seen):
            return None
        optimizer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: no state of an optimizer of this model ({error})") from error
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    return optimizer


@PROBES.register(
    "sharpness",
    title="Sharpness",
    equation="largest eigenvalue of the loss's Hessian H, and of P^-1 H with Adam's P",
    note="Plain descent is unstable above 2 / sharpness; Adam, where P hardly changes, above"
    " 2 (1 + b1) / ((1 - b1) sharpness of P^-1 H).",
)
@final
class Sharpness(Probe):
    """Lanczos' iteration with products H v on one batch, at the start and after `updates` of Adam.

    P = diag(sqrt(v / (1 - b2^t)) + eps) of Adam's second moments after those updates. Of a run's
    checkpoints/last the Adam is the run's own, so there is a P at the start too; all else starts with a fresh
    one. All parameters count, embeddings and norms too.
    """

    checkpoint = True

    def __init__(
        self,
        *,
        updates: Annotated[CountOrZero, Doc("updates of Adam before the second measurement; 0: none")] = 20,
        lr: Annotated[Positive, Doc("rate of these updates, without warm-up")] = 1e-4,
        iterations: Annotated[Count, Doc("most products H v for one eigenvalue")] = 30,
        tolerance: Annotated[Positive, Doc("relative error of the eigenvalue at which it stops")] = 0.01,
    ) -> None:
        self.updates, self.lr, self.iterations, self.tolerance = updates, lr, iterations, tolerance
        self.config = TrainConfig.model_validate({"optimizer": "adam", "lr": lr})

    def run(
        self,
        arms: Sequence[Arm],
        batches: list[Batch],
        sizes: tuple[int, int],
        seeds: Sequence[int],
        say: Say,
    ) -> Finding:
        found: dict[str, list[list[Curvature]]] = {}
        for arm in arms:
            for seed in seeds:
                try:
                    measured = self._run(arm, seed, batches, sizes)
                except RuntimeError as error:
                    reason = str(error).partition("\n")[0]
                    if not any(words in reason for words in NO_SECOND):
                        raise
                    raise ConfigError(f"{arm.label}: no product with the Hessian: {reason}") from error
                found.setdefault(arm.label, []).append(measured)
                shown = ", ".join(f"{_number(m.plain)} at update {m.update}" for m in measured)
                say(f"{arm.label}, seed {seed}: sharpness {shown}")
        b1 = next(iter(found.values()))[0][-1].momentum
        rows = []
        for label, runs in found.items():
            for at in zip(*runs, strict=True):
                loss = _median([m.loss for m in at])
                plain, adam = (
                    _median([e and e.value for e in es]) for es in zip(*(m.both for m in at), strict=True)
                )
                safe = [None if e is None else largest_rate(e, b) for e, b in ((plain, 0.0), (adam, b1))]
                rows.append([label, at[0].update, loss, plain, safe[0], adam, safe[1]])
        columns = ["arm", "update", "loss", "sharpness", "2 / sharpness", "Adam's", "its largest rate"]
        return Finding(
            "sharpness",
            columns,
            rows,
            words=self._words(found, len(seeds), len(batches), b1) + _whose_adam(arms, found),
            facts={
                "betas": list(self.config.betas),
                "epsilon": self.config.epsilon,
                "by_seed": [
                    {"arm": label, "curvature": [[_plain(m) for m in run] for run in runs]}
                    for label, runs in found.items()
                ],
                "definition": "algebraically largest eigenvalue of the Hessian of the mean loss of the first"
                " batch over all parameters; Adam's: of P^-1 H, P = diag(sqrt(v / (1 - b2^t)) + eps)",
            },
            draw=partial(_draw, found, self.lr, b1),
        )

    def _run(self, arm: Arm, seed: int, batches: list[Batch], sizes: tuple[int, int]) -> list[Curvature]:
        model = build(arm, sizes, seed, batches[0])
        check_fold(model, batches[0], arm.label)
        optimizer = moments_of(arm.weights, model, self.config)
        measured = [self._measure(model, batches[0], seed, 0, optimizer)]
        if self.updates:
            optimizer = optimizer or make_optimizer(model, self.config)
            for _ in descend(model, batches, optimizer, [self.lr] * self.updates):
                pass
            measured.append(self._measure(model, batches[0], seed, self.updates, optimizer))
        return measured

    def _measure(
        self, model: Transformer, batch: Batch, seed: int, update: int, optimizer: Optimizer | None
    ) -> Curvature:
        parameters = [p for p in model.parameters() if p.requires_grad]
        b1 = optimizer.param_groups[0]["betas"][0] if optimizer else self.config.betas[0]
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            loss = mean_loss(model, batch)
            if not loss.isfinite():
                return Curvature(update, None, None, None, b1)
            product = hessian_product(loss, parameters)
            draws = torch.Generator().manual_seed(derive_seed(seed, "first vector"))
            start = torch.randn(sum(p.numel() for p in parameters), generator=draws).to(loss)
            plain = top_eigenvalue(product, start, self.iterations, self.tolerance)
            adam = None
            if optimizer is not None:
                preconditioned = scaled(product, adam_scale(optimizer, parameters))
                adam = top_eigenvalue(preconditioned, start, self.iterations, self.tolerance)
        return Curvature(update, plain, adam, loss.item(), b1)

    def _words(
        self, found: dict[str, list[list[Curvature]]], seeds: int, batches: int, b1: float
    ) -> list[str]:
        words = [
            f"{of_seeds(seeds).capitalize()}. Plain descent at a rate above 2 / sharpness is unstable; Adam"
            f" with beta1 {b1:g} above {largest_rate(1, b1):.3g} / (sharpness of P^-1 H), while P stays as it"
            " is."
            + (f" H is that of the first of {batches} batches; Adam trains on all." if batches > 1 else ""),
        ]
        for label, runs in found.items():
            broken = sum(run[-1].plain is None for run in runs)
            if broken:
                words.append(
                    f"{label}: loss or H v is not finite in {broken} of {len(runs)} runs, after at most"
                    f" {self.updates} updates at rate {self.lr:g}; no number where it is not."
                )
        everyone = [m for runs in found.values() for run in runs for m in run]
        moving = [e for m in everyone for e in m.both if e and not e.settled]
        if moving:
            words.append(
                f"{len(moving)} of the eigenvalues are not known to {self.tolerance:g} of themselves after"
                f" {self.iterations} products: probe.iterations gives them more."
            )
        return words


def check_fold(model: Transformer, batch: Batch, label: str) -> None:
    """Make second derivatives possible; ConfigError where that would change the model."""
    with torch.no_grad():
        usual = mean_loss(model, batch).item()
    keep_activations(model)
    if not math.isclose(usual, mean_loss(model, batch).item(), rel_tol=1e-4):
        raise ConfigError(f"{label}: sharpness needs second derivatives, which this placement does not have")


def _whose_adam(arms: Sequence[Arm], found: dict[str, list[list[Curvature]]]) -> list[str]:
    """Of trained weights: is P that of the run?"""
    trained = [arm.label for arm in arms if arm.weights is not None]
    return [
        f"{label}: P is from the second moments that the run's optimizer had."
        if found[label][0][0].adam
        else f"{label}: P is that of an Adam which begins at these weights, not of the run's optimizer, whose"
        " moments are kept for checkpoints/last alone (--checkpoint last)."
        for label in trained
    ]


def _median(values: Sequence[float | None]) -> float | None:
    """Over seeds; None where one of them has none."""
    numbers = [value for value in values if value is not None]
    return median(numbers) if len(numbers) == len(values) else None


def _number(eigenvalue: Eigenvalue | None) -> str:
    return "not finite" if eigenvalue is None else f"{eigenvalue.value:.3g}"


def _plain(measured: Curvature) -> dict[str, Any]:
    plain, adam = measured.both
    return {
        "update": measured.update,
        "loss": measured.loss,
        "sharpness": plain and plain.value,
        "settled": plain and plain.settled,
        "adam": adam and adam.value,
        "adam_settled": adam and adam.settled,
    }


def _draw(found: dict[str, list[list[Curvature]]], lr: float, momentum: float, figure: Figure) -> None:
    figure.set_size_inches(10, 4.4)
    panels = figure.subplots(1, 2)
    allowed = (largest_rate(lr), largest_rate(lr, momentum))
    lines = f"2 / lr, lr = {lr:g}", f"{largest_rate(1, momentum):.3g} / lr"
    updates = sorted({m.update for runs in found.values() for run in runs for m in run})
    for i, (axes, line, title) in enumerate(zip(panels, lines, ("Hessian H", "Adam's P⁻¹H"), strict=True)):
        values = []
        for number, runs in enumerate(found.values()):
            for run in runs:
                for m in run:
                    eigenvalue = m.both[i]
                    if eigenvalue and eigenvalue.value > 0:
                        late = updates.index(m.update)
                        place = number + (late - (len(updates) - 1) / 2) * 0.3
                        axes.plot(place, eigenvalue.value, MARKERS[late], color=COLOURS[late], alpha=0.8)
                        values.append(eigenvalue.value)
        if values and min(values) / FAR < allowed[i] < max(values) * FAR:
            axes.axhline(allowed[i], color=COLOURS[-1], linewidth=1, linestyle="--")
            title += f"; dashed: {line}"
        elif values:
            side = "above" if allowed[i] > max(values) else "below"
            title += f"; {line}: {allowed[i]:.3g}, far {side}"
        axes.set(yscale="log", xticks=range(len(found)), xlim=(-0.6, len(found) - 0.4))
        axes.set_xticklabels(list(found))
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(axis="y", alpha=0.25)
    panels[0].set_ylabel("largest eigenvalue")
    for late, update in enumerate(updates):
        name = f"after {update} updates" if update else "at the start"
        panels[0].plot([], [], MARKERS[late], color=COLOURS[late], label=name)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)

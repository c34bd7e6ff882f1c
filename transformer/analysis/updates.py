"""How far the first updates go: of the weights, and of the function they make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Annotated, final

import torch
from torch import Tensor

from ..core.configuration import Count, Positive, choice
from ..core.signature import Doc
from ..core.special import PAD
from ..model.transformer import Transformer
from ..modules.attention import MultiHeadAttention
from ..training.config import TrainConfig
from ..training.optimizers import OPTIMIZERS, make_optimizer
from ..training.schedules import SCHEDULES
from .finding import Finding, look, of_seeds
from .interval import known, mean
from .registry import PROBES, Probe, Say
from .setting import Arm, Batch, build
from .steps import descend, without_dropout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all in the layers"
# Of each kind of matrix, and of the function: a number for each update; None where it is 0/0 or not finite.
Curves = dict[str, list[float | None]]


def kinds(model: Transformer) -> dict[str, list[Tensor]]:
    """The weight matrices of a model by what they do; `all in the layers` leaves out embeddings."""
    found: dict[str, list[Tensor]] = {}
    for _, sublayer in model.sites():
        part = "attention" if isinstance(sublayer, MultiHeadAttention) else "feed-forward"
        for name, matrix in sublayer.named_children():
            if isinstance(matrix, torch.nn.Linear):
                found.setdefault(f"{part} {name}", []).append(matrix.weight)
    found[ALL] = [matrix for matrices in found.values() for matrix in matrices]
    tables = [model.source_embedding.tokens.weight, model.target_embedding.tokens.weight, model.output_table]
    found["embeddings and output"] = list({id(table): table for table in tables}.values())
    return found


def copies(matrices: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
    """The values that matrices have now."""
    return {kind: [matrix.detach().clone() for matrix in group] for kind, group in matrices.items()}


def update_ratio(before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
    """||W' - W|| / ||W||, Frobenius norms; of several matrices the mean over those that are not 0.

    None where all of them are 0, or where a ratio is not finite.
    """
    pairs = [(old, new) for old, new in zip(before, after, strict=True) if old.any()]
    return known(mean([float((new - old).norm() / old.norm()) for old, new in pairs])) if pairs else None


@torch.no_grad()
def function(model: Transformer, batch: Batch) -> Tensor:
    """F(x; theta): the decoder's output before the projection, at the n real target tokens: (n, D)."""
    without_dropout(model)
    return model.hidden(batch[0], batch[1])[batch[2] != PAD]


def function_change(start: Tensor, now: Tensor) -> float | None:
    """||F_t - F_0|| / ||F_0|| over all tokens; None where that is not finite."""
    return known(float((now - start).norm() / start.norm()))


@PROBES.register(
    "update",
    title="Size of the first updates",
    equation="||W_t - W_(t-1)|| / ||W_(t-1)||, and ||F(x; theta_t) - F(x; theta_0)|| / ||F(x; theta_0)||",
    paper="model update: Wang et al. 2022, arXiv 2203.00555",
    note="F is the decoder's output on a batch that is not trained on. With and without warm-up.",
)
@final
class Updates(Probe):
    """How far each of the first updates moves every kind of matrix, and the function away from its start.

    Each arm is trained twice, from equal values on equal batches: at the rate `lr` from update 1, and with a
    linear warm-up to it. The last batch is kept for F where there are several.
    """

    def __init__(
        self,
        *,
        updates: Annotated[Count, Doc("updates to look at")] = 60,
        lr: Annotated[Positive, Doc("learning rate, reached at the end of the warm-up")] = 1e-3,
        warmup: Annotated[Count, Doc("updates of the warm-up, in the runs that have one")] = 4000,
        optimizer: Annotated[choice(OPTIMIZERS), Doc("which update rule")] = "adam",  # type: ignore[valid-type]
    ) -> None:
        self.updates, self.lr, self.warmup, self.optimizer = updates, lr, warmup, optimizer

    def run(
        self,
        arms: Sequence[Arm],
        batches: list[Batch],
        sizes: tuple[int, int],
        seeds: Sequence[int],
        say: Say,
    ) -> Finding:
        runs: dict[tuple[str, int], list[Curves]] = {}
        losses: dict[tuple[str, int], list[float | None]] = {}
        zeros: dict[str, list[str]] = {}
        for arm in arms:
            for warmup in (0, self.warmup):
                for seed in seeds:
                    curves, last, zeros[arm.label] = self._run(arm, seed, warmup, batches, sizes)
                    runs.setdefault((arm.label, warmup), []).append(curves)
                    losses.setdefault((arm.label, warmup), []).append(last)
                    say(f"{arm.label}, warm-up {warmup}, seed {seed}: {self.updates} updates")
        middle = {key: _middle(several) for key, several in runs.items()}
        rows = [
            [
                label,
                warmup,
                kind,
                values[0],
                max((v for v in values if v is not None), default=None),
                values[-1],
            ]
            for (label, warmup), curves in middle.items()
            for kind, values in curves.items()
            if kind != "F"
        ]
        summary = [
            [label, warmup, *(curves["F"][i] for i in self._marks()), _median(losses[label, warmup])]
            for (label, warmup), curves in middle.items()
        ]
        return Finding(
            "update",
            ["arm", "warm-up", "matrix", "at update 1", "largest", f"at update {self.updates}"],
            rows,
            ["arm", "warm-up", *(f"F moved by {i + 1}" for i in self._marks()), "last loss"],
            summary,
            self._words(middle, len(seeds)) + _about_zeros(zeros),
            {
                "probe_batch": "the last, which is not trained on" if len(batches) > 1 else "the only one",
                "by_seed": [
                    {
                        "arm": label,
                        "warm-up": warmup,
                        "matrix": kind,
                        "curves": [run[kind] for run in several],
                    }
                    for (label, warmup), several in runs.items()
                    for kind in several[0]
                ],
                "last_losses": [
                    {"arm": label, "warm-up": warmup, "last loss": by_seed}
                    for (label, warmup), by_seed in losses.items()
                ],
                "start_at_0": zeros,
                "definition": "of a kind of matrix: the mean of ||dW|| / ||W|| over its matrices that are not"
                " 0; F: ||F_t - F_0|| / ||F_0|| over the real target tokens; by_seed: a list of numbers,"
                " update by update, for each seed; the tables have their medians",
            },
            partial(_draw, middle),
        )

    def _run(
        self, arm: Arm, seed: int, warmup: int, batches: list[Batch], sizes: tuple[int, int]
    ) -> tuple[Curves, float | None, list[str]]:
        """The curves, the last loss, and the kinds of matrices of which some start at 0."""
        model = build(arm, sizes, seed, batches[0])
        config = TrainConfig.model_validate(
            {"optimizer": self.optimizer, "lr": self.lr, "warmup": warmup, "schedule": "constant"}
        )
        schedule = SCHEDULES[config.schedule](config, None)
        rates = (schedule.learning_rate(update) for update in range(1, self.updates + 1))
        matrices = kinds(model)
        zeros = [kind for kind in matrices if kind != ALL and not all(w.any() for w in matrices[kind])]
        matrices[ALL] = [weight for weight in matrices[ALL] if weight.any()]
        before, start = copies(matrices), function(model, batches[-1])
        curves: Curves = {kind: [] for kind in (*matrices, "F")}
        loss: float | None = None
        for step in descend(model, batches[:-1] or batches, make_optimizer(model, config), rates):
            after = copies(matrices)
            for kind in matrices:
                curves[kind].append(update_ratio(before[kind], after[kind]))
            curves["F"].append(function_change(start, function(model, batches[-1])))
            before, loss = after, known(step.loss)
        return curves, loss, zeros

    def _marks(self) -> list[int]:
        """The updates that the summary tells of, from 0."""
        return sorted({0, min(9, self.updates - 1), self.updates - 1})

    def _words(self, middle: dict[tuple[str, int], Curves], seeds: int) -> list[str]:
        words = [
            f"Relative sizes with {self.optimizer} at rate {self.lr:g}; {of_seeds(seeds)}. F is the"
            " decoder's output on a fixed batch.",
        ]
        for label in dict.fromkeys(label for label, _ in middle):
            bare, warm = middle[label, 0]["F"], middle[label, self.warmup]["F"]
            words.append(
                f"{label}: without warm-up the first update moves F by {_size(bare[0])}, and"
                f" {len(bare)} move it by {_size(bare[-1])}; with warm-up over {self.warmup} by"
                f" {_size(warm[-1])}."
            )
        return words


def _size(change: float | None) -> str:
    return "no finite number" if change is None else f"{change:.3g} of its size"


def _about_zeros(zeros: dict[str, list[str]]) -> list[str]:
    return [
        f"{label}: W starts at 0 in some or all matrices of {', '.join(kinds)}: these have no ratio at"
        f" update 1, and `{ALL}` leaves them out."
        for label, kinds in zeros.items()
        if kinds
    ]


def _median(values: Sequence[float | None]) -> float | None:
    """Over seeds; None where one of them has none."""
    numbers = [value for value in values if value is not None]
    return median(numbers) if len(numbers) == len(values) else None


def _middle(runs: Sequence[Curves]) -> Curves:
    return {kind: [_median(at) for at in zip(*(run[kind] for run in runs), strict=True)] for kind in runs[0]}


def _draw(middle: dict[tuple[str, int], Curves], figure: Figure) -> None:
    figure.set_size_inches(10, 4.4)
    left, right = figure.subplots(1, 2)
    labels = list(dict.fromkeys(label for label, _ in middle))
    for (label, warmup), curves in middle.items():
        style = {**look(labels.index(label)), "linestyle": "--" if warmup else "-", "markersize": 4}
        style |= {"markevery": max(len(curves["F"]) // 8, 1), "fillstyle": "none" if warmup else "full"}
        name = f"{label}, warm-up {warmup}" if warmup else f"{label}, no warm-up"
        steps = range(1, len(curves["F"]) + 1)
        for axes, kind in ((left, ALL), (right, "F")):
            values = [value or math.nan for value in curves[kind]]  # a gap for none, and for 0 on a log axis
            axes.plot(steps, values, **style, label=name)
    left.set_title("Step of the weights: ||ΔW|| / ||W||, mean of matrices", loc="left")
    right.set_title("Step of the function: ||F(θₜ) − F(θ₀)|| / ||F(θ₀)||", loc="left")
    for axes in (left, right):
        axes.set(xlabel="update", yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", alpha=0.25)
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(middle), 4), frameon=False)

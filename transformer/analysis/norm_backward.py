"""What a norm does to the gradient that passes through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mean, median
from typing import Annotated, Any, TypeAlias, final

import torch
from torch import Tensor, nn

from ..core.configuration import Count
from ..core.seeding import derive_seed
from ..core.signature import Doc
from ..core.special import PAD
from ..model.transformer import Transformer
from ..modules.norms import Norm
from .finding import Finding, by_seed
from .norm_backward_figure import draw
from .registry import PROBES, Probe, Say
from .setting import Arm, Batch, build, mean_loss
from .steps import keep_activations

COLUMNS = ["arm", "norm", "mean in", "mean out", "variance in", "variance out", "taken", "jacobian"]
MEANS = ("mean_in", "mean_out", "variance_in", "variance_out")
TAKES = 1e-4  # the share of the variance from which a norm takes some: float32's rounding is far below
Passage: TypeAlias = tuple[Tensor, Tensor, Tensor]  # x, dL/dy, dL/dx through the norm alone: (n, D) each


@dataclass(frozen=True)
class Gradients:
    """A norm's gradient g = dL/dy, which enters, and dL/dx, which leaves; statistics over the D channels.

    `mean_in`, `mean_out`: root mean square over tokens of the mean over D, relative to the gradient's root
    mean square; 1 is a constant vector. `variance_in`, `variance_out`: mean over tokens of the variance over
    D. `taken`: 1 - E sigma^2 var(dL/dx) / E var(g), with sigma^2 the variance of the token x and the norm's
    eps; g / sigma, the gradient without the derivatives of mean and deviation, has 0.
    """

    mean_in: float
    mean_out: float
    variance_in: float
    variance_out: float
    taken: float


def gradients(passage: Passage, eps: float = 0.0) -> Gradients:
    """The statistics of one norm that divides by sqrt(variance + eps)."""
    x, entering, leaving = (part.double() for part in passage)
    variance_in, variance_out = (part.var(-1, correction=0) for part in (entering, leaving))
    kept = ((x.var(-1, correction=0) + eps) * variance_out).mean()
    return Gradients(
        _mean_share(entering),
        _mean_share(leaving),
        variance_in.mean().item(),
        variance_out.mean().item(),
        1 - (kept / variance_in.mean()).item(),
    )


def _mean_share(gradient: Tensor) -> float:
    square = gradient.square().mean()
    return float((gradient.mean(-1).square().mean() / square).sqrt()) if square > 0 else 0.0


def jacobian_scale(norm: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, iterations: int) -> Tensor:
    """||J||_2 ||x|| / sqrt(D) of each row of x (n, D), for a norm that sees one row at a time: (n).

    Power iteration on J^T J from `start` (n, D), all rows at once: u = J v is the derivative of <J^T w, v> in
    w, and J^T u the gradient of <norm(x), u>.
    """
    x = x.detach().requires_grad_()
    y = norm(x)
    w = torch.zeros_like(y, requires_grad=True)
    (pulled,) = torch.autograd.grad(y, x, w, create_graph=True)  # J^T w
    v = start
    largest = torch.zeros_like(x[:, 0])
    for _ in range(iterations):
        v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp(min=1e-30)
        (u,) = torch.autograd.grad(pulled, w, v, retain_graph=True)
        largest = torch.linalg.vector_norm(u, dim=-1)
        (v,) = torch.autograd.grad(y, x, u, retain_graph=True)
    lengths = torch.linalg.vector_norm(x.detach(), dim=-1)
    scale: Tensor = largest * lengths / math.sqrt(x.shape[-1])
    return scale


class Listener:
    """Hears the passages of one norm: of each call what it saw, and both gradients."""

    def __init__(self, norm: nn.Module) -> None:
        self.inputs: list[Tensor] = []
        self.passages: list[Passage] = []
        self.handles = [
            norm.register_forward_hook(self._forward),
            norm.register_full_backward_hook(self._backward),
        ]

    def _forward(self, norm: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self.inputs.append(given[0].detach())

    def _backward(self, norm: nn.Module, leaving: Any, entering: Any) -> None:
        x = self.inputs.pop()  # the last call is the first to hear of its gradient
        if leaving[0] is None:
            return
        rows = (part.reshape(-1, x.shape[-1]) for part in (x, entering[0], leaving[0]))
        flat, above, below = rows
        heard = above.abs().sum(-1) > 0  # padding has no gradient
        self.passages.append((flat[heard], above[heard], below[heard]))

    def stop(self) -> Passage | None:
        for handle in self.handles:
            handle.remove()
        if not self.passages or not sum(len(x) for x, _, _ in self.passages):
            return None
        x, entering, leaving = (torch.cat(parts) for parts in zip(*self.passages, strict=True))
        return x, entering, leaving


def named_norms(model: Transformer) -> Iterator[tuple[str, Norm]]:
    """Every norm that normalises, with a name like `decoder 1 cross norm`, in the order of the modules."""
    for path, module in model.named_modules():
        if isinstance(module, Norm) and module.normalises:
            words = [int(w) + 1 if w.isdigit() else w for w in path.split(".") if w != "layers"]
            yield " ".join(map(str, words)).replace("_residual", "").replace("_", " "), module


@dataclass
class Measured:
    """One norm of one arm, over the seeds."""

    name: str
    statistics: dict[int, Gradients] = field(default_factory=dict)
    jacobians: dict[int, list[float]] = field(default_factory=dict)

    @property
    def of_tokens(self) -> bool:
        """Does the norm see one token at a time? Only then do `taken` and the Jacobian mean anything."""
        return bool(self.jacobians)

    @property
    def stack(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def jacobian(self) -> float:
        """The median over tokens and seeds."""
        return median(scale for scales in self.jacobians.values() for scale in scales)

    def mean(self, statistic: str) -> float:
        return float(mean(getattr(each, statistic) for each in self.statistics.values()))

    def row(self, label: str) -> list[Any]:
        """The table's row; without numbers where no gradient came."""
        taken, scale = (self.mean("taken"), self.jacobian) if self.of_tokens else (None, None)
        means = map(self.mean, MEANS) if self.statistics else [None] * len(MEANS)
        return [label, self.name, *means, taken, scale]

    def of(self, seed: int) -> Measured:
        """The same norm, of one seed alone."""
        return Measured(
            self.name,
            {s: each for s, each in self.statistics.items() if s == seed},
            {s: each for s, each in self.jacobians.items() if s == seed},
        )


@PROBES.register(
    "norm-backward",
    title="Gradients through the norms",
    equation="mean and variance over D of dL/dy and dL/dx; ||J||_2 ||x|| / sqrt(D)",
    paper="Xu et al. 2019, arXiv 1911.07013; Jacobian: Xiong et al. 2020, arXiv 2002.04745, lemma 3",
    note="LayerNorm re-centres the gradient (mean 0) and takes from its variance.",
)
@final
class NormBackward(Probe):
    """What enters and what leaves each norm in the backward pass, and how long its Jacobian is.

    A norm's gain counts as part of it. dL/dx is what passes through the norm, not what the stream carries
    past it. The Jacobian's number is by power iteration, on some tokens, for norms that see one token at a
    time.
    """

    checkpoint = True

    def __init__(
        self,
        *,
        tokens: Annotated[Count, Doc("tokens of each norm whose Jacobian is measured")] = 64,
        iterations: Annotated[Count, Doc("iterations of the power method")] = 20,
    ) -> None:
        self.tokens, self.iterations = tokens, iterations

    def run(
        self,
        arms: Sequence[Arm],
        batches: list[Batch],
        sizes: tuple[int, int],
        seeds: Sequence[int],
        say: Say,
    ) -> Finding:
        every = {arm.label: self._arm(arm, batches, sizes, seeds, say) for arm in arms}
        found = {label: [norm for norm in norms if norm.statistics] for label, norms in every.items()}
        silent = {label: [n.name for n in norms if not n.statistics] for label, norms in every.items()}
        return Finding(
            "norm-backward",
            COLUMNS,
            [norm.row(label) for label, norms in found.items() for norm in norms],
            ["arm", "norms", "largest mean out", "taken from", "to", "jacobian from", "to"],
            [_summary(label, norms) for label, norms in found.items()],
            [
                "Means over D relative to the gradient's size; taken: the share of its variance that the norm"
                " takes away, dividing by sigma apart; jacobian: ||J||_2 ||x|| / sqrt(D).",
                *_words(found),
                *(
                    f"{label}: no gradient yet at {', '.join(names)}."
                    for label, names in silent.items()
                    if names
                ),
            ],
            {
                "without_gradient": silent,
                "by_seed": [
                    record
                    for label, norms in found.items()
                    for record in by_seed(
                        COLUMNS, 2, [[norm.of(seed).row(label) for norm in norms] for seed in seeds]
                    )
                ],
                "definition": " ".join((Gradients.__doc__ or "").split()),
            },
            partial(draw, found),
        )

    def _arm(
        self, arm: Arm, batches: list[Batch], sizes: tuple[int, int], seeds: Sequence[int], say: Say
    ) -> list[Measured]:
        measured: dict[str, Measured] = {}
        counts = [int((target_out != PAD).sum()) for _, _, target_out in batches]
        for seed in seeds:
            model = build(arm, sizes, seed, batches[0])
            keep_activations(model)
            norms = list(named_norms(model))
            listeners = [Listener(norm) for _, norm in norms]
            for batch, count in zip(batches, counts, strict=True):  # the loss of a token of all batches
                (mean_loss(model, batch) * count / sum(counts)).backward()  # type: ignore[no-untyped-call]
            for (name, norm), listener in zip(norms, listeners, strict=True):
                passage, one = listener.stop(), measured.setdefault(name, Measured(name))
                if passage is None:
                    continue
                eps = torch.as_tensor(getattr(norm, "eps", 0.0)).detach().item()  # some norms learn theirs
                one.statistics[seed] = gradients(passage, eps)
                if norm.span == "token":
                    draws = torch.Generator().manual_seed(derive_seed(seed, name))
                    x = passage[0][torch.randperm(len(passage[0]), generator=draws)[: self.tokens]]
                    start = torch.randn(x.shape, generator=draws).to(x)
                    one.jacobians[seed] = jacobian_scale(norm, x, start, self.iterations).tolist()
            say(f"{arm.label}, seed {seed}: {len(norms)} norms")
        return list(measured.values())


def _summary(label: str, norms: Sequence[Measured]) -> list[Any]:
    if not norms:
        return [label, 0, None, None, None, None, None]
    known = [norm for norm in norms if norm.of_tokens]
    taken, scales = [norm.mean("taken") for norm in known], [norm.jacobian for norm in known]
    ends = [min(taken), max(taken), min(scales), max(scales)] if known else [None] * 4
    largest = max(norm.mean("mean_out") for norm in norms)
    return [label, len(norms), largest, *ends]


def _words(found: dict[str, list[Measured]]) -> list[str]:
    words = []
    for label, norms in found.items():
        if not norms:
            words.append(f"{label}: no norms.")
            continue
        centred = sum(norm.mean("mean_out") < 1e-3 for norm in norms)
        shrunk = sum(norm.of_tokens and norm.mean("taken") > TAKES for norm in norms)
        words.append(
            f"{label}: {centred} of {len(norms)} norms re-centre the gradient (mean below 0.001 of its size),"
            f" {shrunk} take from its variance."
        )
    return words

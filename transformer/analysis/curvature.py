"""The largest eigenvalue of a matrix that is known by its products, of the Hessian above all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from .steps import parameter_vector

Product: TypeAlias = Callable[[Tensor], Tensor]  # v -> H v


@dataclass(frozen=True)
class Eigenvalue:
    """What the iteration found; `settled` says whether an eigenvalue is known to be that near."""

    value: float
    iterations: int
    settled: bool


def hessian_product(loss: Tensor, parameters: Sequence[Tensor]) -> Product:
    """V -> H v for the Hessian of a loss: the gradient of <dL/dw, v>. Vectors are flat."""
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    flat = parameter_vector(gradients)

    def product(vector: Tensor) -> Tensor:
        rows = torch.autograd.grad(flat @ vector, parameters, retain_graph=True, materialize_grads=True)
        return parameter_vector(rows)

    return product


def scaled(product: Product, scale: Tensor) -> Product:
    """V -> D H D v for a diagonal D: its eigenvalues are those of D^2 H."""
    return lambda vector: scale * product(scale * vector)


def top_eigenvalue(product: Product, start: Tensor, iterations: int, tolerance: float) -> Eigenvalue | None:
    """The algebraically largest eigenvalue of a symmetric matrix A, by Lanczos' iteration from `start`.

    Power iteration that keeps its history: the top eigenvalue of A in the space of v, A v, A^2 v, ..., made
    orthonormal in full. So a large negative eigenvalue is not in the way. It stops when some eigenvalue is
    known to lie within `tolerance` of the value found, relative to it. None where a product is not finite.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    value = math.nan
    for iteration in range(1, min(iterations, start.numel()) + 1):
        image = product(basis[-1])
        if not image.isfinite().all():
            return None
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):  # twice is enough for rounding
            for vector in basis:
                image -= (vector @ image) * vector
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        value, left = float(values[-1]), float(image.norm())
        if abs(left * vectors[-1, -1]) <= tolerance * abs(value):
            return Eigenvalue(value, iteration, True)
        beside.append(left)
        basis.append(image / left)
    return Eigenvalue(value, len(diagonal), len(diagonal) == start.numel())


def largest_rate(curvature: float, momentum: float = 0.0) -> float:
    """The rate above which a quadratic of this curvature diverges: 2 (1 + b) / ((1 - b) curvature).

    For m <- b m + (1 - b) g, w <- w - lr m, whose modes are the roots of
    z^2 - (1 + b - lr (1 - b) curvature) z + b: both are inside the unit circle below that rate. With b = 0 it
    is plain descent's 2 / curvature, with b = 0.9 it is 38 / curvature. Infinite without curvature.
    """
    return 2 * (1 + momentum) / ((1 - momentum) * curvature) if curvature > 0 else math.inf


def adam_scale(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Tensor:
    """P^(-1/2) of Adam's preconditioner P = diag(sqrt(v / (1 - b2^t)) + eps), flat."""
    roots = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            unbiased = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            roots.append((id(parameter), (unbiased.sqrt() + group["eps"]).rsqrt()))
    by_parameter = dict(roots)
    return parameter_vector(by_parameter[id(parameter)] for parameter in parameters)

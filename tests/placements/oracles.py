"""Each placement as functions only: a stack of sublayers, sharing no code with the package.

`f` is the list of sublayers in order, `norm` the list of site norms in the same order, `final` the norm
at the top (None where there is none), `n` and `m` the depths of encoder and decoder, `side` the stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

from torch import Tensor

Function = Callable[[Tensor], Tensor]


def post(
    x: Tensor, f: Sequence[Function], norm: Sequence[Function], final: Function | None, **_: object
) -> Tensor:
    assert final is None
    return reduce(lambda s, i: norm[i](s + f[i](s)), range(len(f)), x)


def pre(
    x: Tensor, f: Sequence[Function], norm: Sequence[Function], final: Function | None, **_: object
) -> Tensor:
    assert final is not None
    return final(reduce(lambda s, i: s + f[i](norm[i](s)), range(len(f)), x))


def deepnorm_constants(side: str, n: int, m: int) -> tuple[float, float]:
    """(alpha, beta) of an encoder-decoder with n and m layers, by logarithms."""
    if side == "encoder":
        root = math.exp((4 * math.log(n) + math.log(m)) / 16)
        return 0.81 * root, 0.87 / root
    return math.sqrt(math.sqrt(3 * m)), 1 / math.sqrt(math.sqrt(12 * m))


def deepnorm(
    x: Tensor,
    f: Sequence[Function],
    norm: Sequence[Function],
    final: Function | None,
    *,
    side: str,
    n: int,
    m: int,
) -> Tensor:
    assert final is None
    alpha, _ = deepnorm_constants(side, n, m)
    for branch, normed in zip(f, norm, strict=True):
        x = normed(x * alpha + branch(x))
    return x


def resi_dual(
    x: Tensor, f: Sequence[Function], norm: Sequence[Function], final: Function | None, **_: object
) -> Tensor:
    assert final is not None
    total = x
    for branch, normed in zip(f, norm, strict=True):
        update = branch(x)
        total = total + update
        x = normed(x + update)
    return x + final(total)


ORACLES = {"post": post, "pre": pre, "deepnorm": deepnorm, "resi_dual": resi_dual}

# norms in an encoder of n layers and a decoder of m layers, counted from the papers' figures
NORM_COUNTS: dict[str, Callable[[int, int], int]] = {
    "post": lambda n, m: 2 * n + 3 * m,
    "pre": lambda n, m: 2 * n + 1 + 3 * m + 1,
    "deepnorm": lambda n, m: 2 * n + 3 * m,
    "resi_dual": lambda n, m: 2 * n + 1 + 3 * m + 1,
}

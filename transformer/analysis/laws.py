"""Laws of growth with depth, told where one fits clearly better than the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .interval import line, log_slope, mean

STEADY = 0.1  # a spread of this share of the mean is called constant
FEWEST = 4  # points that can tell two curves of two numbers each apart
CLEARLY = 4.0  # how often the better law's squared error has to go into the other's


@dataclass(frozen=True)
class LayerLaw:
    """`rate` is what a layer adds (linear, either) or multiplies by (exponential), `fit` its R^2."""

    kind: Literal["constant", "linear", "exponential", "either", "unclear"]
    rate: float | None
    fit: float | None
    words: str


def law_of_layers(by_seed: Sequence[Sequence[float]]) -> LayerLaw:
    """The law of m_1, m_2, ... in each seed's m_0, m_1, ...: the first layer may rescale m_0, the embedding.

    Fewer than four layers tell no law. A spread of the means over seeds below 10 % is constant. Lines are
    fitted to m and to ln m by least squares; a line or an exponential curve is told where its squared error
    in m is smaller by a factor of four for the means, and smaller for every seed alone; else either.

    Over that an exponential curve has to grow, or shrink, more than L times from layer 1 to layer L, in every
    seed. A line with m_0 >= 0 cannot: (m_0 + L c) / (m_0 + c) <= L; nor, shrinking, one
    that would stay above 0 for a layer more. What grows less may be a line whose
    layers add unequally, and of a few layers that is often the nearer to an exponential curve by chance.
    """
    seeds = [list(values[1:]) for values in by_seed]
    if not all(0 < value < math.inf for m in seeds for value in m):
        return LayerLaw("unclear", None, None, "the stream is zero or not finite")
    m = [mean(same) for same in zip(*seeds, strict=True)]
    if len(m) < FEWEST:
        level = f"the mean square is {m[-1]:.3g} at the top; " if m else ""
        return LayerLaw("unclear", None, None, f"{level}fewer than {FEWEST} layers tell no law")
    if _steady(m):
        return LayerLaw("constant", 0.0, None, f"the stream keeps its mean square, {mean(m):.3g}")
    ends = f"from {m[0]:.3g} after layer 1 to {m[-1]:.3g} after layer {len(m)}"
    verb = "grows" if m[-1] > m[0] else "shrinks"
    layers = list(range(1, len(m) + 1))
    start, slope = line(layers, m)
    factor = math.exp(line(layers, [math.log(value) for value in m])[1])
    fits = _line_and_exponential(layers, m)
    curved = fits[1] > fits[0]
    if not _told_apart(fits, [_line_and_exponential(layers, one) for one in seeds]) or (
        curved and not all(_beyond_a_line(one) for one in seeds)
    ):
        law = f"a line (R^2 {fits[0]:.3f}) and an exponential curve (R^2 {fits[1]:.3f}) are not told apart"
        return LayerLaw("either", slope, fits[0], f"the stream {verb} {ends}; {law}")
    if not curved:
        law = f"{start:.3g} {'+' if slope > 0 else '-'} {abs(slope):.3g} l (R^2 {fits[0]:.3f})"
        return LayerLaw("linear", slope, fits[0], f"the stream {verb} {ends}; it looks linear, {law}")
    law = f"times {factor:.3g} a layer (R^2 {fits[1]:.3f})"
    return LayerLaw("exponential", factor, fits[1], f"the stream {verb} {ends}; it looks exponential, {law}")


@dataclass(frozen=True)
class DepthLaw:
    """How y goes with the depth N of the model; `powers` are the slopes of ln y on ln N, one for each seed.

    `linear` and `logarithmic` are the R^2 of y = a + b N and y = a + b ln N through the means over seeds.
    """

    kind: Literal["constant", "N", "log N", "either", "too few depths", "no law"]
    powers: list[float]
    linear: float | None = None
    logarithmic: float | None = None


def law_of_depth(depths: Sequence[int], by_seed: Sequence[Sequence[float]]) -> DepthLaw | None:
    """The law of y in N, from y at each depth for each seed; None with one depth.

    N or log N is told where that law's squared error is smaller by a factor of four for the means over seeds,
    and smaller for every seed alone; else either. A spread of the means below 10 % is constant. Where some y
    is 0 or not finite there is no law.
    """
    if len(set(depths)) < 2:
        return None
    powers = [p for values in by_seed if (p := log_slope(depths, values)) is not None]
    if len(powers) < len(by_seed):
        return DepthLaw("no law", [])
    means = [mean(values) for values in zip(*by_seed, strict=True)]
    if _steady(means):
        return DepthLaw("constant", powers)
    if len(set(depths)) < FEWEST:
        return DepthLaw("too few depths", powers)
    fits = _line_and_logarithm(depths, means)
    if not _told_apart(fits, [_line_and_logarithm(depths, values) for values in by_seed]):
        return DepthLaw("either", powers, *fits)
    return DepthLaw("N" if fits[0] > fits[1] else "log N", powers, *fits)


def _line_and_exponential(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """R^2 of a + b x and of exp(a + b x), the second fitted to ln y."""
    foot, power = line(x, [math.log(value) for value in y])
    return _straight(x, y), _fit(x, y, lambda a: math.exp(foot + power * a))


def _line_and_logarithm(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """R^2 of a + b x and of a + b ln x."""
    return _straight(x, y), _straight([math.log(a) for a in x], y)


def _straight(x: Sequence[float], y: Sequence[float]) -> float:
    start, slope = line(x, y)
    return _fit(x, y, lambda a: start + slope * a)


def _steady(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= STEADY * mean(values)


def _beyond_a_line(m: Sequence[float]) -> bool:
    """Do L layers change m more than L times from the first to the last?"""
    return max(m[-1] / m[0], m[0] / m[-1]) > len(m)


def _told_apart(of_means: tuple[float, float], by_seed: Sequence[tuple[float, float]]) -> bool:
    """Is one R^2 of the means clearly the better, and the same one the better in every seed?"""
    errors = sorted(1 - fit for fit in of_means)
    sides = {first > second for first, second in (of_means, *by_seed)}
    return errors[1] >= CLEARLY * errors[0] and len(sides) == 1


def _fit(x: Sequence[float], y: Sequence[float], law: Callable[[float], float]) -> float:
    """R^2: 1 - squared error / squared spread; 1 where nothing spreads."""
    middle = mean(y)
    wrong = math.fsum((b - law(a)) ** 2 for a, b in zip(x, y, strict=True))
    spread = math.fsum((b - middle) ** 2 for b in y)
    return 1 - wrong / spread if spread else 1.0

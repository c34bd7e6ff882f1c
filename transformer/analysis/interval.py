"""Means over seeds with Student's t interval, and slopes of straight lines."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVEL = 0.95  # of every interval


def t_inside(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's T with a whole number of degrees of freedom.

    With theta = atan(t / sqrt(nu)) it is a finite sum of powers of cos(theta).
    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    theta = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    inside = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return min(1.0, inside)


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t with P(|T| < t) = level, by bisection: 12.706 for one degree of freedom at 95 %."""
    low, high = 0.0, 1.0
    while t_inside(high, freedom) < level:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_inside(middle, freedom) < level else (low, middle)
    return high


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def known(value: float) -> float | None:
    """The value; None for one that is not finite: 0/0, or a number beyond the largest."""
    return value if math.isfinite(value) else None


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Mean -+ t s / sqrt(n), for the mean of independent values; None for fewer than two."""
    n, middle = len(values), mean(values)
    if n < 2:
        return None
    deviation = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1, level) * deviation / math.sqrt(n)
    return middle - half, middle + half


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """(intercept, slope) of the least squares line through the points."""
    middle, height = mean(x), mean(y)
    square = math.fsum((a - middle) ** 2 for a in x)
    slope = math.fsum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / square
    return height - slope * middle, slope


def log_slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The exponent p of y ~ x^p, by least squares of ln y on ln x; None where some y is 0 or not finite."""
    if not all(0 < value < math.inf for value in y):
        return None
    return line([math.log(a) for a in x], [math.log(b) for b in y])[1]

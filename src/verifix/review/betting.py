"""Bounds on a mean that hold at every look: capital that grows in a bet against too small a mean.

A player bets on values y₁, y₂, … from 0 to 1 whose means, given all earlier ones, are μ₁, μ₂, … For a fixed λ > 0 the
capital Π (1 + λ yᵢ) / (1 + λ μᵢ) is a martingale that starts at 1, and so is a mixture of such capitals over several λ.
By Ville's inequality it ever reaches 1/α with a probability of at most α. Every m for which the mixture of the capitals
Π (1 + λ yᵢ) / (1 + λ m) is 1/α or more is therefore excluded as the mean, at all times at once. Where the μᵢ differ,
the same holds of their average m̄ so far, because Π (1 + λ μᵢ) ≤ (1 + λ m̄)ⁿ. In a sample that is drawn from N values
without replacement, μᵢ follows from their mean m and the values before: μᵢ = (N m − y₁ − … − yᵢ₋₁) / (N − i + 1).

Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, J. Royal Statistical Society B 86,
2024 (arXiv 2010.09686), also for draws without replacement; Orabona and Jun, Tight concentrations and confidence
sequences from the regret of universal portfolio, IEEE Trans. Information Theory 70, 2024 (arXiv 2110.14099), for
mixtures; Robbins, Statistical methods related to the law of the iterated logarithm, Annals of Mathematical Statistics
41, 1970.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LEVEL = 0.95

BETS = np.expm1(np.geomspace(0.02, 5.0, 32))
"""The λ of the mixture, with equal weights: from log(1 + λ) = 0.02, for small differences over thousands of samples, to
5, for a value that occurs although its mean is nearly 0."""

STEPS = 26
"""Bisections of a bound: to 10⁻⁸ of the range."""


@dataclass(frozen=True)
class Bounds:
    """An estimate with bounds, in the unit of the values.

    Attributes
    ----------
    estimate
        The mean of the values; None if there are none.
    low, high
        Bounds that hold at all looks together, with a probability of `level`.
    count
        How many values there are.
    level
        The probability.
    """

    estimate: float | None
    low: float
    high: float
    count: int
    level: float = LEVEL


def bounds(values: Array, low: float, high: float, *, total: int | None = None, level: float = LEVEL) -> Bounds:
    """Return the bounds of a mean after some values.

    Parameters
    ----------
    values
        float ``[n]``, in the order in which they were drawn.
    low, high
        What a value can be at least and at most.
    total
        How many values there are in all, if these are drawn from them without replacement: then the mean is theirs.
    level
        Probability with which all looks together hold.

    Returns
    -------
    Bounds
        Each bound is wrong with a probability of at most half of 1 − level.
    """
    y = (np.asarray(values, dtype=float) - low) / (high - low)
    if not len(y):
        return Bounds(None, low, high, 0, level)
    alpha = (1 - level) / 2
    least, most = lower_bound(y, alpha, total), 1 - lower_bound(1 - y, alpha, total)
    mean, least, most = (low + (high - low) * x for x in (float(y.mean()), least, most))
    return Bounds(mean, least, most, len(y), level)


def lower_bound(y: Array, alpha: float, total: int | None = None) -> float:
    """Return the smallest mean that is not excluded.

    Parameters
    ----------
    y
        float ``[n]`` from 0 to 1, in the order in which they were drawn.
    alpha
        Probability with which the true mean is ever excluded, at most.
    total
        See `bounds`.

    Returns
    -------
    float
        From 0 to 1.
    """
    least = 0.0 if total is None else float(y.sum()) / total
    most = 1.0 if total is None else (float(y.sum()) + total - len(y)) / total
    if log_capital(y, least, total) < -math.log(alpha):
        return least
    for _ in range(STEPS):
        middle = (least + most) / 2
        if log_capital(y, middle, total) >= -math.log(alpha):
            least = middle
        else:
            most = middle
    return least


def log_capital(y: Array, mean: float, total: int | None = None) -> float:
    """Return the logarithm of the capital of who bets that the mean is larger than `mean`.

    Parameters
    ----------
    y
        float ``[n]`` from 0 to 1, in the order in which they were drawn.
    mean
        The mean to bet against.
    total
        See `bounds`.

    Returns
    -------
    float
        It falls as the mean rises; 0 without values.
    """
    won = np.log1p(BETS[:, None] * y).sum(axis=1)
    if total is None:
        expected = len(y) * np.log1p(BETS * mean)
    else:
        drawn = np.arange(len(y))
        before = np.concatenate([[0.0], np.cumsum(y)[:-1]])
        means = np.clip((total * mean - before) / (total - drawn), 0.0, 1.0)
        expected = np.log1p(BETS[:, None] * means).sum(axis=1)
    return float(np.logaddexp.reduce(won - expected) - math.log(len(BETS)))


def needed(y: Array, mean: float, alpha: float) -> int | None:
    """Estimate how many more values would exclude a mean, if they are like those so far.

    Parameters
    ----------
    y
        float ``[n]`` from 0 to 1.
    mean
        The mean that is to be excluded from below.
    alpha
        See `lower_bound`.

    Returns
    -------
    int or None
        0 if it is excluded; None if the values so far do not lie above it.
    """
    missing = -math.log(alpha) - log_capital(y, mean)
    if missing <= 0:
        return 0
    if not len(y) or y.mean() <= mean:
        return None
    growth = float((np.log1p(BETS[:, None] * y).mean(axis=1) - np.log1p(BETS * mean)).max())
    return math.ceil(missing / growth) if growth > 0 else None

"""How sure a gain in right answers is: interval, tests, and how many samples would decide.

Everything here sees only paired outcomes: for each sample, whether a wrong answer became right (+1), a right one wrong
(−1), or neither (0). Copies, and samples of one group, count as one; see `by_group`. docs/proof.md has the formulas and
their sources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from verifix.evaluation.predictions import Array

THRESHOLD = 0.025
"""One-sided: a harmless correction that changes nothing is called better in at most this share of verified sets."""

LEVEL = 0.95
RESAMPLES = 2000
"""Of the bootstrap; at 10,000 samples they take half a second."""

SIGN_FLIPS = 9999
BATCH_NUMBERS = 2**22
"""Numbers drawn at once; keeps memory below a few hundred MiB."""

MOST_FLIPS = 10**5
"""Samples in groups that change up to which random signs are counted exactly, beyond it they are drawn."""


@dataclass(frozen=True)
class Outcomes:
    """Paired outcomes of n independent samples, or groups of samples.

    Attributes
    ----------
    differences
        ``[n]`` of −1, 0 and 1; of a group, the mean of its samples.
    weights
        float64 ``[n]`` with mean 1, or None if every sample counts the same.
    strata
        int64 ``[n]``: samples with the same number were drawn together, so many of each.
    totals
        int64 ``[n]``: in each group, samples that are fixed less those that are broken; None if samples are weighted,
        or there are no groups.
    """

    differences: Array
    weights: Array | None
    strata: Array
    totals: Array | None = None

    @property
    def whole(self) -> bool:
        """Whether all count the same, and each is fixed, broken or neither as a whole."""
        return self.weights is None and bool(np.isin(self.differences, (-1, 0, 1)).all())

    @property
    def fixed(self) -> int:
        """How many wrong answers became right."""
        return int((self.differences > 0).sum())

    @property
    def broken(self) -> int:
        """How many right answers became wrong."""
        return int((self.differences < 0).sum())

    @property
    def gain(self) -> float:
        """Mean difference, weighted."""
        return float(np.average(self.differences, weights=self.weights))

    @property
    def effective(self) -> float:
        """How many samples of equal weight would tell as much (Kish): (Σ w)² / Σ w²."""
        w = self.weights
        return len(self.differences) if w is None else float(w.sum() ** 2 / (w**2).sum())


@dataclass(frozen=True)
class Interval:
    """An estimate in points (hundredths), with the bounds of its interval.

    Attributes
    ----------
    estimate
        Points of accuracy.
    low, high
        Bounds.
    level
        Share of verified sets whose interval covers the truth.
    """

    estimate: float
    low: float
    high: float
    level: float = LEVEL


def strata_of(labels: Array, weights: Array | None) -> Array:
    """Tell which samples were drawn together.

    Parameters
    ----------
    labels
        int64 ``[n]``.
    weights
        float64 ``[n]``, or None.

    Returns
    -------
    ndarray
        The labels, if every class has one weight, for then its share is known; else one stratum, which is never too
        sure. One stratum too if nothing is weighted.
    """
    if weights is None:
        return np.zeros_like(labels)
    spread = [np.ptp(weights[labels == c]) <= 1e-9 * weights.max() for c in np.unique(labels)]
    return labels if all(spread) else np.zeros_like(labels)


def by_group(outcomes: Outcomes, groups: Array) -> Outcomes:
    """Return the outcomes of groups, each of which counts as one: as much as its samples together.

    Parameters
    ----------
    outcomes
        Of samples.
    groups
        int64 ``[n]``: which group each sample is of, counted from 0.

    Returns
    -------
    Outcomes
        With the same gain. A group that has samples of several strata puts all into one stratum, which is never too
        sure.
    """
    w = np.ones(len(groups)) if outcomes.weights is None else outcomes.weights
    sizes = np.bincount(groups, w)
    sums = np.bincount(groups, w * outcomes.differences)
    means = np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0)
    _, first = np.unique(groups, return_index=True)
    strata = outcomes.strata[first]
    if (strata[groups] != outcomes.strata).any():
        strata = np.zeros_like(strata)
    alike = np.ptp(sizes) <= 1e-9 * sizes.max()
    totals = None if outcomes.weights is not None else np.rint(sums).astype(np.int64)
    return Outcomes(means, None if alike else sizes / sizes.mean(), strata, totals)


def gain_interval(outcomes: Outcomes, seed: int) -> Interval:
    """Return the bootstrap interval of the gain.

    Parameters
    ----------
    outcomes
        Paired outcomes.
    seed
        Seed of the resampling.

    Returns
    -------
    Interval
        Percentiles of the gain over resampled pairs, drawn within each stratum. Where all outcomes are the same there
        is nothing to resample: then how far the others could go is bounded by Clopper and Pearson.
    """
    from scipy.stats import bootstrap

    gain, d = outcomes.gain, outcomes.differences
    if np.ptp(d) == 0:
        return _constant_interval(float(d[0]), outcomes.effective)
    weighted = outcomes.weights is not None
    found = bootstrap(
        _resampled_together(outcomes.strata) if weighted else (d.astype(float),),
        partial(_weighted_gain, outcomes) if weighted else np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_NUMBERS // len(d)),
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(100 * gain, 100 * float(found.low), 100 * float(found.high))


def _weighted_gain(outcomes: Outcomes, *drawn: Array, axis: int) -> Any:
    """Return the gain of samples drawn by index, from each stratum its own."""
    parts = [rows.astype(np.intp) for rows in drawn]
    w: Array = outcomes.weights  # type: ignore[assignment]  # without weights, the mean does
    weighted = w * outcomes.differences
    return sum(weighted[rows].sum(axis=axis) for rows in parts) / sum(w[rows].sum(axis=axis) for rows in parts)


def _constant_interval(value: float, effective: float) -> Interval:
    from scipy.stats import binomtest

    n = max(1, math.floor(effective))
    most = float(binomtest(0, n).proportion_ci(LEVEL).high)  # of other outcomes
    return Interval(100.0 * value, 100 * (value - most * (value + 1)), 100 * (value + most * (1 - value)))


def _resampled_together(strata: Array) -> list[Array]:
    """Return the indices of each stratum; strata of a single sample, which show no spread, are put together."""
    parts = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    parts.sort(key=len)
    singles = [part for part in parts if len(part) == 1]
    rest = parts[len(singles) :]
    if len(singles) == 1 and rest:
        singles.append(rest.pop(0))
    return [*([np.concatenate(singles)] if singles else []), *rest]


def p_values(outcomes: Outcomes, seed: int) -> tuple[float, float]:
    """Test the gain both ways.

    Parameters
    ----------
    outcomes
        Paired outcomes.
    seed
        Seed of the random signs, which only weighted outcomes need.

    Returns
    -------
    better, worse : float
        One-sided p-values of "no better" and of "no worse". Without weights, the exact McNemar test; with weights, or
        groups that change in part, the larger one of a stratified t-test without its skewness and of a test by random
        signs.
    """
    if outcomes.whole:
        return mcnemar(outcomes.fixed, outcomes.broken), mcnemar(outcomes.broken, outcomes.fixed)
    return _weighted_p(outcomes, 1, seed), _weighted_p(outcomes, -1, seed)


def mcnemar(wins: int, losses: int) -> float:
    """Return the one-sided p-value of the exact McNemar test: that of `wins` or more among as many fair coins."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue) if wins + losses else 1.0


def _weighted_p(outcomes: Outcomes, direction: int, seed: int) -> float:
    from scipy.stats import t

    found = moments_of(outcomes, direction)
    by_t = float(t.sf(_without_skewness(direction * outcomes.gain / found.error, found.skewness), found.freedom))
    return max(by_t, _sign_flip_p(outcomes, direction, seed))


def _without_skewness(statistic: float, skewness: float) -> float:
    """Return Hall's transformation of a t-statistic, which rises with it."""
    if skewness == 0:
        return statistic
    return ((1 + skewness * statistic / 3) ** 3 - 1) / skewness + skewness / 6


@dataclass(frozen=True)
class GainMoments:
    """What is known of the distribution of a weighted gain.

    Attributes
    ----------
    error
        Standard error, never 0.
    freedom
        Its degrees of freedom, by Satterthwaite.
    skewness
        Of the gain in one direction, 0 or less: rare heavy losses make chance look like a gain, rare gains do not.
    """

    error: float
    freedom: float
    skewness: float


def moments_of(outcomes: Outcomes, direction: int = 1) -> GainMoments:
    """Return the moments of a weighted gain.

    Parameters
    ----------
    outcomes
        Paired outcomes.
    direction
        1 to ask whether there is a gain, −1 to ask whether there is a loss.

    Returns
    -------
    GainMoments
        A stratum's variance is taken with two more samples that change as often as all others do, and the whole with
        one more heavy change against the direction: what was not seen in a few samples may still happen.
    """
    d = outcomes.differences.astype(float)
    w = np.ones(len(d)) if outcomes.weights is None else outcomes.weights
    rate = (np.count_nonzero(d) + 1) / (len(d) + 1)
    variances, freedoms, third = [float(w.max() ** 2)], [1], -float(w.max() ** 3)
    for stratum in np.unique(outcomes.strata):
        rows = np.flatnonzero(outcomes.strata == stratum)
        own, n = w[rows], len(rows)
        if not own.any():
            continue
        scatter = own * (d[rows] - np.average(d[rows], weights=own))
        variances.append(float((scatter**2).sum() + 2 * rate * (own**2).mean()) * n / (n + 1))
        freedoms.append(max(n - 1, 1))
        third += direction * float((scatter**3).sum())
    v = np.array(variances)
    freedom = float(v.sum() ** 2 / (v**2 / np.array(freedoms)).sum())
    return GainMoments(math.sqrt(v.sum()) / len(d), freedom, min(third / float(v.sum()) ** 1.5, 0.0))


def _sign_flip_p(outcomes: Outcomes, direction: int, seed: int) -> float:
    """Return how often random signs of the changes reach the weighted sum that was seen."""
    from scipy.stats import monte_carlo_test

    w = np.ones(len(outcomes.differences)) if outcomes.weights is None else outcomes.weights
    changes = (w * outcomes.differences)[outcomes.differences != 0]
    if not len(changes):
        return 1.0
    if outcomes.totals is not None and np.abs(outcomes.totals).sum() <= MOST_FLIPS:
        return sign_flip(direction * outcomes.totals)
    generator = np.random.default_rng(seed)
    result = monte_carlo_test(
        direction * np.sign(changes),
        lambda size: generator.choice(np.array([-1.0, 1.0]), size),
        lambda signs, axis: signs @ np.abs(changes),  # noqa: ARG005 - it is always the last one
        vectorized=True,
        n_resamples=SIGN_FLIPS,
        batch=max(1, BATCH_NUMBERS // len(changes)),
        alternative="greater",
    )
    return float(result.pvalue)


def sign_flip(totals: Array) -> float:
    """Return how many of all choices of signs give a sum as large as the one that was seen.

    Parameters
    ----------
    totals
        Whole numbers ``[n]``.

    Returns
    -------
    float
        The share, from 2⁻ⁿ to 1. With totals of −1, 0 and 1 it is `mcnemar`.
    """
    from scipy.signal import convolve
    from scipy.stats import binom

    sizes, counts = np.unique(np.abs(totals[totals != 0]), return_counts=True)
    shares = np.ones(1)  # of the choices of signs in which so many samples count for
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        own = np.zeros(size * count + 1)
        own[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        shares = convolve(shares, own)
    tail = float(shares[int(totals[totals > 0].sum()) :].sum())
    return min(max(tail, 0.5 ** int(counts.sum())), 1.0)

"""How sure a gain in right answers is: interval, tests, and how many samples would decide.

Everything here sees only paired outcomes: for each sample, whether a wrong answer became right (+1), a right one wrong
(−1), or neither (0). docs/proof.md has the formulas and their sources.
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
POWER = 0.8

RESAMPLES = 2000
"""Of the bootstrap; at 10,000 samples they take half a second."""

SIGN_FLIPS = 9999
BATCH_NUMBERS = 2**22
"""Numbers drawn at once; keeps memory below a few hundred MiB."""

LARGEST_EXACT = 10**7
"""Up to this many samples the power is summed exactly, beyond it Connor's approximation is as good."""


@dataclass(frozen=True)
class Outcomes:
    """Paired outcomes of n samples.

    Attributes
    ----------
    differences
        ``[n]`` of −1, 0 and 1.
    weights
        float64 ``[n]`` with mean 1, or None if every sample counts the same.
    strata
        int64 ``[n]``: samples with the same number were drawn together, so many of each.
    """

    differences: Array
    weights: Array | None
    strata: Array

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
        return _constant_interval(int(d[0]), outcomes.effective)
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


def _constant_interval(value: int, effective: float) -> Interval:
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
        One-sided p-values of "no better" and of "no worse". Without weights, the exact McNemar test; with weights, the
        larger one of a stratified t-test without its skewness and of a test by random signs.
    """
    if outcomes.weights is None:
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
    rows = np.flatnonzero(outcomes.differences)
    if not len(rows):
        return 1.0
    generator = np.random.default_rng(seed)
    result = monte_carlo_test(
        direction * outcomes.differences[rows].astype(float),
        lambda size: generator.choice(np.array([-1.0, 1.0]), size),
        lambda signs, axis: signs @ w[rows],  # noqa: ARG005 - it is always the last one
        vectorized=True,
        n_resamples=SIGN_FLIPS,
        batch=max(1, BATCH_NUMBERS // len(rows)),
        alternative="greater",
    )
    return float(result.pvalue)


def samples_needed(outcomes: Outcomes) -> int | None:
    """Return how many samples in all would decide, if the gain that was seen is real.

    Parameters
    ----------
    outcomes
        Paired outcomes that did not decide.

    Returns
    -------
    int or None
        The number at which the test comes out below `THRESHOLD` with a probability of `POWER`; None if there is no
        gain and no loss.
    """
    n, gain = len(outcomes.differences), abs(outcomes.gain)
    if gain == 0:
        return None
    if outcomes.weights is not None:
        return max(n + 1, math.ceil(n * (_two_normals() * moments_of(outcomes).error / gain) ** 2))
    wins, losses = sorted((outcomes.fixed, outcomes.broken), reverse=True)
    return _smallest(wins / n, losses / n, n + 1)


def _two_normals() -> float:
    from scipy.stats import norm

    return float(norm.isf(THRESHOLD) + norm.ppf(POWER))


def _smallest(wins: float, losses: float, least: int) -> int:
    """Return the smallest number of samples, `least` or more, with enough power."""
    low, high = least, _connor(wins, losses)
    if high > LARGEST_EXACT:
        return high
    if mcnemar_power(low, wins, losses) >= POWER:
        return low
    while mcnemar_power(high, wins, losses) < POWER:
        low, high = max(low, high), 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mcnemar_power(middle, wins, losses) >= POWER else (middle, high)
    return high


def _connor(wins: float, losses: float) -> int:
    """Approximate the number of pairs that McNemar's test needs."""
    from scipy.stats import norm

    changed, gain = wins + losses, wins - losses
    root = float(norm.isf(THRESHOLD) * math.sqrt(changed) + norm.ppf(POWER) * math.sqrt(changed - gain**2))
    return math.ceil((root / gain) ** 2)


def mcnemar_power(samples: int, wins: float, losses: float) -> float:
    """Return the probability that the exact McNemar test decides.

    Parameters
    ----------
    samples
        Number of pairs.
    wins, losses
        Probabilities that a pair counts for and against.

    Returns
    -------
    float
        Σ over m of P(m pairs count) · P(of them, enough for p < `THRESHOLD` count for).
    """
    from scipy.stats import binom

    changed = wins + losses
    middle, width = samples * changed, 10 * math.sqrt(samples * changed) + 10  # leaves out less than 10⁻²⁰
    m = np.arange(max(0, math.floor(middle - width)), min(samples, math.ceil(middle + width)) + 1)
    enough = binom.isf(THRESHOLD, m, 0.5)  # the largest count of wins that is not enough
    return float((binom.pmf(m, samples, changed) * binom.sf(enough, m, wins / changed)).sum())

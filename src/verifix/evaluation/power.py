"""How many samples would decide, if the gain that was seen is real; docs/proof.md has the formulas."""

from __future__ import annotations

import math

import numpy as np

from verifix.evaluation.significance import THRESHOLD, Outcomes, moments_of

POWER = 0.8

LARGEST_EXACT = 10**7
"""Up to this many samples the power is summed exactly, beyond it Connor's approximation is as good."""


def samples_needed(outcomes: Outcomes) -> int | None:
    """Return how many samples, or groups, in all would decide, if the gain that was seen is real.

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
    if not outcomes.whole:
        return max(n + 1, math.ceil(n * (_two_normals() * moments_of(outcomes).error / gain) ** 2))
    wins, losses = sorted((outcomes.fixed, outcomes.broken), reverse=True)
    return _smallest(wins / n, losses / n, n + 1)


def samples_for(gain: float, error: float, samples: int) -> int | None:
    """Return how many samples in all would show a gain, from its standard error on some.

    Parameters
    ----------
    gain, error
        The mean gain of `samples` samples, and its standard error.
    samples
        How many.

    Returns
    -------
    int or None
        As `samples_needed`, by the normal approximation; None if there is no gain, or its error is not known.
    """
    if gain <= 0 or not 0 < error < math.inf:
        return None
    return max(samples + 1, math.ceil(samples * (_two_normals() * error / gain) ** 2))


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

"""Tell whether a model's accuracy on samples is what it should be: above chance, and what its user has measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from verifix.evaluation.predictions import as_weights

LEVEL = 0.95
"""Of the one-sided upper bound (Clopper and Pearson) that chance is compared with."""

MOST_BY_CHANCE = 0.55
"""The most that 2 / classes counts for: of two classes, any model is right less often than 2 / 2."""

DOUBT = 0.0027
"""An accuracy differs from the expected one if sampling explains it with less than this probability: two-sided, that of
three standard errors of a normal distribution."""


@dataclass(frozen=True)
class Accuracy:
    """How often a model is right.

    Attributes
    ----------
    right, samples
        How many of how many. With weights, what tells as much (Kish).
    """

    right: int
    samples: int

    @property
    def percent(self) -> float:
        """Percent right."""
        return 100 * self.right / self.samples

    @property
    def bound(self) -> float:
        """The exact upper bound of the accuracy, 0 to 1, at the level `LEVEL`."""
        from scipy.stats import binomtest

        found = binomtest(self.right, self.samples, alternative="less").proportion_ci(LEVEL, method="exact")
        return float(found.high)


def accuracy_of(predicted: Tensor, labels: Tensor, weights: Any = None) -> Accuracy:
    """Return how often a model is right.

    Parameters
    ----------
    predicted
        Predicted classes, int64 ``[n]``.
    labels
        int64 ``[n]``.
    weights
        One weight per sample ``[n]``; None if all count the same.

    Returns
    -------
    Accuracy
        Of n samples; with weights, of (Σ w)² / Σ w², rounded down.
    """
    right = (predicted == labels).numpy()
    w = as_weights(weights, len(right))
    if w is None:
        return Accuracy(int(right.sum()), len(right))
    effective = max(1, math.floor(float(w.sum() ** 2 / (w**2).sum()) + 1e-9))
    return Accuracy(round(effective * float(w @ right / w.sum())), effective)


def by_chance(labels: Tensor, classes: int) -> float:
    """Return the accuracy, 0 to 1, below which a model knows nothing of the samples.

    Parameters
    ----------
    labels
        int64 ``[n]``.
    classes
        Number of classes of the model.

    Returns
    -------
    float
        The larger of 2 / classes, up to `MOST_BY_CHANCE`, and the share of the most frequent label, if there are
        several.
    """
    counts = labels.bincount()
    majority = float(counts.max()) / len(labels) if int((counts > 0).sum()) > 1 else 0.0
    return max(min(2 / classes, MOST_BY_CHANCE), majority)


def remark_on_chance(predicted: Tensor, labels: Tensor, classes: int, what: str = "verified") -> str:
    """Return what to tell the user if a model is right hardly more often than by chance.

    Parameters
    ----------
    predicted
        Classes that the uncorrected model predicts, int64 ``[n]``.
    labels
        int64 ``[n]``.
    classes
        Number of classes of the model.
    what
        Which samples.

    Returns
    -------
    str
        Empty unless the upper bound of the accuracy lies below `by_chance`.
    """
    found, chance = accuracy_of(predicted, labels), by_chance(labels, classes)
    if found.bound >= chance:
        return ""
    return (
        f"The model is right on {found.right} of the {found.samples} {what} samples ({found.percent:.1f}%), which is "
        f"near chance: the upper 95% bound, {100 * found.bound:.1f}%, is below {100 * chance:.1f}%."
    )


DRAWN = " If the samples were drawn because they looked wrong, say so (drawn='suspects')."
"""What else may be the reason for too low an accuracy."""


def remark_on_expected(found: Accuracy, expected: tuple[float, int | None] | None, what: str = "verified") -> str:
    """Return what to tell the user if an accuracy differs from the one that is expected by more than sampling error.

    Parameters
    ----------
    found
        The accuracy of the uncorrected model.
    expected
        The accuracy, 0 to 1, that the user has measured, and on how many samples; None for a number that is not
        known: the figure counts as exact then.
    what
        Which samples.

    Returns
    -------
    str
        Empty unless the exact binomial test of a known figure, or Fisher's exact test of a measured one, gives a
        two-sided p below `DOUBT`.
    """
    if expected is None or chance_of(found, *expected) >= DOUBT:
        return ""
    share, count = expected
    measured = f" of {count} samples" if count else ""
    return (
        f"The model is right on {found.percent:.1f}% of the {found.samples} {what} samples, but {100 * share:.1f}%"
        f"{measured} are expected (expect_accuracy), which sampling error does not explain: p is "
        f"{chance_of(found, *expected):.1g}.{DRAWN * (found.percent < 100 * share)}"
    )


def chance_of(found: Accuracy, share: float, count: int | None = None) -> float:
    """Return how probable an accuracy that far from another one is by sampling error, two-sided.

    Parameters
    ----------
    found
        The accuracy that was found.
    share, count
        The other one, 0 to 1, and the number of samples that it was measured on; None if it is exact.

    Returns
    -------
    float
        The p-value of the exact binomial test, or of Fisher's exact test.
    """
    from scipy.stats import binomtest, fisher_exact

    if count is None:
        return float(binomtest(found.right, found.samples, share).pvalue)
    rows = ((found.right, found.samples), (round(share * count), count))
    return float(fisher_exact([[right, of - right] for right, of in rows]).pvalue)

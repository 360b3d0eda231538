"""How good the answers of one model are: right answers, confusion, loss and calibration, with or without weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from verifix.evaluation.predictions import Answers, Array
from verifix.losses import cross_entropy

BINS = 15
"""Bins of equal width for the confidence, as Guo et al. (arXiv 1706.04599) use."""

MOST_CLASSES = 100
"""Above this, a confusion matrix is too large to be read, and left out."""


@dataclass(frozen=True)
class Measures:
    """Measures of one model on labelled samples.

    Attributes
    ----------
    accuracy
        Right answers, in percent.
    balanced_accuracy
        Mean over the classes that have samples of the percent of right answers in each.
    cross_entropy
        Mean negative log-likelihood of the labels, in nats; None if only predicted classes are known.
    calibration_error
        Expected calibration error (ECE) over `BINS` bins, from 0 to 1; None as above.
    """

    accuracy: float
    balanced_accuracy: float
    cross_entropy: float | None
    calibration_error: float | None


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes
    ----------
    low, high
        Confidences from `low` to below `high`; the last bin includes 1.
    samples
        How many have such a confidence.
    confidence, accuracy
        Their mean confidence and the fraction that is right, from 0 to 1; None if there are none, or none that counts.
    """

    low: float
    high: float
    samples: int
    confidence: float | None
    accuracy: float | None


def measure(answers: Answers, labels: Array, weights: Array | None) -> Measures:
    """Measure the answers of one model.

    Parameters
    ----------
    answers
        What it said.
    labels
        int64 ``[n]``.
    weights
        float64 ``[n]`` with mean 1, or None.

    Returns
    -------
    Measures
        The measures.
    """
    from sklearn.metrics import recall_score

    present = np.unique(labels if weights is None else labels[weights > 0])
    # The mean of recalls over classes with samples is what balanced_accuracy_score returns, which warns besides.
    balanced = recall_score(
        labels, answers.predicted, labels=present, average="macro", sample_weight=weights, zero_division=0.0
    )
    right = 100 * mean(answers.predicted == labels, weights)
    if answers.logits is None:
        return Measures(right, 100 * float(balanced), None, None)
    losses = cross_entropy(answers.logits, torch.from_numpy(labels)).numpy()
    return Measures(right, 100 * float(balanced), mean(losses, weights), calibration_error(answers, labels, weights))


def mean(values: Array, weights: Array | None) -> float:
    """Return the mean of values ``[n]``, weighted if there are weights."""
    return float(np.average(values, weights=weights))


def calibration_error(answers: Answers, labels: Array, weights: Array | None) -> float | None:
    """Return the expected calibration error.

    It is six lines here, and not torchmetrics', which takes no weights, counts a confidence of exactly 1 in a bin of
    its own, and cannot be imported beside a torchvision of another build.

    Parameters
    ----------
    answers
        What the model said.
    labels
        int64 ``[n]``.
    weights
        float64 ``[n]`` with mean 1, or None.

    Returns
    -------
    float or None
        Mean over samples of abs(fraction right - mean confidence) of their bin; None without probabilities.
    """
    if answers.logits is None:
        return None
    confidence, right = _confidence(answers), answers.predicted == labels
    w = np.ones(len(labels)) if weights is None else weights
    return float(sum(abs((w * (right - confidence))[rows].sum()) for rows in _members(confidence)) / w.sum())


def reliability(answers: Answers, labels: Array, weights: Array | None) -> tuple[Bin, ...] | None:
    """Return the bins of a reliability diagram, in order; None without probabilities."""
    if answers.logits is None:
        return None
    confidence, right = _confidence(answers), answers.predicted == labels
    edges = _edges().tolist()
    bins = []
    for low, high, rows in zip(edges[:-1], edges[1:], _members(confidence), strict=True):
        own = None if weights is None else weights[rows]
        counts = len(rows) > 0 and (own is None or own.sum() > 0)
        means = [mean(values[rows], own) for values in (confidence, right)] if counts else [None, None]
        bins.append(Bin(low, high, len(rows), *means))
    return tuple(bins)


def confusion(answers: Answers, labels: Array, classes: int) -> list[list[int]] | None:
    """Return counts ``[label][predicted]``; None above `MOST_CLASSES`."""
    from sklearn.metrics import confusion_matrix

    if classes > MOST_CLASSES:
        return None
    counts: list[list[int]] = confusion_matrix(labels, answers.predicted, labels=range(classes)).tolist()
    return counts


def _confidence(answers: Answers) -> Array:
    """Return the probability of each predicted class."""
    confidence: Array = answers.logits.softmax(dim=1).amax(dim=1).numpy()  # type: ignore[union-attr]
    return confidence


def _edges() -> Array:
    return np.linspace(0, 1, BINS + 1)


def _members(confidence: Array) -> list[Array]:
    """Return the samples of each bin."""
    numbers = np.digitize(confidence, _edges()[1:-1])
    return [np.flatnonzero(numbers == i) for i in range(BINS)]

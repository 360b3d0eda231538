"""Label noise: what turns true labels into given ones, for every kind that the benchmarks know.

``symmetric``
    A share of all labels becomes another class, drawn evenly.
``asymmetric``
    Some classes are taken for one other class each (`pairs`). The rate is the share of the labels of *these* classes
    that become wrong; the others keep all of theirs. So the share of all labels is smaller, unless every class has a
    partner.
``hierarchical``
    The same share of each class becomes another class of its own group (`groups`), drawn as evenly as can be.
``instance``
    Xia et al., "Part-dependent Label Noise" (NeurIPS 2020), algorithm 2 of the appendix: which class a sample is taken
    for depends on what it looks like. The flip rates are drawn from a normal distribution around `rate` that is cut off
    at 0 and 1, so the share that comes out is not quite `rate`; rate 0 is taken to mean no noise. With two classes
    there is only one to flip into, and the algorithm no longer looks at the input; there its flip rates are handed out
    in the order of the projected input, smallest to smallest, which leaves their distribution as it is.
``human``
    Labels that people gave; nothing is drawn.

The counts of the kinds that only depend on the class are exact, and all draws are NumPy's `default_rng`. cleanlab's
`generate_noisy_labels` is not used for them: it rounds every count down, fails if a class does not occur, and draws
from NumPy's global generator. The tests hold the counts against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifix.cli.demo.training import wrong_labels
from verifix.errors import UsageError

KINDS = ("symmetric", "asymmetric", "hierarchical", "instance", "human")

CIFAR10_PAIRS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
"""Truck → automobile, bird → airplane, deer → horse, cat ↔ dog (Patrini et al., 2017)."""

CIFAR10_GROUPS = ((2, 3, 4, 5, 6, 7), (0, 1, 8, 9))
"""Animals; vehicles."""

DIGIT_PAIRS = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
"""Digits that look alike (Patrini et al., 2017): 7 → 1, 2 → 7, 5 ↔ 6, 3 → 8."""

DIGIT_GROUPS = ((0, 6, 8, 9), (1, 4, 7), (2, 3, 5))
"""With a closed loop; of straight strokes; with open curves."""

SPREAD = 0.1
"""Standard deviation of the flip rates of instance-dependent noise, as in the paper."""

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Noise:
    """Given labels, and how they differ from the true ones.

    Attributes
    ----------
    labels
        The given labels, int64 ``[n]``.
    matrix
        Share of each true class (row) that got each label (column), float64 ``[classes, classes]``; the row of a class
        that does not occur says that it would keep its label.
    wrong
        Share of labels that are wrong.
    """

    labels: Tensor
    matrix: Tensor
    wrong: float


def realised(labels: Tensor, given: Tensor, classes: int) -> Noise:
    """Describe given labels.

    Parameters
    ----------
    labels, given
        True and given labels, int64 ``[n]``.
    classes
        Number of classes.

    Returns
    -------
    Noise
        The given labels, and how they differ from the true ones.
    """
    counts = torch.bincount(labels * classes + given, minlength=classes**2).reshape(classes, classes).double()
    sizes = counts.sum(1, keepdim=True)
    matrix = torch.where(sizes > 0, counts / sizes.clamp(min=1), torch.eye(classes, dtype=torch.float64))
    return Noise(given.clone(), matrix, float((given != labels).double().mean()))


def noisy(
    kind: str,
    inputs: Tensor | None,
    labels: Tensor,
    rate: float,
    classes: int,
    seed: int,
    *,
    pairs: Mapping[int, int] | None = None,
    groups: Sequence[Sequence[int]] = (),
    given: Tensor | None = None,
) -> Noise:
    """Spoil labels; the same seed gives the same ones.

    Parameters
    ----------
    kind
        One of `KINDS`.
    inputs
        Inputs or features, ``[n, …]``; only instance-dependent noise looks at them.
    labels
        The true labels, int64 ``[n]``.
    rate
        How much noise, from 0 up to 1; what it is a share of depends on the kind.
    classes
        Number of classes.
    seed
        Seed.
    pairs
        For asymmetric noise: class → the class that it is taken for; by default each for the next one.
    groups
        For hierarchical noise: the groups of classes that are taken for one another.
    given
        The labels of human noise, int64 ``[n]``.

    Returns
    -------
    Noise
        The given labels, and how they differ from the true ones.

    Raises
    ------
    UsageError
        If the kind is unknown, or what it needs is missing.
    """
    if kind not in KINDS:
        raise UsageError(f"noise is {kind!r}; it must be one of {', '.join(KINDS)}")
    if not 0 <= rate < 1:
        raise UsageError(f"rate is {rate!r}; it must be a number from 0 up to 1, without 1 itself")
    if kind == "human":
        return realised(labels, _there(given, "human noise needs the labels that people gave"), classes)
    if kind == "symmetric":
        return realised(labels, wrong_labels(labels, rate, classes, seed), classes)
    if kind == "instance":
        inputs = _there(inputs, "instance-dependent noise needs the inputs")
        return realised(labels, _by_instance(inputs, labels, rate, classes, seed), classes)
    if kind == "asymmetric":
        pairs = {y: (y + 1) % classes for y in range(classes)} if pairs is None else pairs
        others = {y: [partner] for y, partner in pairs.items()}
    else:
        others = _within_groups(groups, classes)
    return realised(labels, _by_class(labels, others, rate, seed), classes)


def _there(values: Tensor | None, otherwise: str) -> Tensor:
    if values is None:
        raise UsageError(otherwise)
    return values


def _within_groups(groups: Sequence[Sequence[int]], classes: int) -> dict[int, list[int]]:
    """Return the other classes of each class's group."""
    if sorted(y for group in groups for y in group) != list(range(classes)):
        raise UsageError(f"hierarchical noise needs groups in which each of the {classes} classes stands once")
    return {y: [other for other in group if other != y] for group in groups for y in group}


def _by_class(labels: Tensor, others: Mapping[int, Sequence[int]], rate: float, seed: int) -> Tensor:
    """Give the same share of each class in `others` one of its wrong labels, all of those equally often."""
    generator = np.random.default_rng(seed)
    given = labels.clone()
    for y, wrong in others.items():
        members = (labels == y).nonzero().flatten()
        if wrong:
            flipped = generator.permutation(len(members))[: round(rate * len(members))]
            order = torch.from_numpy(generator.permutation(len(wrong)))  # none gets the remainder more than another
            given[members[flipped]] = torch.tensor(wrong)[order][torch.arange(len(flipped)) % len(wrong)]
    return given


def _by_instance(inputs: Tensor, labels: Tensor, rate: float, classes: int, seed: int) -> Tensor:
    """Draw flip rates, projections and labels."""
    from scipy.stats import truncnorm

    if rate == 0:  # the distribution that is cut off at 0 has a mean above 0
        return labels.clone()
    generator = np.random.default_rng(seed)
    x = inputs.reshape(len(inputs), -1).double().numpy()
    limits = -rate / SPREAD, (1 - rate) / SPREAD
    rates: Array = truncnorm.rvs(*limits, loc=rate, scale=SPREAD, size=len(x), random_state=generator)
    projections: Array = generator.standard_normal((classes, x.shape[1], classes))
    if classes == 2:
        rates = _by_rank(x, labels.numpy(), rates, projections)
    cumulative = instance_probabilities(x, labels.numpy(), rates, projections).cumsum(1)
    draws = generator.random((len(x), 1)) * cumulative[:, -1:]  # the sum is 1 only up to rounding
    return torch.from_numpy((draws >= cumulative).sum(1))


def instance_probabilities(
    inputs: Array, labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]], rates: Array, projections: Array
) -> Array:
    """Return how probable each label is for each sample: algorithm 2 of Xia et al.

    The true class keeps its label with 1 − rate; the rate is spread over the others by a softmax of the input's
    projection with the matrix of its class.

    Parameters
    ----------
    inputs
        float64 ``[n, features]``.
    labels
        True labels, int64 ``[n]``.
    rates
        Flip rate of each sample, float64 ``[n]``.
    projections
        One matrix per true class, float64 ``[classes, features, classes]``.

    Returns
    -------
    ndarray
        float64 ``[n, classes]``; rows add up to 1.
    """
    from scipy.special import softmax

    scores = np.empty((len(inputs), len(projections)))
    for y, projection in enumerate(projections):
        scores[labels == y] = inputs[labels == y] @ projection
    rows = np.arange(len(inputs))
    scores[rows, labels] = -np.inf
    probabilities: Array = rates[:, None] * softmax(scores, axis=1)
    probabilities[rows, labels] = 1 - rates
    return probabilities


def _by_rank(
    x: Array, labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]], rates: Array, projections: Array
) -> Array:
    """Hand the flip rates of each class to its samples in the order of their projection on the other class."""
    ranked = np.empty_like(rates)
    for y in (0, 1):
        members = np.flatnonzero(labels == y)
        order = members[(x[members] @ projections[y, :, 1 - y]).argsort(kind="stable")]
        ranked[order] = np.sort(rates[members])
    return ranked

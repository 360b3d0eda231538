"""Tell whether the model's predictions fit another order of the labels far better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from verifix.errors import DataError, first_of
from verifix.losses import predicted_classes

Table = np.ndarray[Any, Any]
"""Counts ``[classes, classes]``: rows are labels, columns predictions."""

DOUBT = 3e-4
"""Labels are refused if chance explains the other mapping with no more than this probability."""

MARGIN, MARGIN_OF_ONE_CLASS = 1.3, 4.0
"""How many times as often a prediction must be what the other mapping says than what the label says; a single class
that is moved may as well be one that the model gets wrong, so it takes more."""

LEAST_SHARE = 0.3
"""Share of the moved samples that the other mapping must explain."""

MOST_AGAINST = 0.1
"""Share of the moved classes that may speak for the labels as they are."""

MOST_CLASSES = 2000
"""With more classes than this among labels and predictions, no other mapping is looked for."""

NEARLY = 0.9
"""A mistake that is known, and explains nearly as much as any mapping at all, is the likely one."""

MOST_NAMED = 12
"""Labels that a message names."""

FOLDS = 5
"""Folds in which an unknown mapping is looked for and tried."""


@dataclass(frozen=True)
class Remapping:
    """Another meaning of the labels, which the predictions fit far better.

    Attributes
    ----------
    outputs
        The output that each moved label stands for.
    kind
        What may have happened, in words.
    fits
        Moved samples that are predicted as this mapping says.
    given
        Moved samples that are predicted as their label says.
    samples
        Samples whose label is moved.
    """

    outputs: Mapping[int, int]
    kind: str
    fits: int
    given: int
    samples: int


@dataclass(frozen=True)
class _Evidence:
    """Per class that a mapping moves: samples predicted as the mapping says, as the label says, and all of them."""

    fits: Table
    given: Table
    samples: Table

    @property
    def far_better(self) -> bool:
        from scipy.stats import binomtest

        fits, given, there = int(self.fits.sum()), int(self.given.sum()), self.samples > 0
        if not fits or fits < LEAST_SHARE * self.samples.sum():
            return False
        alone = self.fits.max() > 0.9 * fits
        if fits < (MARGIN_OF_ONE_CLASS if alone else MARGIN) * given:
            return False
        if (self.given > self.fits).sum() > MOST_AGAINST * there.sum():
            return False
        # Where labels are right, a model that learned less than half of them wrong predicts a label at least as often
        # as any one other class.
        return bool(binomtest(fits, fits + given, 0.5, alternative="greater").pvalue <= DOUBT)


def find_remapping(predicted: Tensor, labels: Tensor, classes: int) -> Remapping | None:
    """Look for another mapping of labels to outputs that the predictions of a model fit far better.

    Parameters
    ----------
    predicted
        Predicted classes, int64 ``[n]``.
    labels
        Given labels, int64 ``[n]``, from 0 to ``classes − 1``.
    classes
        Number of classes.

    Returns
    -------
    Remapping or None
        The likely mapping; None if the labels as they are may well be right.

    Notes
    -----
    Known mistakes (the order of names as text, a class left out, labels that count from 1, two classes exchanged) are
    tried as they are. Any other mapping is the best assignment on four fifths of the samples (Kuhn's Hungarian method,
    scipy), tried on the rest. Each is tested by how often the prediction of a moved sample is what the mapping says
    against what the label says, with a binomial test of one half. That is what wrong labels in training cannot
    reach, also if they all are of one other class, as long as most are right.
    """
    where, (truth, guess) = _renumbered(labels.numpy(), predicted.numpy(), classes)
    size = len(where)
    if size > MOST_CLASSES or size < 2:
        return None
    table = np.zeros((size, size), dtype=np.int64)
    np.add.at(table, (truth, guess), 1)
    found = [
        (int(table[np.arange(size), order].sum()), kind, order)
        for kind, order in _known(table, where, classes)
        if _evidence(table, order).far_better
    ]
    best = _assigned(table)
    total = int(table[np.arange(size), best].sum())
    if _cross_fitted(truth, guess, size).far_better:
        found.append((round(NEARLY * total), "", best))
    if not found:
        return None
    _, kind, order = max(found, key=lambda each: each[0])
    return _remapping(table, order, where, kind)


def _renumbered(labels: Table, predicted: Table, classes: int) -> tuple[Table, tuple[Table, Table]]:
    """Return the classes to look at, and labels and predictions as places among them: all, or if many those there."""
    where = np.arange(classes) if classes <= MOST_CLASSES else np.union1d(labels, predicted)
    return where, (np.searchsorted(where, labels), np.searchsorted(where, predicted))


def _known(table: Table, where: Table, classes: int) -> Iterator[tuple[str, Table]]:
    """Yield mistakes that are known, each as the place that every label stands for."""
    size = len(where)
    there = np.flatnonzero(table.sum(axis=1))
    if size == classes:
        as_text = np.array(sorted(range(size), key=str))
        few = "0, 1, 10, 11, 2, …"
        if size > 10:
            yield f"the class names were sorted as text ({few}) to number the labels", as_text
            yield f"the class names were sorted as text ({few}) to number the model's outputs", np.argsort(as_text)
        for missing in range(size - 1 if there[-1] < size - 1 else 0):
            shift = np.arange(size)
            shift[missing : size - 1] += 1
            yield f"class {missing} was missing when the labels were numbered, so all classes after it moved up", shift
        if there[0] > 0:
            yield "the labels count from 1, and the model's outputs from 0", np.maximum(np.arange(size) - 1, 0)
    best = _assigned(table)
    for a in there:
        b = best[a]
        if a < b and best[b] == a:
            swap = np.arange(size)
            swap[[a, b]] = b, a
            yield "", swap


def _assigned(table: Table) -> Table:
    """Return the one-to-one mapping with most agreement; among equal ones, one that moves few labels."""
    from scipy.optimize import linear_sum_assignment

    found: Table = linear_sum_assignment(table + np.eye(len(table)) / (len(table) + 1), maximize=True)[1]
    return found


def _evidence(table: Table, order: Table) -> _Evidence:
    moved = np.flatnonzero(order != np.arange(len(order)))
    return _Evidence(table[moved, order[moved]], table[moved, moved], table[moved].sum(axis=1))


def _cross_fitted(truth: Table, guess: Table, size: int) -> _Evidence:
    """Try on each fold the mapping that is best on the others."""
    fold = np.empty(len(truth), dtype=np.int64)
    by_class = np.argsort(truth, kind="stable")
    fold[by_class] = np.arange(len(truth)) % FOLDS
    fits, given, samples = (np.zeros(size, dtype=np.int64) for _ in range(3))
    for k in range(FOLDS):
        tables = []
        for chosen in (fold != k, fold == k):
            table = np.zeros((size, size), dtype=np.int64)
            np.add.at(table, (truth[chosen], guess[chosen]), 1)
            tables.append(table)
        order = _assigned(tables[0])
        found = _evidence(tables[1], order)
        moved = np.flatnonzero(order != np.arange(size))
        for total, part in ((fits, found.fits), (given, found.given), (samples, found.samples)):
            total[moved] += part
    return _Evidence(fits, given, samples)


def _remapping(table: Table, order: Table, where: Table, kind: str) -> Remapping:
    found, moved = _evidence(table, order), np.flatnonzero(order != np.arange(len(order)))
    outputs = {int(where[a]): int(where[order[a]]) for a in moved if table[a].any()}
    exchanged = [(a, b) for a, b in outputs.items() if a < b and outputs.get(b) == a]
    if not kind and 2 * len(exchanged) == len(outputs):
        kind = "; ".join(f"classes {a} and {b} are exchanged" for a, b in exchanged)
    return Remapping(outputs, kind, int(found.fits.sum()), int(found.given.sum()), int(found.samples.sum()))


def check_mapping(logits: Tensor, labels: Tensor, what: str = "verified", names: Sequence[str] | None = None) -> None:
    """Refuse labels if the model's predictions fit another mapping of labels to outputs far better.

    Parameters
    ----------
    logits
        Of the uncorrected model, ``[n, outputs]``.
    labels
        int64 ``[n]``.
    what
        Which samples, for the message.
    names
        Class names in the order of the outputs, for the message; None if they are not known.

    Raises
    ------
    DataError
        Naming the likely mapping; see `find_remapping`.
    """
    found = find_remapping(predicted_classes(logits), labels, max(logits.shape[1], 2))
    if found is None:
        return
    raise DataError(
        f"the labels of the {what} samples seem to be in another order than the model's outputs: of {found.samples} "
        f"samples with the label{'s' * (len(found.outputs) > 1)} {first_of(found.outputs, MOST_NAMED)}, {found.given} "
        f"are predicted as their label, and {found.fits} as {_pairs(found.outputs, names)}"
        f"{f' (probably {found.kind})' if found.kind else ''}; give class names with --classes or correct the labels, "
        "or pass --no-check-labels (check_labels=False) if they are right"
    )


def _pairs(outputs: Mapping[int, int], names: Sequence[str] | None) -> str:
    def name(i: int) -> str:
        return str(i) if names is None or i >= len(names) else f"{i} {names[i]!r}"

    return first_of((f"{name(a)} → {name(b)}" for a, b in outputs.items()), MOST_NAMED)

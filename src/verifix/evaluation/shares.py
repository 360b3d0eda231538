"""Weights for samples whose classes do not have the shares that they have where the model is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from verifix.errors import DataError
from verifix.evaluation.predictions import Array, as_labels

ROUNDED_SHARES = 1e-3
"""How far shares of classes may be from a sum of 1."""


def class_weights(labels: Any, shares: Mapping[int, float] | Sequence[float]) -> Array:
    """Return weights for samples whose classes do not have the shares that they have where the model is used.

    Parameters
    ----------
    labels
        Class indices ``[n]``.
    shares
        The share of each class in what the model will meet: one number per class, or class → number; they sum to 1.

    Returns
    -------
    ndarray
        float64 ``[n]``: share · n / (samples of the class), which has a mean of 1.

    Raises
    ------
    DataError
        If a share is not usable, or a class has a share and no sample, or a sample and no share.
    """
    y = as_labels(labels)
    pairs = dict(shares) if isinstance(shares, Mapping) else dict(enumerate(shares))
    _check_shares(pairs)
    counts = {int(c): int(count) for c, count in zip(*np.unique(y, return_counts=True), strict=True)}
    for label, share in pairs.items():
        if share > 0 and label not in counts:
            raise DataError(
                f"class {label} has the share {share:g} and no sample; verify some samples of it, or compare without "
                "shares"
            )
    for label, count in counts.items():
        if label not in pairs:
            raise DataError(f"class {label} has {count} samples and no share; give the share of every class")
    total = sum(pairs.values())
    per_class = {label: pairs[label] / total * len(y) / count for label, count in counts.items()}
    return np.array([per_class[label] for label in y.tolist()])


def _check_shares(shares: Mapping[Any, Any]) -> None:
    for label, share in shares.items():
        if not isinstance(label, (int, np.integer)) or isinstance(label, bool):
            raise DataError(f"shares name the class {label!r}; classes are whole numbers of 0 or more")
        number = isinstance(share, (int, float, np.number)) and not isinstance(share, bool)
        if not number or not 0 <= share <= 1:
            raise DataError(f"class {label} has the share {share!r}; a share is a number from 0 to 1")
    if abs(sum(shares.values()) - 1) > ROUNDED_SHARES:
        raise DataError(f"the shares of {len(shares)} classes sum to {sum(shares.values()):g}; they must sum to 1")

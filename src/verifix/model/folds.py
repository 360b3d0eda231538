"""Split samples into folds, with copies of one input, and samples of one group, in the same fold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from verifix.errors import DataError
from verifix.model.samples import Samples


def split_folds(samples: Samples, folds: int, seed: int) -> list[np.ndarray[Any, Any]]:
    """Split samples into folds: balanced by label, groups together; see `Samples.groups`.

    Parameters
    ----------
    samples
        The verified samples.
    folds
        How many, at least 2.
    seed
        Seed of the shuffle.

    Returns
    -------
    list of ndarray
        Sorted indices of each fold; together they are all samples.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups = samples.groups
    count = int(groups.max()) + 1
    if count < folds:
        kind = "independent groups" if samples.declared else "different inputs"
        raise DataError(
            f"{len(samples)} samples have only {count} {kind}, too few for {folds} folds; verify more samples, or give "
            "alpha as a number"
        )
    labels = samples.labels.numpy()
    values, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    strata = np.where(counts < folds, -1, values)[inverse]  # rare classes are spread evenly as one
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with _quiet_about_rare_classes():
        split = [np.sort(held) for _, held in splitter.split(np.zeros(len(labels)), strata, groups)]
    if not all(map(len, split)):
        raise DataError(
            f"the {count} groups of the {len(samples)} samples are too uneven for {folds} folds, one of which would be "
            "empty; verify samples of more groups"
        )
    return split


@contextmanager
def _quiet_about_rare_classes() -> Iterator[None]:
    """Silence the warning about classes with fewer samples than folds, which are spread as far as they go."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        yield

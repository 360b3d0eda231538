"""Hard truncation of the features' spectrum: "The Malignant Tail" (arXiv 2603.02293, withdrawn by its author in v2).

What the head sees is projected on the d directions of most variance, and the trained head stays in place. With μ and
U_d from the features of the training samples, or from those of the context's verified ones,
x ↦ W (μ + U_d U_dᵀ (x − μ)) + b, which is the head

    W' = W U_d U_dᵀ,   b' = b + W (I − U_d U_dᵀ) μ.

A head without a bias of its own has no place for μ: there the features are not centred, and U_d are the eigenvectors
of their second moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.methods.base import Case
from benchmarks.methods.features import OnHead, penultimate
from verifix.capture.layer import read_matrix
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.heads import Head
from verifix.recipe.stages.refit import written

VALUES = 16
"""How many d are tried, in geometric steps; steps that round to the same d count once."""

SOURCES = (0, 1)
"""Where directions come from: 0 the verified samples, 1 the training samples."""


class TrainingSpread:
    """Mean and directions of the training samples: the same for all folds, so that contexts share them.

    Parameters
    ----------
    case
        The network and what there is to correct it with.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.found: tuple[Tensor, Tensor] | None = None

    def of(self, context: Context, head: Head) -> tuple[Tensor, Tensor]:
        """Return both, computed once."""
        if self.found is None:
            training = self.case.training
            features = penultimate(context, training, range(len(training)))
            self.found = spread(features, centred=head.bias is not None)
        return self.found


class Truncation(OnHead):
    """Keep the d directions of the head's input that vary most; its strength is (d, one of `SOURCES`)."""

    name = "truncation"

    def __init__(self, case: Case, context: Context, training: TrainingSpread | None = None) -> None:
        super().__init__(case, context)
        self.training = training or TrainingSpread(case)

    @classmethod
    @contextmanager
    def open(cls, case: Case) -> Iterator[Callable[[Context], Truncation]]:
        """Lend what puts the method to work in contexts, which share what comes from training samples.

        Yields
        ------
        callable
            Context → the method there.
        """
        yield partial(cls, case, training=TrainingSpread(case))

    @cached_property
    def verified(self) -> tuple[Tensor, Tensor]:
        """Mean and directions of the verified samples."""
        return spread(self.found.features, centred=self.found.bias is not None)

    def obstacle(self) -> str:
        """Say if there is no linear layer whose products are the logits."""
        return "" if self.head else "no linear layer that may be corrected gives the logits"

    def candidates(self) -> Listed:
        """Return d from 1 to the number of features or of verified samples, whichever is less, with either source."""
        steps = np.geomspace(1, min(self.found.features.shape), VALUES).round()
        return Listed(tuple((float(d), float(source)) for source in SOURCES for d in np.unique(steps)))

    def fit(self, strength: tuple[float, float]) -> Update:
        """Return the head that reads d directions alone.

        Parameters
        ----------
        strength
            d, 1 or more, and where its directions come from.

        Returns
        -------
        Update
            New weight, and bias if the head has one of its own.
        """
        context, head = self.context, self.found
        mean, directions = self.training.of(context, head) if strength[1] else self.verified
        weight = read_matrix(head.layer, context.parameter)[0].cpu()
        kept = directions[:, : int(strength[0])]
        truncated = weight @ kept @ kept.mT
        return written(context, head, truncated, head.offset + (weight - truncated) @ mean)


def spread(features: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Return the mean that is taken off features, and the eigenvectors of their covariance by falling variance.

    Parameters
    ----------
    features
        ``[n, d]``, float64.
    centred
        Whether a mean is taken off; else it is 0.

    Returns
    -------
    mean : Tensor
        ``[d]``.
    directions : Tensor
        ``[d, min(n, d)]``, one in each column.
    """
    mean = features.mean(dim=0) * centred
    _, _, directions = torch.linalg.svd(features - mean, full_matrices=False)
    return mean, directions.mT

"""Hard truncation of the features' spectrum: "The Malignant Tail" (arXiv 2603.02293, withdrawn by its author in v2).

What the head sees is projected on the d directions of most variance, and the trained head stays in place. With μ and
U_d from the features of the training samples, or from those of the context's verified ones,
x ↦ W (μ + U_d U_dᵀ (x − μ)) + b, which is the head

    W' = W U_d U_dᵀ,   b' = b + W (I − U_d U_dᵀ) μ.

A head without a bias of its own has no place for μ: there the features are not centred, and U_d are the eigenvectors
of their second moments.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.methods.base import Rival
from benchmarks.methods.features import head_of, penultimate
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


class Truncation(Rival):
    """Keep the d directions of the head's input that vary most; its strength is (d, one of `SOURCES`)."""

    name = "truncation"

    def obstacle(self, context: Context) -> str:
        """Say if there is no linear layer whose products are the logits."""
        return "" if head_of(context) else "no linear layer that may be corrected gives the logits"

    def candidates(self, context: Context) -> Listed:
        """Return d from 1 to the number of features or of verified samples, whichever is less, with either source."""
        head = head_of(context)
        assert head is not None
        steps = np.geomspace(1, min(head.features.shape), VALUES).round()
        return Listed(tuple((float(d), float(source)) for source in SOURCES for d in np.unique(steps)))

    def fit(self, context: Context, strength: tuple[float, float]) -> Update:
        """Return the head that reads d directions alone.

        Parameters
        ----------
        context
            Where to take features and weights from.
        strength
            d, 1 or more, and where its directions come from.

        Returns
        -------
        Update
            New weight, and bias if the head has one of its own.
        """
        head = head_of(context)
        assert head is not None
        mean, directions = self._spread(context, head) if strength[1] else _verified_spread(context, head)
        weight = read_matrix(head.layer, context.parameter)[0].cpu()
        kept = directions[:, : int(strength[0])]
        truncated = weight @ kept @ kept.mT
        return written(context, head, truncated, head.offset + (weight - truncated) @ mean)

    def _spread(self, context: Context, head: Head) -> tuple[Tensor, Tensor]:
        """Return mean and directions of the training samples; they are the same for all folds."""
        training, shared = self.case.training, context.shared
        if "training spread" not in shared:
            features = penultimate(context, training, range(len(training)))
            shared["training spread"] = spread(features, centred=head.bias is not None)
        found: tuple[Tensor, Tensor] = shared["training spread"]
        return found


def _verified_spread(context: Context, head: Head) -> tuple[Tensor, Tensor]:
    return context.remember("directions", lambda: spread(head.features, centred=head.bias is not None))


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

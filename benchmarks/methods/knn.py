"""The nearest verified samples vote in place of the head, by the cosine of the features that it sees.

Cover and Hart, "Nearest neighbor pattern classification", IEEE Transactions on Information Theory 13, 1967.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods.base import Case, Predictor, nearby
from benchmarks.methods.features import Features, OnHead
from verifix.model.samples import Samples
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context

NEIGHBOURS = (1, 3, 5, 10, 20, 40)
WEIGHTS = ("uniform", "distance")


class NearestNeighbours(OnHead):
    """k nearest neighbours; its settings are (k, 0 for equal votes or 1 for votes by inverse distance)."""

    name = "knn"

    def __init__(self, case: Case, context: Context) -> None:
        super().__init__(case, context)
        self.features = Features(context)

    def release(self) -> None:
        """Let go of the features."""
        self.features = Features(self.context)

    def candidates(self) -> Listed:
        """Return each number of neighbours with both ways to vote."""
        votes = itertools.product(NEIGHBOURS, range(len(WEIGHTS)))
        return Listed(tuple((float(count), float(weighting)) for count, weighting in votes))

    def neighbours(self, best: tuple[float, float]) -> list[tuple[float, float]]:
        """Return half and twice as many."""
        return [(near, best[1]) for near in nearby(best[0], 2, 1, len(self.context.indices), whole=True)]

    def fit(self, strength: tuple[float, float]) -> Predictor:
        """Return log-probabilities: the neighbours' votes, smoothed by one vote that is shared by all classes.

        Parameters
        ----------
        strength
            Number of neighbours, no more than there are samples, and index into `WEIGHTS`.

        Returns
        -------
        callable
            (samples, indices) → logits.
        """
        from sklearn.neighbors import KNeighborsClassifier

        context, head = self.context, self.found
        count, weights = min(int(strength[0]), len(context.indices)), WEIGHTS[int(strength[1])]
        votes = KNeighborsClassifier(count, weights=weights, metric="cosine")
        votes.fit(head.features.numpy(), context.labels.numpy())
        features, classes = self.features, self.case.classes

        def predict(samples: Samples, indices: Sequence[int]) -> Tensor:
            return _smoothed(votes, features(samples, indices), count, classes)

        return predict


def _smoothed(votes: Any, features: Tensor, count: int, classes: int) -> Tensor:
    """Return log-probabilities ``[n, classes]``; classes without a verified sample get no votes."""
    shares = torch.zeros(len(features), classes, dtype=torch.float64)
    shares[:, votes.classes_] = torch.from_numpy(votes.predict_proba(features.numpy()))
    return torch.log((count * shares + 1 / classes) / (count + 1))

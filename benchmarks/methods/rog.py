"""RoG, the robust generative head: linear discriminant analysis of the training samples, without their outliers.

Lee et al., "Robust inference via generative classifiers for handling noisy labels", ICML 2019 (arXiv 1901.11300). The
features of each class, by the labels given, are taken for a Gaussian with outliers. The minimum covariance determinant
keeps the h of the n samples whose covariance has the least determinant; means and priors are those of the kept
samples, and the covariance, tied, is the average over the classes, each counted by the samples kept. Only the settings
are chosen on verified samples. The paper's ensemble over several layers is left out.

Where this goes beyond the paper:

- Each covariance is shrunk towards a multiple of the identity, (1 − ρ) S + ρ tr(S) / d · I, also while samples are
  being picked: classes have fewer samples than there are features, and determinants would be zero.
- Features are reduced to at most 128 principal components of all training samples.
- The concentration steps start at the h samples nearest to the coordinatewise median, one of the starts of Hubert,
  Rousseeuw and Verdonck (2012), and not at random ones: outliers that lie close together hide in a random half.
- Besides half of the samples, which the paper keeps, larger shares are tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from benchmarks.methods.base import HALF_A_DECADE, Case, Fitted, nearby
from benchmarks.methods.features import NO_HEAD, Features, OnHead, penultimate
from verifix.model.samples import Samples
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.refit import written

SUPPORTS = (0.5, 0.6, 0.75, 0.9)
SHRINKAGES = (1e-3, 1e-2, 1e-1)
COMPONENTS = 128
STEPS = 100
"""Most concentration steps; they end by themselves, mostly after ten."""

TINY = 1e-12
"""Least variance that a covariance is shrunk towards, so that equal features have a covariance that can be inverted."""


class Discriminants:
    """LDA of the training samples: the same for all folds, so that contexts share it.

    Parameters
    ----------
    case
        The network and what there is to correct it with.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.components: tuple[Tensor, Tensor, Tensor] | None = None
        self.fitted: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}

    def of(self, context: Context, support: float, shrinkage: float) -> tuple[Tensor, Tensor]:
        """Return weight and bias."""
        training, key = self.case.training, (support, shrinkage)
        if self.components is None:
            self.components = components(penultimate(context, training, range(len(training))))
        reduced, centre, directions = self.components
        if key not in self.fitted:
            self.fitted[key] = discriminant(reduced, training.labels, self.case.classes, support, shrinkage)
        weight = self.fitted[key][0] @ directions.mT
        return weight, self.fitted[key][1] - weight @ centre


class RobustGenerative(OnHead):
    """LDA with robust means and covariance; its settings are (share of samples kept, shrinkage)."""

    name = "rog"

    def __init__(self, case: Case, context: Context, discriminants: Discriminants | None = None) -> None:
        super().__init__(case, context)
        self.discriminants = discriminants or Discriminants(case)
        self.features = Features(context)

    @classmethod
    @contextmanager
    def open(cls, case: Case) -> Iterator[Callable[[Context], RobustGenerative]]:
        """Lend what puts the method to work in contexts, which share what comes from training samples.

        Yields
        ------
        callable
            Context → the method there.
        """
        yield partial(cls, case, discriminants=Discriminants(case))

    def release(self) -> None:
        """Let go of the features."""
        self.features = Features(self.context)

    def obstacle(self) -> str:
        """Say if there is no linear head, or a class has too few training samples."""
        if self.head is None:
            return NO_HEAD
        fewest = int(torch.bincount(self.case.training.labels, minlength=self.case.classes).min())
        return "" if fewest > 1 else "a class has fewer than 2 training samples"

    def candidates(self) -> Listed:
        """Return each share with every shrinkage."""
        return Listed(tuple(itertools.product(SUPPORTS, SHRINKAGES)))

    def neighbours(self, best: tuple[float, float]) -> list[tuple[float, float]]:
        """Return half a decade more and less shrinkage."""
        return [(best[0], near) for near in nearby(best[1], HALF_A_DECADE, 1e-6, 1.0)]

    def fit(self, strength: tuple[float, float]) -> Fitted:
        """Return the head that LDA gives, or where the head has no bias of its own what predicts.

        Parameters
        ----------
        strength
            Share of each class's samples that is kept, and shrinkage.

        Returns
        -------
        Update or callable
            New weight and bias, or (samples, indices) → logits.
        """
        head = self.found
        weight, bias = self.discriminants.of(self.context, *strength)
        if head.bias is not None:
            return written(self.context, head, weight, bias)
        features = self.features

        def predict(samples: Samples, indices: Sequence[int]) -> Tensor:
            return features(samples, indices) @ weight.mT + bias

        return predict


def components(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce features to their principal components, at most `COMPONENTS`.

    Parameters
    ----------
    features
        ``[n, d]``.

    Returns
    -------
    reduced : Tensor
        ``[n, r]``, centred.
    centre : Tensor
        The mean, ``[d]``.
    directions : Tensor
        Orthonormal, ``[d, r]``; reduced = (features − centre) · directions.
    """
    centre = features.mean(dim=0)
    spreads, directions = torch.linalg.eigh(torch.cov(features.mT, correction=0).reshape(len(centre), -1))
    rank = int((spreads > 1e-10 * spreads[-1]).sum())
    directions = directions.flip(1)[:, : max(1, min(rank, COMPONENTS))]
    return (features - centre) @ directions, centre, directions


def discriminant(
    features: Tensor, labels: Tensor, classes: int, support: float, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Fit Gaussians with a tied covariance: logits μᵀ Σ⁻¹ x − ½ μᵀ Σ⁻¹ μ + log β.

    Parameters
    ----------
    features
        ``[n, d]``.
    labels
        ``[n]``, every class twice or more.
    classes
        Their number.
    support
        Share of each class's samples that is kept.
    shrinkage
        ρ, from 0 to 1.

    Returns
    -------
    weight, bias : Tensor
        ``[classes, d]`` and ``[classes]``.
    """
    kept = [concentrated(features[labels == k], support, shrinkage) for k in range(classes)]
    counts = torch.tensor([len(rows) for rows in kept], dtype=features.dtype)
    priors = counts / counts.sum()
    means = torch.stack([rows.mean(dim=0) for rows in kept])
    covariance = sum(p * shrunk_covariance(rows, shrinkage) for p, rows in zip(priors, kept, strict=True))
    weight = torch.linalg.solve(torch.as_tensor(covariance), means.mT).mT
    return weight, priors.log() - (weight * means).sum(dim=1) / 2


def concentrated(rows: Tensor, support: float, shrinkage: float) -> Tensor:
    """Return the rows that the minimum covariance determinant keeps: C-steps until the determinant falls no more.

    Parameters
    ----------
    rows
        ``[n, d]``.
    support
        Share of the rows that is kept.
    shrinkage
        ρ, from 0 to 1.

    Returns
    -------
    Tensor
        ``[h, d]``, h = ⌊support · n⌋, 2 or more.
    """
    count = max(2, int(support * len(rows)))
    median = rows.median(dim=0).values
    spread = (rows - median).abs().median(dim=0).values.clamp_min(TINY)
    candidate = rows[_nearest(((rows - median) / spread).square().sum(dim=1), count)]
    kept, least = candidate, math.inf
    for _ in range(STEPS):
        covariance = shrunk_covariance(candidate, shrinkage)
        size = float(torch.linalg.slogdet(covariance).logabsdet)
        if size >= least:
            break
        kept, least = candidate, size
        apart = rows - candidate.mean(dim=0)
        distances = (torch.linalg.solve(covariance, apart.mT).mT * apart).sum(dim=1)
        candidate = rows[_nearest(distances, count)]
    return kept


def shrunk_covariance(rows: Tensor, shrinkage: float) -> Tensor:
    """Return (1 − ρ) S + ρ tr(S) / d · I, ``[d, d]``."""
    apart = rows - rows.mean(dim=0)
    covariance = apart.mT @ apart / len(rows)
    size = covariance.diagonal().mean().clamp_min(TINY)
    return (1 - shrinkage) * covariance + shrinkage * size * torch.eye(len(covariance), dtype=rows.dtype)


def _nearest(distances: Tensor, count: int) -> Tensor:
    return distances.argsort(stable=True)[:count]

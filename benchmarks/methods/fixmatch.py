"""FixMatch: Sohn et al., "FixMatch: simplifying semi-supervised learning", NeurIPS 2020 (arXiv 2001.07685).

The class that the network finds most likely for a weakly changed training input is the target for
the same input strongly changed, if it is at least as likely as a threshold; verified samples, weakly changed, are
learned with their labels. Both losses weigh the same, as in the paper.

What differs: training begins at the network to be corrected and not at random weights, with Adam; there are two other
inputs per verified one, not seven; the strong changes are those of `benchmarks.methods.augmentation`, not RandAugment
and CTAugment, and inputs may be tables; BatchNorm keeps its statistics; weights are not averaged; folds choose among
two thresholds besides the rate and the length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods.augmentation import Augmentation, can_change
from benchmarks.methods.semi import OTHERS, RATES, ROUNDS, SemiSupervised, endless, joined, one_round
from benchmarks.methods.steps import Steps, adam, trained
from verifix.losses import correct_or_not, cross_entropy, probabilities
from verifix.recipe.candidates import Listed
from verifix.recipe.stages.training import Training

THRESHOLDS = (0.8, 0.95)

FEWER = 0.05
"""By how much mirrored images may be right less often, for mirroring to be allowed."""

SPREAD_OF = 2000
"""Training inputs that give the spread, at most."""


class FixMatch(SemiSupervised):
    """Consistency under changes of the input; its strength is (rate, threshold, rounds)."""

    name = "fixmatch"

    def obstacle(self) -> str:
        """Say if inputs cannot be changed, or no parameter may be."""
        if not can_change(self.pool):
            return "inputs are neither images nor tables of numbers"
        return super().obstacle()

    def candidates(self) -> Listed:
        """Return every rate with both thresholds, and a short and a long training."""
        return Listed(tuple(itertools.product(RATES, THRESHOLDS, map(float, ROUNDS))))

    def training(self, *settings: float) -> Training:
        """Begin a training.

        Parameters
        ----------
        *settings
            Rate and threshold.

        Returns
        -------
        Training
            A round is its unit.
        """
        rate, threshold = settings
        steps = Steps(self.context, adam(self.context, rate))
        some = self.pool[:SPREAD_OF]
        change = Augmentation(some, self._mirrored(), steps.generator)
        others = endless(len(self.pool), OTHERS, steps.generator)

        def batches() -> Iterator[tuple[Any, Tensor]]:
            for (verified, labels), drawn in zip(self.drawn(steps.generator), others, strict=False):
                x = self.pool[drawn]
                yield joined([change.weak(verified), change.weak(x), change.strong(x)]), labels

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return consistency(logits, labels, threshold)

        stream = batches()
        return Training(trained(steps, lambda _: steps.over(one_round(stream), loss)))

    def _mirrored(self) -> bool:
        """Tell whether the network gets the context's verified images right as often when they are mirrored."""
        context = self.context
        x, labels = self.verified
        if x.ndim != 4:
            return False
        with context.corrected() as model:
            as_is, turned = (
                float(correct_or_not(model(images.to(context.run.device)).cpu(), labels).mean())
                for images in (x, x.flip(3))
            )
        return turned >= as_is - FEWER


def consistency(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return the loss of a batch: verified samples, others weakly changed, and these again, strongly changed.

    Parameters
    ----------
    logits
        ``[n + m + m, outputs]``.
    labels
        Of the verified ones, ``[n]``.
    threshold
        How likely the likeliest class has to be.

    Returns
    -------
    Tensor
        A scalar; an input below the threshold counts as a loss of 0.
    """
    count = len(labels)
    weak, strong = logits[count:].chunk(2)
    sure, guess = probabilities(weak.detach()).max(dim=1)
    others = torch.where(sure >= threshold, cross_entropy(strong, guess), 0.0)
    return cross_entropy(logits[:count], labels.to(logits.device)).mean() + others.mean()

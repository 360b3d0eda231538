"""Fine-tuning on verified labels and on pseudo-labels of the training inputs: Lee, "Pseudo-label", ICML workshop 2013.

A training input's pseudo-label is the class that a teacher finds most likely: the starting network, which remembers
many of the wrong labels, or that network fine-tuned on the verified labels, as folds decide. Pseudo-labels are made
once and weigh as much as the verified labels; the paper makes them anew in every step and lets their weight rise.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F

from benchmarks.methods.semi import OTHERS, RATES, ROUNDS, SemiSupervised, answers, at, both, endless, one_round
from benchmarks.methods.steps import Steps, adam, trained
from verifix.recipe.candidates import Listed
from verifix.recipe.stages.training import Training

STARTING, FINE_TUNED = 0.0, 1.0
"""The teachers."""


class PseudoLabels(SemiSupervised):
    """Train on a teacher's answers to training inputs; its strength is (rate, teacher, rounds)."""

    name = "pseudo_labels"

    def candidates(self) -> Listed:
        """Return every rate with both teachers, and a short and a long training."""
        return Listed(tuple(itertools.product(RATES, (STARTING, FINE_TUNED), map(float, ROUNDS))))

    def training(self, *settings: float) -> Training:
        """Begin a training.

        Parameters
        ----------
        *settings
            Rate and teacher.

        Returns
        -------
        Training
            A round is its unit.
        """
        rate, teacher = settings
        training, count = self.case.training, len(self.case.training)
        update = self.taught(rate) if teacher == FINE_TUNED else {}
        labels = answers(self.context, training, range(count), update).argmax(dim=1)
        targets = F.one_hot(labels, self.case.classes)
        steps = Steps(self.context, adam(self.context, rate))
        others = ((at(self.pool, drawn), targets[drawn]) for drawn in endless(count, OTHERS, steps.generator))
        batches = self.beside_verified(steps.generator, others)
        return Training(trained(steps, lambda _: steps.over(one_round(batches), both)))

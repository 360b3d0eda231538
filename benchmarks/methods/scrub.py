"""SCRUB: Kurmanji, Triantafillou, Hayes and Triantafillou, NeurIPS 2023 (arXiv 2302.09880).

The trained network is the teacher, and a student that begins as a copy of it learns to disobey on what is to be
forgotten and to obey on what is kept. Epochs alternate:

    max-step  raise  KL(teacher ‖ student) on what is forgotten
    min-step  lower  α KL(teacher ‖ student) + γ cross-entropy(student, labels) on what is kept

The first `MAX_EPOCHS` epochs are a pass of max-steps and one of min-steps, all others min-steps alone. Forgotten are
the training samples that are known to have wrong labels, kept the verified samples of the context. The optimizer is
SGD with momentum, in eval mode (see `benchmarks.methods.steps`), and the rate stays what it is: the paper lets it fall
late in trainings longer than these. In eval mode the student still is the teacher in the first pass of max-steps, where
the gradient of their divergence is 0; from the second on they differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.methods.base import HALF_A_DECADE, Case, Rival, nearby
from benchmarks.methods.steps import Steps, momentum, trained
from verifix.losses import cross_entropy
from verifix.model.samples import Samples
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.training import Training

RATES = (1e-3, 1e-2, 1e-1)

SEEN, FEWEST, MOST = 4800, 12, 24
"""Kept samples seen in the longest training to begin with, and bounds on its epochs."""

MAX_EPOCHS = 3
"""Epochs that hold max-steps."""

OBEDIENCE, LABELS = 0.5, 1.0
"""α and γ: what the teacher and what the labels weigh on kept samples."""


class Scrub(Rival):
    """Disobey the trained network on wrong labels, and obey on verified samples; its strength is (rate, epochs)."""

    name = "scrub"

    def __init__(self, case: Case, context: Context) -> None:
        super().__init__(case, context)
        self.trainings: dict[float, Training] = {}

    def release(self) -> None:
        """Let go of the trainings."""
        self.trainings = {}

    def obstacle(self) -> str:
        """Say if there is nothing to forget."""
        return "" if self.case.known_wrong else "no training sample is known to have a wrong label"

    def candidates(self) -> Listed:
        """Return every rate with a quarter, half and all of the longest training."""
        longest = _longest(self.context)
        epochs = (longest // 4, longest // 2, longest)
        return Listed(tuple((rate, float(count)) for rate, count in itertools.product(RATES, epochs)))

    def neighbours(self, best: tuple[float, float]) -> list[tuple[float, float]]:
        """Return the rates half a decade away, and trainings half and twice as long."""
        rate, epochs = best
        lengths = nearby(epochs, 2, 1, 4 * _longest(self.context), whole=True)
        return [(near, epochs) for near in nearby(rate, HALF_A_DECADE, 1e-6, 1.0)] + [(rate, near) for near in lengths]

    def fit(self, strength: tuple[float, float]) -> Update:
        """Return the student's weights.

        Parameters
        ----------
        strength
            Learning rate and epochs.

        Returns
        -------
        Update
            New values of all parameters that may be trained.
        """
        rate, epochs = strength
        if rate not in self.trainings:
            self.trainings[rate] = self._training(self.context, rate)
        return self.trainings[rate].after(int(epochs))

    def _training(self, context: Context, rate: float) -> Training:
        steps = Steps(context, momentum(rate))
        kept = _Taught(context, context.run.samples, context.indices)
        forgotten = _Taught(context, self.case.training, self.case.known_wrong)

        def disobey(student: Tensor, indices: Sequence[int]) -> Tensor:
            return -divergence(forgotten.teacher(indices), student)

        def obey(student: Tensor, indices: Sequence[int]) -> Tensor:
            return obedience(kept.teacher(indices), student, context.run.samples.labels[list(indices)])

        def epoch(number: int) -> None:
            if number < MAX_EPOCHS:
                steps.epoch(forgotten.samples, forgotten.indices, disobey)
            steps.epoch(kept.samples, kept.indices, obey)

        return Training(trained(steps, epoch))


def _longest(context: Context) -> int:
    return min(max(round(SEEN / len(context.indices)), FEWEST), MOST)


def obedience(
    teacher: Tensor, student: Tensor, labels: Tensor, alpha: float = OBEDIENCE, gamma: float = LABELS
) -> Tensor:
    """Return α KL(teacher ‖ student) + γ cross-entropy, the mean over samples.

    Parameters
    ----------
    teacher, student
        Logits ``[n, outputs]``.
    labels
        ``[n]``.
    alpha, gamma
        What both weigh.

    Returns
    -------
    Tensor
        A scalar.
    """
    return alpha * divergence(teacher, student) + gamma * cross_entropy(student, labels.to(student.device)).mean()


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of logits ``[n, outputs]``, the mean over samples."""
    said, says = log_probabilities(teacher.to(student)), log_probabilities(student)
    return F.kl_div(says, said, log_target=True, reduction="batchmean")


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the logarithms of the probabilities, ``[n, classes]``; two classes for one logit."""
    return F.log_softmax(F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits, dim=1)


class _Taught:
    """Samples, and what the trained network says about them.

    Parameters
    ----------
    context
        Its weights are the teacher's.
    samples, indices
        The samples.
    """

    def __init__(self, context: Context, samples: Samples, indices: Sequence[int]) -> None:
        self.samples, self.indices = samples, list(indices)
        self._logits = replace(context, run=replace(context.run, samples=samples)).predict(self.indices, {})
        self._row = {index: row for row, index in enumerate(self.indices)}

    def teacher(self, indices: Sequence[int]) -> Tensor:
        """Return the teacher's logits ``[n, outputs]`` of some of the samples."""
        return self._logits[torch.tensor([self._row[i] for i in indices])]

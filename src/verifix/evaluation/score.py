"""`verifix.score`: how good one model is on labelled samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from verifix.evaluation.accuracy import remark_on_chance
from verifix.evaluation.comparison import Count
from verifix.evaluation.metrics import confusion, measure
from verifix.evaluation.predictions import answers_of
from verifix.evaluation.presented import Presented
from verifix.evaluation.runs import RunArguments, answered
from verifix.model.class_names import named
from verifix.settings import takes

WORST = 3
"""Classes that a summary names."""


class ClassScore(msgspec.Struct, frozen=True):
    """How good a model is on one class.

    Attributes
    ----------
    label
        The class; ``class`` in plain data.
    samples
        How many have this label.
    accuracy
        Percent of them that are right; None if there are none.
    """

    label: int = msgspec.field(name="class")
    samples: int
    accuracy: float | None


@dataclass(frozen=True)
class Score(Presented):
    """How good a model is.

    Attributes
    ----------
    samples, classes
        Number of samples, and of classes.
    accuracy, balanced_accuracy
        Percent right, and its mean over classes.
    cross_entropy
        Mean, in nats.
    calibration_error
        Expected calibration error, 0 to 1.
    per_class
        Accuracy of each class.
    confusion
        Counts ``[label][predicted]``; None above 100 classes.
    class_names
        In the order of the outputs; None if they are not known.
    notes
        What was noticed about samples and outputs.
    """

    samples: Count
    classes: int
    accuracy: float
    balanced_accuracy: float
    cross_entropy: float
    calibration_error: float
    per_class: tuple[ClassScore, ...]
    confusion: list[list[int]] | None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the score as plain data, fit for JSON."""
        return dict(msgspec.json.decode(msgspec.json.encode(self)))

    def summary(self) -> str:
        """Say how good the model is, in a few lines."""
        lines = [
            f"{self.accuracy:.2f}% of {self.samples:,} samples correct.",
            f"Balanced accuracy {self.balanced_accuracy:.2f}%, cross-entropy {self.cross_entropy:.4f}, calibration "
            f"error {self.calibration_error:.4f}.",
        ]
        known = sorted((row for row in self.per_class if row.accuracy is not None), key=lambda row: row.accuracy or 0.0)
        worst = ", ".join(f"{named(row.label, self.class_names)} ({row.accuracy:.1f}%)" for row in known[:WORST])
        lines += [f"Lowest accuracy: {worst}."] if len(known) > WORST else []
        return "\n".join([*lines, *self.notes])


@takes(RunArguments)
def score(model: nn.Module, data: Any, settings: RunArguments) -> Score:
    """Score a model on labelled samples.

    Parameters
    ----------
    model
        The classifier, as `verifix.correct` takes it; it is not changed.
    data
        Labelled samples in any form that `verifix.correct` takes; with `labels`, inputs alone.
    settings
        Each is a keyword argument.

    Returns
    -------
    Score
        Accuracy, calibration, and the accuracy of each class.

    Raises
    ------
    DataError
        If the samples do not fit the model.

    Examples
    --------
    >>> import torch, verifix
    >>> model = torch.nn.Linear(4, 2)
    >>> verifix.score(model, torch.randn(60, 4), torch.arange(60) % 2, progress=False).samples
    60
    """
    found = answered(model, data, settings, "scoring")
    labels, answers = found.samples.labels.numpy(), answers_of(found.logits)
    whole = measure(answers, labels, None)
    right = answers.predicted == labels
    rows = []
    for label in range(answers.classes):
        own = right[labels == label]
        rows.append(ClassScore(label, len(own), 100 * float(np.mean(own)) if len(own) else None))
    predicted = torch.from_numpy(answers.predicted)
    chance = remark_on_chance(predicted, found.samples.labels, answers.classes, "given")
    return Score(
        samples=len(labels),
        classes=answers.classes,
        accuracy=whole.accuracy,
        balanced_accuracy=whole.balanced_accuracy,
        cross_entropy=whole.cross_entropy or 0.0,
        calibration_error=whole.calibration_error or 0.0,
        per_class=tuple(rows),
        confusion=confusion(answers, labels, answers.classes),
        class_names=found.names,
        notes=tuple(filter(None, (*found.remarks, chance))),
    )

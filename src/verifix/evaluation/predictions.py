"""What a model answered to n samples, as the numbers a user has: logits, probabilities or predicted classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifix.errors import DataError, one_line
from verifix.losses import predicted_classes
from verifix.model.labels import broken_label
from verifix.model.outputs import Meaning, meaning_of, to_logits

SUREST = float(np.finfo(np.float64).eps)
"""The least probability that an answer is taken to have: one that was sure, and wrong, costs 36 nats."""

LOST = 1e-6
"""How much of a row of probabilities must be missing for it to have been lost in rounding."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Answers:
    """The answers of one model.

    Attributes
    ----------
    predicted
        Predicted classes, int64 ``[n]``.
    logits
        float64 ``[n, classes]``, two columns or more; None if only predicted classes are known.
    meaning
        What the numbers were read as.
    """

    predicted: Array
    logits: Tensor | None
    meaning: Meaning = "logits"

    @property
    def classes(self) -> int:
        """How many classes there are, as far as the answers show it."""
        return int(self.predicted.max()) + 1 if self.logits is None else self.logits.shape[1]


def as_answers(values: Any, what: str, count: int, outputs: str = "auto") -> Answers:
    """Take a model's answers in any of their forms.

    Parameters
    ----------
    values
        Tensor, array or nested list. ``[n, classes]`` of logits, log-probabilities, probabilities or percent;
        ``[n, 1]`` of one such number each, for class 1; or whole numbers ``[n]``, the predicted classes alone.
        Answers are taken as they are.
    what
        "before", "after" or the name of a file, for messages.
    count
        Number of labels.
    outputs
        What the numbers are; "auto" finds it out.

    Returns
    -------
    Answers
        The same as predicted classes and logits.

    Raises
    ------
    DataError
        If the shape is another, or a number is not finite; says in which row. If it is not clear what the numbers are.
    """
    if isinstance(values, Answers):
        return values
    x = _as_tensor(values, what)
    if x.ndim not in (1, 2) or len(x) != count or 0 in x.shape:
        raise DataError(
            f"{what} has the shape {list(x.shape)} for {count} labels; give logits or probabilities "
            f"[{count}, classes], or predicted classes [{count}]"
        )
    if not x.is_floating_point() and (x.ndim == 1 or x.shape[1] == 1):
        return Answers(_classes(x.reshape(-1).long(), what), None)
    if x.ndim == 1:
        raise DataError(
            f"{what} is one row of {x.dtype}; give logits [{count}, classes], [{count}, 1] for one logit each, or "
            "whole numbers for predicted classes"
        )
    numbers = _finite(x.double(), what)
    meaning: Meaning = meaning_of(numbers, None, f"the numbers of {what}") if outputs == "auto" else outputs  # type: ignore[assignment]
    return replace(answers_of(_as_logits(numbers, meaning)), meaning=meaning)


def answers_of(logits: Tensor) -> Answers:
    """Return logits ``[n, outputs]``, float64, as answers."""
    both = torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits
    return Answers(predicted_classes(both).numpy(), both)


def as_labels(values: Any) -> Array:
    """Take labels.

    Parameters
    ----------
    values
        Class indices ``[n]``, as a tensor, an array or a list.

    Returns
    -------
    ndarray
        int64 ``[n]``.

    Raises
    ------
    DataError
        If they are no whole numbers of 0 or more, or fewer than 2.
    """
    x = _as_tensor(values, "labels")
    broken = broken_label(x)
    if x.ndim != 1 or broken is not None:
        first = f", and number {broken} of them is {x.reshape(-1)[broken].item()}" if broken is not None else ""
        raise DataError(
            f"labels are {x.dtype} of shape {list(x.shape)}{first}; they must be class indices (whole numbers) of "
            "shape [n]"
        )
    if len(x) < 2:
        raise DataError(f"there are {len(x)} labels; a comparison needs at least 2 samples")
    return _classes(x.long(), "labels")


def as_weights(values: Any, count: int) -> Array | None:
    """Take weights of samples.

    Parameters
    ----------
    values
        Numbers ``[n]`` of 0 or more, or None if every sample counts the same.
    count
        Number of samples.

    Returns
    -------
    ndarray or None
        float64 ``[n]``, scaled to a mean of 1; None if all are equal.

    Raises
    ------
    DataError
        If the shape is another, a weight is negative or not finite, or all are 0.
    """
    if values is None:
        return None
    x = _as_tensor(values, "weights").double()
    if x.shape != (count,):
        raise DataError(f"weights have the shape {list(x.shape)} for {count} samples; give one number per sample")
    wrong = (~(torch.isfinite(x) & (x >= 0))).nonzero().flatten()
    if len(wrong):
        i = int(wrong[0])
        raise DataError(f"the weight of sample {i} is {float(x[i])}; every weight must be a finite number of 0 or more")
    if not x.max() > 0:
        raise DataError("every weight is 0; at least one sample must count")
    scaled: Array = (x / x.max()).numpy()  # first, so that weights near the largest float do not add up to Inf
    scaled = scaled / scaled.mean()
    return None if np.allclose(scaled, 1, rtol=0, atol=1e-9) else scaled


def class_count(before: Answers, after: Answers, labels: Array) -> int:
    """Return how many classes two models and the labels agree on.

    Parameters
    ----------
    before, after
        The answers.
    labels
        int64 ``[n]``.

    Returns
    -------
    int
        Columns of the logits; or, where there are none, one more than the largest class that is met.

    Raises
    ------
    DataError
        If they do not agree.
    """
    widths = {a.classes for a in (before, after) if a.logits is not None}
    if len(widths) == 2:
        raise DataError(
            f"before has {before.classes} classes and after {after.classes}; compare models with the same classes"
        )
    if not widths:
        return max(before.classes, after.classes, int(labels.max()) + 1, 2)
    (classes,) = widths
    for what, values in (("before", before.predicted), ("after", after.predicted), ("labels", labels)):
        if values.max() >= classes:
            i = int((values >= classes).argmax())
            raise DataError(
                f"{what} has class {values[i]} for sample {i}, but there are {classes} classes, so they go from 0 to "
                f"{classes - 1}; check that predictions and labels belong together"
            )
    return classes


def _as_tensor(values: Any, what: str) -> Tensor:
    try:
        # Through numpy, for torch would round a list of numbers to single precision.
        x = (values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        line = one_line(error)
        raise DataError(f"{what} cannot be converted to numbers ({line}); give numbers in one array") from None
    if x.is_complex() or x.dtype == torch.bool:
        raise DataError(f"{what} is {x.dtype}; give real numbers")
    return x


def _classes(x: Tensor, what: str) -> Array:
    if x.min() < 0:
        i = int((x < 0).long().argmax())
        raise DataError(f"{what} has class {int(x[i])} for sample {i}; classes are whole numbers of 0 or more")
    return x.numpy()


def _finite(x: Tensor, what: str) -> Tensor:
    bad = (~torch.isfinite(x)).any(dim=1).nonzero().flatten()
    if len(bad):
        raise DataError(
            f"{what} has NaN or Inf in row {int(bad[0])}; every number must be finite (for the logarithm of a "
            "probability of 0 give a number such as -100)"
        )
    return x


def _as_logits(x: Tensor, meaning: Meaning) -> Tensor:
    """Read numbers as logits; probabilities of 0 give way to what rounding took from their row, or to `SUREST`."""
    if meaning in ("logits", "log-probabilities"):
        return to_logits(x, meaning, one=x.shape[1] == 1)
    p = x / 100 if meaning == "percent" else x
    if x.shape[1] > 1:
        lost = 1 - p.sum(dim=1, keepdim=True)
        share = torch.where(lost > LOST, lost, 0) / (p == 0).sum(dim=1, keepdim=True).clamp(min=1)
        p = torch.where(p == 0, share.clamp(min=SUREST), p)
    return to_logits(p, "probabilities", one=x.shape[1] == 1)

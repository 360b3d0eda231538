"""Losses and scores of logits: mathematics that knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from verifix.errors import VerifixError

Score = Callable[[Tensor, Tensor], Tensor]
"""``(logits [n, k], labels [n]) → [n]`` or a scalar; for a loss, one number per sample."""


def probabilities(logits: Tensor) -> Tensor:
    """Return each sample's probability of every class, ``[n, classes]``; two classes for one logit."""
    return F.softmax(F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits, dim=1)


def correct_or_not(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where the predicted class is the label, else 0: float64 ``[n]``."""
    return (predicted_classes(logits) == labels).double()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each sample's cross-entropy in nats, ``[n]``; binary cross-entropy for one logit."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")
    return F.cross_entropy(logits, labels, reduction="none")


def tempered_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each sample's cross-entropy after the temperature that suits these logits best.

    A projection also shrinks the logits. Plain cross-entropy rewards that on its own, even against labels that mean
    nothing, so strengths are compared with the confidence of each candidate set to its best value first. Logits
    without information get temperature infinity, and all of them the same loss.

    Parameters
    ----------
    logits
        ``[n, outputs]``.
    labels
        ``[n]``.

    Returns
    -------
    Tensor
        Nats, ``[n]``.
    """
    return cross_entropy(logits * best_sharpness(logits, labels), labels)


def best_sharpness(logits: Tensor, labels: Tensor) -> float:
    """Return the factor (one over the temperature) at which the mean cross-entropy of logits is smallest.

    Parameters
    ----------
    logits
        ``[n, outputs]``.
    labels
        ``[n]``.

    Returns
    -------
    float
        0 or more; 0 if the logits hold no information.
    """
    from scipy.optimize import minimize_scalar

    span = float((logits.amax(dim=1) - logits.amin(dim=1)).mean()) if logits.shape[1] > 1 else 0.0
    unit = span or float(logits.abs().mean()) or 1.0

    def mean_loss(sharpness: float) -> float:
        return float(cross_entropy(logits * (sharpness / unit), labels).mean())

    best = minimize_scalar(mean_loss, bounds=(0.0, 100.0), method="bounded", options={"xatol": 1e-6})
    # The search never tries its bounds; at 0 all logits are equal, which must tie exactly for a fair comparison.
    return float(best.x) / unit if best.fun < mean_loss(0.0) - 1e-9 else 0.0


def apply_score(function: Score, logits: Tensor, labels: Tensor, what: str, per_sample: bool) -> Tensor:
    """Call a user's score or loss and check what it returns.

    Parameters
    ----------
    function
        The callable.
    logits, labels
        ``[n, outputs]`` and ``[n]``.
    what
        "score" or "loss", for the message.
    per_sample
        Whether one number per sample is needed.

    Returns
    -------
    Tensor
        float64 ``[n]``, or a scalar where that is allowed.

    Raises
    ------
    VerifixError
        If the shape is another, or a value is not finite.
    """
    result = function(logits, labels)
    try:
        value = torch.as_tensor(result).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise VerifixError(f"{what}= returned a {type(result).__name__}; it must return a tensor of numbers") from None
    allowed = [labels.shape] if per_sample else [labels.shape, torch.Size([])]
    if value.shape not in allowed or not torch.isfinite(value).all():
        raise VerifixError(
            f"{what}= returned {'non-finite values' if value.shape in allowed else f'shape {list(value.shape)}'}; "
            f"it must return finite numbers of shape [{len(labels)}]{'' if per_sample else ' or a scalar'}"
        )
    return value


def predicted_classes(logits: Tensor) -> Tensor:
    """Return the predicted class of each row of logits ``[n, outputs]``, int64 ``[n]``; one logit says 1 above 0."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)

"""The strategies: which samples to verify beside those that are drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from verifix.errors import UsageError
from verifix.io.optional_imports import library
from verifix.losses import probabilities
from verifix.model.labels import UNKNOWN
from verifix.model.predict import predict
from verifix.model.samples import Samples
from verifix.selection.features import with_features
from verifix.selection.queue import GUESSES
from verifix.storage.chunks import Arrays

Array = np.ndarray[Any, Any]
Work = Callable[[Sequence[int], int], Arrays]


def scoring(strategy: str, work: nn.Module, where: torch.device, samples: Samples, labels: Tensor, seed: int) -> Work:
    """Return what is computed of every sample.

    Parameters
    ----------
    strategy
        One of `STRATEGIES`.
    work, where
        The working copy of the model, and its device.
    samples, labels
        The samples, and their given labels ``[n]``; `UNKNOWN` for none.
    seed
        Of what is random.

    Returns
    -------
    callable
        ``(indices, batch size) → arrays``: "guesses" and "shares" ``[batch, up to 3]``, the best classes and their
        probabilities; and "scores" ``[batch]``, of which the lowest are selected, or "features" ``[batch, width]``.

    Raises
    ------
    UsageError
        If the strategy needs labels that are not there, or cleanlab is missing.
    """
    run = with_features(work, where, samples, seed) if strategy == "spread" else None
    quality = _quality(labels) if strategy == "suspect" else None

    def scored(batch: Sequence[int], size: int) -> Arrays:
        logits, features = run(batch, size) if run else (predict(work, samples, batch, size, where), None)
        found = _best(logits)
        if features is not None:
            return found | {"features": features.numpy()}
        if quality is not None:
            return found | {"scores": quality(labels[batch], probabilities(logits))}
        shares = probabilities(logits).topk(2, dim=1).values
        return found | {"scores": (shares[:, 0] - shares[:, 1]).numpy()}

    return scored


def _best(logits: Tensor) -> Arrays:
    """Return the best classes and their probabilities."""
    shares = probabilities(logits)
    best = shares.topk(min(GUESSES, shares.shape[1]), dim=1)
    return {"guesses": best.indices.numpy().astype(np.int32), "shares": best.values.numpy().astype(np.float32)}


def _quality(labels: Tensor) -> Callable[[Tensor, Tensor], Array]:
    """Return cleanlab's label quality: how probable the model finds the given label, from 0 to 1."""
    rank = library("cleanlab.rank", "cleanlab", "label-errors")
    if bool((labels == UNKNOWN).any()):
        raise UsageError("strategy is 'suspect', which looks at given labels, but the samples have none; use another")

    def quality(given: Tensor, shares: Tensor) -> Array:
        found: Array = rank.get_label_quality_scores(given.numpy(), shares.numpy(), method="self_confidence")
        return found

    return quality


def lowest(scores: Array, order: Array, count: int) -> list[int]:
    """Return the samples with the lowest scores.

    Parameters
    ----------
    scores
        Of all samples, ``[n]``.
    order
        The samples to choose from, in random order, which settles equal scores.
    count
        How many.

    Returns
    -------
    list of int
        The lowest first.
    """
    found: list[int] = order[np.argsort(scores[order], kind="stable")[:count]].tolist()
    return found


def balanced(labels: Array, order: Array, count: int) -> list[int]:
    """Return samples at random, the same number of each class; others take the place of a class that is used up.

    Parameters
    ----------
    labels
        Of all samples, ``[n]``.
    order
        The samples to choose from, in random order.
    count
        How many.

    Returns
    -------
    list of int
        One of each class, then a second one of each, and so on.

    Raises
    ------
    UsageError
        If there are no labels.
    """
    if (labels == UNKNOWN).any():
        raise UsageError("strategy is 'balanced', which looks at given labels, but the samples have none; use another")
    own = labels[order]
    turn = np.empty(len(own), np.int64)
    for label in np.unique(own):
        turn[own == label] = np.arange((own == label).sum())
    found: list[int] = order[np.argsort(turn, kind="stable")[:count]].tolist()
    return found

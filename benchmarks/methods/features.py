"""What the last linear layer sees of any samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from verifix.model.borrow import borrowed
from verifix.model.samples import Samples
from verifix.recipe.context import Context
from verifix.recipe.stages.heads import Head, find_head

NO_HEAD = "no linear layer gives the logits"


def head_of(context: Context) -> Head | None:
    """Return the context's head, looked for once."""
    return context.learn("head", lambda: find_head(context))


def penultimate(context: Context, samples: Samples, indices: Sequence[int]) -> Tensor:
    """Return the features that the head sees, also after the context has ended.

    Parameters
    ----------
    context
        How to run the network, and its weights.
    samples
        Any samples.
    indices
        Which of them.

    Returns
    -------
    Tensor
        ``[n, d]``, float64 on the CPU, in the order of `indices`.
    """
    part = samples.subset(indices)
    with borrowed(context.model):
        head = find_head(replace(context, samples=part, members=[range(len(part))], folds=[0], memo={}, learned={}))
    assert head is not None, NO_HEAD
    return head.features


class Features:
    """The features of the samples that were asked for last: all settings are scored on the same held-out ones.

    Parameters
    ----------
    context
        How to run the network, and its weights.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.samples: Samples | None = None
        self.indices: list[int] = []
        self.found: Tensor

    def __call__(self, samples: Samples, indices: Sequence[int]) -> Tensor:
        """Return ``[n, d]``, as `penultimate` does."""
        if samples is not self.samples or list(indices) != self.indices:
            self.found = penultimate(self.context, samples, indices)
            self.samples, self.indices = samples, list(indices)
        return self.found

"""What the last linear layer sees of any samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from benchmarks.methods.base import Rival
from verifix.model.borrow import borrowed
from verifix.model.samples import Samples
from verifix.recipe.context import Context
from verifix.recipe.stages.heads import Head, find_head

NO_HEAD = "no linear layer gives the logits"


class OnHead(Rival):
    """A method that works on the last linear layer and what it sees."""

    @cached_property
    def head(self) -> Head | None:
        """The layer; None if no linear layer gives the logits."""
        return find_head(self.context)

    @property
    def found(self) -> Head:
        """The layer, where `obstacle` has said nothing."""
        assert self.head is not None, NO_HEAD
        return self.head

    def obstacle(self) -> str:
        """Say if there is no linear head."""
        return "" if self.head else NO_HEAD


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
    run = replace(context.run, samples=part, members=[range(len(part))])
    with borrowed(run.model):
        head = find_head(replace(context, run=run, folds=[0]))
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

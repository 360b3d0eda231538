"""Selective synaptic dampening: Foster, Schoepf and Brintrup, AAAI 2024 (arXiv 2308.07707).

The importance of each parameter for some samples is the diagonal of their Fisher information, the mean over samples
of (∂ log p(y | x) / ∂θ)². With I_D for what the network shall keep and I_f for what it shall forget,

    θ ← β θ where I_f > α I_D,  β = min(λ I_D / I_f, 1).

Forgotten are the training samples that are known to have wrong labels, with these labels. I_D is, as in the paper, that
of the training set, wrong labels included; here of samples drawn from it. So the verified samples only choose α and λ.
Where a share f of the labels is wrong, I_f is hardly ever above I_D / f: an α above 1 / f selects nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from benchmarks.methods.base import HALF_A_DECADE, Case, Rival, nearby
from verifix.model.gradients import gradients
from verifix.model.samples import Samples
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.training import trainable

SELECTIONS = (1.0, 2.0, 3.0, 5.0, 10.0, 30.0)
"""α: how much more than for the rest a parameter must matter for what is forgotten."""

DAMPENINGS = (0.1, 0.3, 1.0)
"""λ' = λ / α, up to 1: β is λ' where a parameter is just selected. The paper's own α and λ are 10 and 1."""

MOST = 500
"""Samples that a Fisher information is the mean over, at most: each takes a backward pass of its own."""

Importance = Mapping[str, Tensor]


class Importances:
    """I_D and I_f: they come from training samples, and so are the same for all folds, and contexts share them.

    Parameters
    ----------
    case
        The network and what there is to correct it with.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.found: tuple[Importance, Importance] | None = None

    def of(self, context: Context) -> tuple[Importance, Importance]:
        """Return both, measured once."""
        if self.found is None:
            every = range(len(self.case.training))
            self.found = self._mean(context, every), self._mean(context, self.case.known_wrong)
        return self.found

    def _mean(self, context: Context, indices: Sequence[int]) -> Importance:
        drawn = some(indices, MOST, context.run.seed)
        total = squares(context, self.case.training, drawn, trainable(context))
        return {name: x / len(drawn) for name, x in total.items()}


class SelectiveDampening(Rival):
    """Shrink the parameters that matter for samples with wrong labels; its strength is (α, λ')."""

    name = "ssd"

    def __init__(self, case: Case, context: Context, importances: Importances | None = None) -> None:
        super().__init__(case, context)
        self.importances = importances or Importances(case)

    @classmethod
    @contextmanager
    def open(cls, case: Case) -> Iterator[Callable[[Context], SelectiveDampening]]:
        """Lend what puts the method to work in contexts, which share the importances.

        Yields
        ------
        callable
            Context → the method there.
        """
        yield partial(cls, case, importances=Importances(case))

    def obstacle(self) -> str:
        """Say if there is nothing to forget."""
        return "" if self.case.known_wrong else "no training sample is known to have a wrong label"

    def candidates(self) -> Listed:
        """Return every α with every λ'."""
        return Listed(tuple(itertools.product(SELECTIONS, DAMPENINGS)))

    def neighbours(self, best: tuple[float, float]) -> list[tuple[float, float]]:
        """Return a little more and less α, and half a decade more and less λ'."""
        alpha, share = best
        shares = [(alpha, near) for near in nearby(share, HALF_A_DECADE, 1e-4, 1.0)]
        return [(near, share) for near in nearby(alpha, 1.25)] + shares

    def fit(self, strength: tuple[float, float]) -> Update:
        """Return the dampened parameters.

        Parameters
        ----------
        strength
            α and λ'.

        Returns
        -------
        Update
            New values of all parameters that may be trained.
        """
        alpha, share = strength[0], strength[0] * strength[1]
        context = self.context
        kept, forgotten = self.importances.of(context)
        update = {name: context.writable(name) for name in kept}
        for name, target in update.items():
            target.copy_(dampened(context.parameter(name).double(), kept[name], forgotten[name], alpha, share))
        return update


def dampened(weight: Tensor, kept: Tensor, forgotten: Tensor, alpha: float, share: float) -> Tensor:
    """Return β θ where I_f > α I_D, else θ.

    Parameters
    ----------
    weight
        θ, any shape.
    kept, forgotten
        I_D and I_f, of the same shape.
    alpha, share
        α, and λ of β = min(λ I_D / I_f, 1).

    Returns
    -------
    Tensor
        The new weight.
    """
    selected = forgotten > alpha * kept  # I_f is above 0 there
    beta = (share * kept / torch.where(selected, forgotten, torch.ones_like(forgotten))).clamp(max=1)
    return torch.where(selected, beta * weight, weight)


def squares(context: Context, samples: Samples, indices: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
    """Return the sum over samples of the squared gradient of each one's log-likelihood, float64."""
    total = {name: torch.zeros_like(context.parameter(name), dtype=torch.float64) for name in names}
    with context.corrected() as model:
        for i in indices:
            slopes = gradients(model, samples, [i], names, batch_size=1, device=context.run.device)
            for name, slope in slopes.items():
                total[name] += slope.double().square()
    return total


def some(indices: Sequence[int], most: int, seed: int) -> list[int]:
    """Return the indices, or so many of them drawn at random."""
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return sorted(int(indices[i]) for i in order[:most].tolist())

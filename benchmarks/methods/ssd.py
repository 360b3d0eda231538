"""Selective synaptic dampening: Foster, Schoepf and Brintrup, AAAI 2024 (arXiv 2308.07707).

The importance of each parameter for some samples is the diagonal of their Fisher information, the mean over samples
of (∂ log p(y | x) / ∂θ)². With I_D for what the network shall keep and I_f for what it shall forget,

    θ ← β θ where I_f > α I_D,  β = min(λ I_D / I_f, 1).

Forgotten are the training samples that are known to have wrong labels, with these labels. The paper takes I_D from
the whole training set, whose labels cannot be trusted here: it is taken from the verified samples of the context. A
network that has memorised its wrong labels is sure of them, and their gradients are small beside those of samples that
it has never seen. So α reaches far below the paper's, which are around 10.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.methods.base import Rival
from verifix.gradients import gradients
from verifix.samples import Samples
from verifix.scoring import Update
from verifix.stages import Context
from verifix.stages.finetune import trainable
from verifix.strength import Listed

SELECTIONS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""α: how much more than for the rest a parameter must matter for what is forgotten."""

DAMPENINGS = (0.1, 1.0, 10.0)
"""λ, relative to α: λ = λ' α, so that β is at most λ' where a parameter is just selected."""

MOST = 500
"""Samples that a Fisher information is the mean over, at most: each takes a backward pass of its own."""

Importance = Mapping[str, Tensor]


class SelectiveDampening(Rival):
    """Shrink the parameters that matter for samples with wrong labels; its strength is (α, λ)."""

    name = "ssd"

    def obstacle(self, context: Context) -> str:  # noqa: ARG002 - the same for every context
        """Say if there is nothing to forget."""
        return "" if self.case.known_wrong else "no training sample is known to have a wrong label"

    def candidates(self, context: Context) -> Listed:  # noqa: ARG002 - the same for every network
        """Return every α with every λ."""
        return Listed(tuple((alpha, alpha * share) for alpha, share in itertools.product(SELECTIONS, DAMPENINGS)))

    def fit(self, context: Context, strength: tuple[float, float]) -> Update:
        """Return the dampened parameters.

        Parameters
        ----------
        context
            Where to take weights and what is kept from.
        strength
            α and λ.

        Returns
        -------
        Update
            New values of all parameters that may be trained.
        """
        alpha, share = strength
        kept, forgotten = context.remember("importances", lambda: self._importances(context))
        update = {name: context.writable(name) for name in kept}
        for name, target in update.items():
            target.copy_(dampened(context.parameter(name).double(), kept[name], forgotten[name], alpha, share))
        return update

    def _importances(self, context: Context) -> tuple[Importance, Importance]:
        """Return I_D and I_f; what folds have in common is worked out once for all contexts."""
        names, shared = trainable(context), context.shared
        wrong = some(self.case.known_wrong, MOST, context.seed)
        if "ssd forgotten" not in shared:
            shared["ssd forgotten"] = squares(context, self.case.training, wrong, names)
        kept, count = {name: torch.zeros_like(x) for name, x in shared["ssd forgotten"].items()}, 0
        for fold in context.folds:
            members = some(context.members[fold], MOST // len(context.members), context.seed)
            if ("ssd kept", fold) not in shared:
                shared["ssd kept", fold] = squares(context, context.samples, members, names)
            for name, total in shared["ssd kept", fold].items():
                kept[name] += total
            count += len(members)
        return {n: x / count for n, x in kept.items()}, {n: x / len(wrong) for n, x in shared["ssd forgotten"].items()}


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
            slopes = gradients(model, samples, [i], names, batch_size=1, device=context.device)
            for name, slope in slopes.items():
                total[name] += slope.double().square()
    return total


def some(indices: Sequence[int], most: int, seed: int) -> list[int]:
    """Return the indices, or so many of them drawn at random."""
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return sorted(int(indices[i]) for i in order[:most].tolist())

"""CUTS, corrective unlearning in task space: Mozafari, Wani, Bucarelli and Silvestri, 2025 (arXiv 2511.18660).

The network is trained a little further on a proxy, samples with corrupted labels, which amplifies what wrong labels
did to it; the way that its weights go is then taken back from the trained ones:

    τ = θ_corrupted − θ,   θ' = θ − s τ.

The proxy here are the verified samples of the context, every one with a wrong label, drawn as the labels of those
training samples are wrong that were checked: a proxy shall have the kind of noise that is suspected. The paper
calibrates s by a criterion of its own; here the folds choose it, as they choose everything. Further training is SGD
with momentum, in eval mode (see `benchmarks.methods.steps`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.methods.base import HALF_A_DECADE, Case, Rival, nearby
from benchmarks.methods.steps import Steps, momentum, trained
from verifix.losses import cross_entropy
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.training import Training

RATE = 0.01
EPOCHS = (1, 3, 10)
SCALES = (0.1, 0.3, 1.0, 3.0)


class TaskSpace(Rival):
    """Subtract what training on wrong labels adds; its strength is (epochs, s)."""

    name = "cuts"
    training: Training | None = None

    def candidates(self) -> Listed:
        """Return every length of the proxy's training with every s."""
        return Listed(tuple((float(epochs), scale) for epochs, scale in itertools.product(EPOCHS, SCALES)))

    def neighbours(self, best: tuple[float, float]) -> list[tuple[float, float]]:
        """Return trainings a third and three times as long, and s half a decade away."""
        epochs, scale = best
        lengths = [(near, scale) for near in nearby(epochs, 3, 1, 30, whole=True)]
        scales = [(epochs, near) for near in nearby(scale, HALF_A_DECADE, 1e-3)]
        return sorted(lengths + scales)  # one training has them all

    def fit(self, strength: tuple[float, float]) -> Update:
        """Return θ − s τ.

        Parameters
        ----------
        strength
            Epochs of the proxy's training, and s.

        Returns
        -------
        Update
            New values of all parameters that may be trained.
        """
        epochs, scale = strength
        context, update = self.context, {}
        self.training = self.training or self._corrupted(context)
        for name, corrupted in self.training.after(int(epochs)).items():
            weight = context.parameter(name).double()
            update[name] = context.writable(name).copy_(weight - scale * (corrupted.double() - weight))
        return update

    def release(self) -> None:
        """Let go of the training."""
        self.training = None

    def _corrupted(self, context: Context) -> Training:
        steps = Steps(context, momentum(RATE))
        wrong = corrupted_labels(context.run.samples.labels, mistakes(self.case), context.run.seed)

        def loss(logits: Tensor, indices: Sequence[int]) -> Tensor:
            return cross_entropy(logits, wrong[list(indices)].to(logits.device)).mean()

        return Training(trained(steps, lambda _: steps.epoch(context.run.samples, context.indices, loss)))


def mistakes(case: Case) -> Tensor:
    """Return how the labels of a class go wrong, by the checked training samples and one more for all other classes.

    Parameters
    ----------
    case
        The network and what there is to correct it with.

    Returns
    -------
    Tensor
        Shares ``[true class, other class]``; rows add up to 1, the diagonal is 0.
    """
    checked, classes = list(case.checked), case.classes
    counts = torch.full((classes, classes), 1 / (classes - 1), dtype=torch.float64)
    pairs = case.truth[checked], case.training.labels[checked]
    counts.index_put_(pairs, torch.ones(len(checked), dtype=torch.float64), accumulate=True)
    counts.fill_diagonal_(0)
    return counts / counts.sum(dim=1, keepdim=True)


def corrupted_labels(labels: Tensor, shares: Tensor, seed: int) -> Tensor:
    """Return for each label ``[n]`` another one, drawn from its row of `shares` ``[classes, classes]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(shares[labels], 1, generator=generator).flatten()

"""CUTS, corrective unlearning in task space: Mozafari, Wani, Bucarelli and Silvestri, 2025 (arXiv 2511.18660).

The network is trained a little further on a proxy, samples with corrupted labels, which amplifies what wrong labels
did to it; the way that its weights go is then taken back from the trained ones:

    τ = θ_corrupted − θ,   θ' = θ − s τ.

The proxy here are the verified samples of the context, every one with a wrong label drawn evenly from the other
classes: the kind of noise that these benchmarks add, and that the paper's proxies reflect as well. The paper
calibrates s by a criterion of its own; here the folds choose it, as they choose everything. Further training is SGD
with momentum, in eval mode (see `benchmarks.methods.steps`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.methods.base import Rival
from benchmarks.methods.steps import Steps, trained
from verifix.scoring import Update, cross_entropy
from verifix.stages import Context
from verifix.stages.finetune import Training
from verifix.strength import Listed

RATE = 0.01
EPOCHS = (1, 3, 10)
SCALES = (0.1, 0.3, 1.0, 3.0)


class TaskSpace(Rival):
    """Subtract what training on wrong labels adds; its strength is (epochs, s)."""

    name = "cuts"

    def candidates(self, context: Context) -> Listed:  # noqa: ARG002 - the same for every network
        """Return every length of the proxy's training with every s."""
        return Listed(tuple((float(epochs), scale) for epochs, scale in itertools.product(EPOCHS, SCALES)))

    def fit(self, context: Context, strength: tuple[float, float]) -> Update:
        """Return θ − s τ.

        Parameters
        ----------
        context
            Where to take weights and the proxy's samples from.
        strength
            Epochs of the proxy's training, and s.

        Returns
        -------
        Update
            New values of all parameters that may be trained.
        """
        epochs, scale = strength
        training: Training = context.remember("training", lambda: self._training(context))
        update = {}
        for name, corrupted in training.after(int(epochs)).items():
            weight = context.parameter(name).double()
            update[name] = context.writable(name).copy_(weight - scale * (corrupted.double() - weight))
        return update

    def _training(self, context: Context) -> Training:
        steps, wrong = Steps(context, RATE), corrupted_labels(context.samples.labels, self.case.classes, context.seed)

        def loss(logits: Tensor, indices: Sequence[int]) -> Tensor:
            return cross_entropy(logits, wrong[list(indices)].to(logits.device)).mean()

        return Training(trained(steps, lambda _: steps.epoch(context.samples, context.indices, loss)))


def corrupted_labels(labels: Tensor, classes: int, seed: int) -> Tensor:
    """Return for each label ``[n]`` one of the other classes, drawn evenly."""
    generator = torch.Generator().manual_seed(seed)
    return (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes

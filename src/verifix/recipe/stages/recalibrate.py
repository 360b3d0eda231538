"""BatchNorm's running statistics, moved towards those of verified and unlabelled inputs. It uses no labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from verifix.capture.layer import rounded_once
from verifix.model.run import run_model, to_device
from verifix.model.samples import Samples
from verifix.model.weights import Update, tensors_of
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.base import Stage

SHARES = (0.25, 0.5, 1.0)
"""How far the statistics go from the trained ones to the new ones."""

MOST_UNLABELLED = 2000
"""How many unlabelled inputs are used: statistics of more would hardly differ, and are measured once per context."""


class Recalibrate(Stage):
    """Running mean and variance over the inputs, under the weights as they are, mixed with the old ones.

    The inputs are the verified ones, and up to `MOST_UNLABELLED` of the unlabelled ones, drawn with the seed.

    Attributes
    ----------
    statistics
        Those of the inputs, by the buffers' names; empty until the first share is fitted.
    """

    name = "recalibrate"
    about = "The statistics of batch normalisation, measured again."
    numbers = ("share",)
    unlabelled = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.statistics: dict[str, Tensor] = {}

    def obstacle(self) -> str:
        """Say if there is no BatchNorm that keeps statistics."""
        return "" if _norms(self.context.run.model) else "the model has no BatchNorm with running statistics"

    def candidates(self) -> Listed:
        """Return the shares of the new statistics."""
        return Listed(SHARES)

    def fit(self, strength: float) -> Update:
        """Return (1 − s) · old + s · new for every running mean and variance.

        Parameters
        ----------
        strength
            s, from 0 to 1.

        Returns
        -------
        Update
            New buffers.
        """
        self.statistics = self.statistics or _statistics(self.context)
        update = {name: self.context.writable(name) for name in self.statistics}
        for name, value in self.statistics.items():
            mixed = torch.lerp(self.context.parameter(name).double(), value, strength)
            update[name].copy_(rounded_once(mixed, update[name].dtype))
        return update

    def layers(self, strength: float) -> Mapping[str, Mapping[str, float]]:
        """Return the share for every BatchNorm."""
        return {name: {"share": strength} for name in _norms(self.context.run.model)}

    def release(self) -> None:
        """Let go of the statistics."""
        self.statistics = {}


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorms that keep statistics, by name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    return {name: module for name, module in found.items() if module.running_mean is not None}


def _statistics(context: Context) -> dict[str, Tensor]:
    """Return mean and variance of what reaches every BatchNorm, averaged over batches of nearly equal size.

    As in training, each BatchNorm normalises by its batch meanwhile, so that later ones see what they would see.
    Batches hold at most `batch_size` samples, but never a single one, which has no variance.

    Parameters
    ----------
    context
        The samples to run, the unlabelled inputs, and the weights.

    Returns
    -------
    dict
        float64, by the buffers' names.
    """
    run = context.run
    norms = _norms(run.model)
    flags = {name: (module.training, module.momentum) for name, module in norms.items()}
    owned = {id(b) for module in norms.values() for b in (module.running_mean, module.running_var)}
    names = [name for name, buffer in tensors_of(run.model).items() if id(buffer) in owned]
    counters = {name: module.num_batches_tracked for name, module in norms.items()}
    kept = {name: counter.clone() for name, counter in counters.items() if counter is not None}
    with context.corrected({name: context.parameter(name) for name in names}) as model:
        try:
            for module in norms.values():
                module.reset_running_stats()
                module.momentum, module.training = None, True  # None: the plain average over all batches
            for samples, part in _parts(context):
                for batch in samples.batches(part, len(part)):
                    run_model(model, to_device(batch.inputs, run.device), samples.forward)
            return {name: tensors_of(model)[name].detach().double().clone() for name in names}
        finally:
            for name, module in norms.items():
                module.training, module.momentum = flags[name]
                if name in kept and module.num_batches_tracked is not None:
                    module.num_batches_tracked.copy_(kept[name])


def _parts(context: Context) -> Iterator[tuple[Samples, list[int]]]:
    """Yield the batches of the context's samples, then those of unlabelled inputs: all of nearly one size."""
    run, indices, unlabelled = context.run, context.indices, context.run.unlabelled
    parts = np.array_split(indices, max(1, min(-(-len(indices) // run.batch_size), len(indices) // 2)))
    yield from ((run.samples, part.tolist()) for part in parts)
    if unlabelled is not None and len(unlabelled) > 1:
        drawn = np.random.default_rng(run.seed).permutation(len(unlabelled))[:MOST_UNLABELLED]
        count = max(1, min(-(-len(drawn) // len(parts[0])), len(drawn) // 2))
        yield from ((unlabelled.samples, np.sort(part).tolist()) for part in np.array_split(drawn, count))

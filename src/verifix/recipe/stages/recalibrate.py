"""BatchNorm's running statistics, moved towards those of the verified inputs. It uses no labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from verifix.capture.layer import rounded_once
from verifix.model.run import run_model, to_device
from verifix.model.weights import Update, tensors_of
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.base import Stage

SHARES = (0.25, 0.5, 1.0)
"""How far the statistics go from the trained ones to those of the verified inputs."""


class Recalibrate(Stage):
    """Running mean and variance over the verified inputs, under the weights as they are, mixed with the old ones.

    Attributes
    ----------
    statistics
        Those of the verified inputs, by the buffers' names; empty until the first share is fitted.
    """

    name = "recalibrate"
    about = "The statistics of batch normalisation, measured again."
    numbers = ("share",)

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
        The samples to run, and the weights.

    Returns
    -------
    dict
        float64, by the buffers' names.
    """
    run = context.run
    norms = _norms(run.model)
    indices = context.indices
    parts = np.array_split(indices, max(1, min(-(-len(indices) // run.batch_size), len(indices) // 2)))
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
            for part in parts:
                for batch in run.samples.batches(part.tolist(), len(part)):
                    run_model(model, to_device(batch.inputs, run.device), run.samples.forward)
            return {name: tensors_of(model)[name].detach().double().clone() for name in names}
        finally:
            for name, module in norms.items():
                module.training, module.momentum = flags[name]
                if name in kept and module.num_batches_tracked is not None:
                    module.num_batches_tracked.copy_(kept[name])

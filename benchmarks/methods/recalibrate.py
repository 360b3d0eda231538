"""BatchNorm's running statistics mixed with those of the verified samples.

Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020 (arXiv
2006.16971). The new statistics are those of forward passes in train mode, in which each BatchNorm normalises by its
batch, so that later layers see what they would see.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.methods.base import Case, Rival, nearby
from verifix.capture.layer import rounded_once
from verifix.model.run import run_model, to_device
from verifix.model.weights import Update, tensors_of
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


class Recalibration(Rival):
    """(1 − m) · old + m · new for every running mean and variance; its setting is m."""

    name = "recalibration"

    def __init__(self, case: Case, context: Context) -> None:
        super().__init__(case, context)
        self.statistics: dict[str, Tensor] = {}

    def release(self) -> None:
        """Let go of the statistics."""
        self.statistics = {}

    def obstacle(self) -> str:
        """Say if there is no BatchNorm that keeps statistics."""
        return "" if _norms(self.context.run.model) else "the model has no BatchNorm with running statistics"

    def candidates(self) -> Listed:
        """Return the shares of the new statistics."""
        return Listed(tuple((share,) for share in SHARES))

    def neighbours(self, best: tuple[float]) -> list[tuple[float]]:
        """Return half and twice as much."""
        return [(near,) for near in nearby(best[0], 2, 1e-3, 1.0)]

    def fit(self, strength: tuple[float]) -> Update:
        """Return the mixed statistics.

        Parameters
        ----------
        strength
            m, from 0 to 1.

        Returns
        -------
        Update
            New buffers.
        """
        self.statistics = self.statistics or _statistics(self.context)
        update = {name: self.context.writable(name) for name in self.statistics}
        for name, value in self.statistics.items():
            mixed = torch.lerp(self.context.parameter(name).double(), value, strength[0])
            update[name].copy_(rounded_once(mixed, update[name].dtype))
        return update


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
    run, indices = context.run, context.indices
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
            for part in np.array_split(indices, max(1, min(-(-len(indices) // run.batch_size), len(indices) // 2))):
                for batch in run.samples.batches(part.tolist(), len(part)):
                    run_model(model, to_device(batch.inputs, run.device), run.samples.forward)
            return {name: tensors_of(model)[name].detach().double().clone() for name in names}
        finally:
            for name, module in norms.items():
                module.training, module.momentum = flags[name]
                if name in kept and module.num_batches_tracked is not None:
                    module.num_batches_tracked.copy_(kept[name])

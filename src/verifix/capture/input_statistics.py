"""Compare what the first BatchNorm sees with its running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# What the first BatchNorm sees

FAR_MEAN = 0.75
"""Distance of a channel's mean from the running mean, in running standard deviations, that is far off."""

FAR_SPREAD = 1.6
"""Ratio of a channel's standard deviation to the running one, in either direction, that is far off."""

ADVICE = " Check the preprocessing: mean and std, pixel range, and size."
"""What a note ends with; an error says more."""


@dataclass
class NormInputs:
    """Running sums over the inputs of the first BatchNorm that a model runs.

    Attributes
    ----------
    name
        Of the module; empty as long as none has run.
    rows
        Values per channel.
    away
        Σ (x − running mean) per channel, float64.
    squares
        Σ (x − running mean)² per channel, float64.
    norm
        The module.
    """

    name: str = ""
    rows: int = 0
    away: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))
    norm: Any = None

    def add(self, name: str, norm: Any, x: Tensor) -> None:
        """Add a batch ``[n, channels, …]`` if it is one of the first BatchNorm."""
        if self.norm is None:
            self.name, self.norm = name, norm
        if norm is not self.norm or not x.numel():
            return
        flat = x.detach().movedim(1, -1).reshape(-1, x.shape[1]).double() - norm.running_mean.double()
        self.rows += len(flat)
        self.away = self.away + flat.sum(dim=0)
        self.squares = self.squares + flat.square().sum(dim=0)

    def distances(self) -> tuple[float, float]:
        """Return how far the inputs are from those in training: the median over channels of two figures.

        Returns
        -------
        mean : float
            Distance of the means, in running standard deviations.
        spread : float
            Ratio of the standard deviations.
        """
        variance, eps = self.norm.running_var.double(), float(getattr(self.norm, "eps", 1e-5))
        mean = self.away / self.rows
        spread = (self.squares / self.rows - mean.square()).clamp(min=0)
        return (
            float((mean.abs() / (variance + eps).sqrt()).median()),
            float(((spread + eps) / (variance + eps)).sqrt().median()),
        )

    def remark(self) -> str:
        """Return what to tell the user; empty if the inputs look like those in training, or nothing was seen."""
        if self.rows < 2:
            return ""
        mean, spread = self.distances()
        if mean <= FAR_MEAN and 1 / FAR_SPREAD <= spread <= FAR_SPREAD:
            return ""
        return (
            f"The inputs differ from those that the model was trained on: before its first BatchNorm ({self.name}), "
            f"their spread is {spread:.2g} times the running spread, and their mean is {mean:.2g} running standard "
            f"deviations off (median over channels).{ADVICE}"
        )


@contextmanager
def watching_first_norm(model: nn.Module) -> Iterator[NormInputs]:
    """Watch the inputs of the first BatchNorm with running statistics that a model runs.

    Parameters
    ----------
    model
        The model, in eval mode.

    Yields
    ------
    NormInputs
        Sums over all batches that run in the context; empty for a model without BatchNorm.
    """
    seen = NormInputs()

    def hook(name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim > 1:
                seen.add(name, module, inputs[0])

        return look

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if _is_batch_norm(module):
                stack.callback(module.register_forward_pre_hook(hook(name or type(module).__name__)).remove)
        yield seen


def _is_batch_norm(module: nn.Module) -> bool:
    """Tell BatchNorm with running statistics, also torchvision's frozen one, and not instance norm."""
    running = isinstance(getattr(module, "running_mean", None), Tensor)
    return running and ("BatchNorm" in type(module).__name__ or isinstance(module, nn.modules.batchnorm._BatchNorm))

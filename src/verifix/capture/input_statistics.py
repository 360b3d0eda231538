"""Compare what the first BatchNorm sees with its running statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from verifix.model import ranks

# What the first BatchNorm sees

FAR_MEAN = 0.75
"""Distance of a channel's mean from the running mean, in running standard deviations, that is far off."""

FAR_SPREAD = 1.6
"""Ratio of a channel's standard deviation to the running one, in either direction, that is far off."""

TOTALS = ("away", "squares")

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
        if norm is not self.norm or not x.numel() or not ranks.counts():
            return
        flat = x.detach().movedim(1, -1).reshape(-1, x.shape[1]).double() - norm.running_mean.double()
        self.rows += len(flat)
        self.away = self.away + flat.sum(dim=0)
        self.squares = self.squares + flat.square().sum(dim=0)

    def sums(self) -> dict[str, Any]:
        """Return name and sums as numbers and arrays, for `put_together`."""
        return {
            "norm": np.array(self.name),
            "rows": np.array(self.rows),
            "away": self.away.cpu().numpy(),
            "squares": self.squares.cpu().numpy(),
        }

    def gathered(self, model: nn.Module) -> NormInputs:
        """Return what all processes have seen in their shares of the samples."""
        return self if ranks.size() == 1 else put_together(model, ranks.exchange(self.sums()))

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


def put_together(model: nn.Module, parts: Sequence[Mapping[str, Any]]) -> NormInputs:
    """Return the sums over all samples from those over parts of them; see `NormInputs.sums`.

    Parameters
    ----------
    model
        The model that all parts have run through.
    parts
        The sums of each, and maybe something else.

    Returns
    -------
    NormInputs
        The sums.
    """
    there = [part for part in parts if int(part["rows"])]
    if not there:
        return NormInputs()
    name = str(there[0]["norm"])
    norm = dict(model.named_modules()).get(name, model)  # a model that is one itself has no name
    away, squares = (torch.from_numpy(sum(part[key] for part in there)).to(norm.running_mean.device) for key in TOTALS)
    return NormInputs(name, sum(int(part["rows"]) for part in there), away, squares, norm)


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

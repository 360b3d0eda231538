"""What a correction was made from, as plain data."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from verifix.collect import model_digest
from verifix.options import CorrectOptions
from verifix.samples import Samples


def describe(model: nn.Module, samples: Samples, options: CorrectOptions, *, earlier: bool) -> dict[str, Any]:
    """Return versions, digests and settings.

    Parameters
    ----------
    model
        The model with its original weights, before it has run.
    samples
        The verified samples.
    options
        The settings.
    earlier
        Whether moments of earlier samples are added.

    Returns
    -------
    dict
        Plain data; the same for the same inputs, so it holds no time and no host.
    """
    settings = {k: v for k, v in asdict(options).items() if k not in ("progress", "moments")}
    picked = {"picked_by": samples.source.picked_by} if samples.source.picked_by else {}
    return {
        "verifix": version("verifix"),
        "torch": torch.__version__,
        "model_sha256": model_digest(model),
        "samples": len(samples),
        "samples_sha256": samples.digest(),
        "earlier_moments": earlier,
        **settings,
        **picked,
    }

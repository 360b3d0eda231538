"""How much a model multiplies, from which the number of threads is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from verifix.model.borrow import borrowed
from verifix.model.run import run_model, to_device
from verifix.model.samples import Samples
from verifix.model.sources import DEFAULT_BATCH_SIZE

aten = torch.ops.aten
LEFT = {aten.mm: 0, aten.addmm: 1, aten.bmm: 0, aten.baddbmm: 1}
"""Products of matrices: which argument is the left factor."""


def work_of(model: nn.Module, samples: Samples, device: torch.device) -> float:
    """Return the multiply-adds of an average multiplication while a model runs forward on one batch.

    Parameters
    ----------
    model
        The model, on `device`; borrowed and left as it was.
    samples
        Samples, the first one or two of which are run.
    device
        Where the model is.

    Returns
    -------
    float
        Multiply-adds of all products of matrices and convolutions, divided by how many there are; 0 without any.
    """
    size = min(samples.batch_size or DEFAULT_BATCH_SIZE, len(samples))
    few = range(min(2, size))
    sizes = multiplications(model, samples, few, device)
    return sum(sizes) / max(len(sizes), 1) * size / len(few)


def multiplications(model: nn.Module, samples: Samples, indices: Sequence[int], device: torch.device) -> list[int]:
    """Return the multiply-adds of every multiplication while a model runs forward on one batch; see `Multiplications`.

    Parameters
    ----------
    model, device
        As in `work_of`.
    samples, indices
        What the batch is made of.

    Returns
    -------
    list of int
        In the order of the operations.
    """
    seen = Multiplications()
    with borrowed(model):  # reading samples may draw random numbers, too
        (batch,) = samples.batches(indices, len(indices))
        with seen:
            run_model(model, to_device(batch.inputs, device), samples.forward)
    return seen.sizes


class Multiplications(TorchDispatchMode):
    """Notes the multiply-adds of every product of matrices and every convolution that runs meanwhile.

    Attributes
    ----------
    sizes
        One number per operation, in their order. Recurrent layers and attention that torch runs as one operation of
        their own are not among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and note its size."""
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.layout is torch.strided and not out.is_nested:
            kind = func.overloadpacket
            if kind in LEFT:
                self.sizes.append(out.numel() * args[LEFT[kind]].shape[-1])
            elif kind is aten.convolution:
                x, weight, transposed = args[0], args[1], args[6]
                self.sizes.append((x if transposed else out).numel() * prod(weight.shape[1:]))
        return out

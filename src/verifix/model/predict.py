"""Run a model on samples and return logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from verifix.errors import DataError
from verifix.model.nonfinite import check_finite, first_broken, first_tensor
from verifix.model.run import Forward, run_model, to_device
from verifix.model.samples import Samples
from verifix.model.sources import Batch

LOOKED_AT = 2
"""Up to how many samples a tuple is looked at: before anything else a few are run, and larger batches are as these."""


class SeveralOutputsError(DataError):
    """A model returns several tensors with a row per sample, and the logits may be any of them."""


def predict(
    model: nn.Module, samples: Samples, indices: Sequence[int], batch_size: int, device: torch.device
) -> Tensor:
    """Return logits ``[n, outputs]``, float64 on the CPU, of the samples at `indices`, in that order."""
    answers: list[Tensor] = []
    for batch in samples.batches(indices, batch_size):
        output = run_model(model, to_device(batch.inputs, device), samples.forward)
        answers.append(logits_in(output, len(batch.labels)).detach().clone())
    logits = torch.cat(answers).cpu().double()  # all in one go: a GPU would have to wait for each batch
    check_finite(logits, indices, partial(_place, model, samples, indices, batch_size, device, logits))
    return logits


def _place(
    model: nn.Module,
    samples: Samples,
    indices: Sequence[int],
    batch_size: int,
    device: torch.device,
    logits: Tensor,
) -> str:
    """Run the batch of the first logits that are not finite again, and name the module where that begins."""
    row = int(torch.isfinite(logits).all(dim=1).logical_not().nonzero()[0])
    start = row // batch_size * batch_size
    batch = next(samples.batches(indices[start : start + batch_size], batch_size))
    return first_broken(model, to_device(batch.inputs, device), samples.forward)


def logits_of(model: nn.Module, inputs: object, batch: Batch, forward: Forward | None = None) -> Tensor:
    """Run a model on a batch's inputs, on its device; see `as_logits`. Names sample and module of a NaN or Inf."""
    logits = logits_in(run_model(model, inputs, forward), len(batch.labels)).detach().double().cpu()
    check_finite(logits, batch.indices, partial(first_broken, model, inputs, forward))
    return logits


def as_logits(output: object, count: int) -> Tensor:
    """Check a model's output and return it as logits.

    Parameters
    ----------
    output
        What the model returned for `count` samples: ``[count, classes]``, or ``[count]`` for one logit each; or a
        mapping with ``logits`` in it; or a tuple that begins with one of these (`verifix.model.several_outputs`).
    count
        Number of samples.

    Returns
    -------
    Tensor
        ``[count, outputs]``, float64 on the CPU.

    Raises
    ------
    DataError
        If it is no such tensor, or not finite.
    """
    logits = logits_in(output, count).detach().double().cpu()
    check_finite(logits)
    return logits


def logits_in(output: Any, count: int) -> Tensor:
    """Return a model's output as logits that gradients flow through, in its own dtype; see `as_logits`."""
    if count <= LOOKED_AT and _are_several(output, count):
        raise SeveralOutputsError(
            f"the model returns tensors of the shapes {' and '.join(shapes_in(output))}; pick the logits with forward="
        )
    given, logits = type(output).__name__, first_tensor(output)
    if not isinstance(logits, Tensor):
        raise DataError(
            f"the model returned a {given}; it must return one tensor of logits [n, classes], a mapping with 'logits' "
            "or a tuple that begins with them; forward= can pick them out"
        )
    shape = list(logits.shape)
    if count == 1 and logits.ndim < 2:  # a model that squeezes its output drops the axis of a single sample, too
        logits = logits.reshape(1, -1)
    elif logits.ndim == 1:
        logits = logits[:, None]
    if logits.ndim != 2 or len(logits) != count or logits.shape[1] == 0:
        raise DataError(f"the model returned {shape} for {count} samples; it must return logits [{count}, classes]")
    return logits


def _are_several(output: Any, count: int) -> bool:
    """Tell whether the logits may be another entry of a tuple than the first."""
    if not isinstance(output, (tuple, list)) or hasattr(output, "logits"):
        return False
    rows = rows_in(output, count)
    return len(rows) > 1 or (bool(rows) and min(rows) > 0)


def rows_in(output: Sequence[Any], count: int) -> dict[int, Tensor]:
    """Return the entries of a tuple that may be logits, by their place: numbers with a row per sample."""
    return {
        place: x
        for place, x in enumerate(output)
        if isinstance(x, Tensor) and x.is_floating_point() and x.ndim in (1, 2) and len(x) == count and x.numel()
    }


def shapes_in(output: Sequence[Any]) -> list[str]:
    """Return the shapes of the tensors in a tuple, for messages."""
    return [str(list(x.shape)) for x in output if isinstance(x, Tensor)]

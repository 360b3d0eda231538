"""Which of several tensors that a model returns holds the logits: found out where that is certain, else refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from verifix.errors import DataError
from verifix.model.borrow import borrowed
from verifix.model.gradients import differentiable
from verifix.model.graph import LINEAR, operation_of
from verifix.model.predict import SeveralOutputsError, predict, rows_in, shapes_in
from verifix.model.run import run_model, to_device
from verifix.model.samples import Samples

TRIED = 3
"""Samples that are run to find it out; more than what a model would return otherwise, such as a pair of weights."""


def picking(
    model: nn.Module, samples: Samples, device: torch.device, classes: int | None = None
) -> tuple[Samples, str]:
    """Find out which of the tensors that a model returns holds the logits.

    Parameters
    ----------
    model
        The model, on `device`. It returns a tuple of several tensors with a row per sample.
    samples
        The samples.
    device
        Where the model is.
    classes
        How many classes there are; by default, as many as the labels say.

    Returns
    -------
    samples : Samples
        The same, with a `forward` that returns that tensor alone.
    remark : str
        Which one it is, for the user; empty for the first if all others are made on the way to it.

    Raises
    ------
    DataError
        If it is not certain.
    """
    own = samples.forward
    output = _with_gradients(model, samples, device)
    place = _place(output, int(samples.labels.max()) + 1 if classes is None else classes)
    if place is None:
        shapes = " and ".join(shapes_in(output))
        raise DataError(
            f"the model returns tensors of the shapes {shapes}, and which of them holds the logits is not clear; pick "
            "it with forward=, such as forward=lambda model, x: model(x)[1] (on the command line, let the factory of "
            "py: return a module that does)"
        )

    def forward(model: nn.Module, inputs: Any) -> Any:
        return run_model(model, inputs, own)[place]

    rows = rows_in(output, TRIED)
    others = [x for k, x in rows.items() if k != place]
    silent = place == min(rows) and all(_feeds(x, rows[place]) or _same(x, rows[place]) for x in others)
    remark = "" if silent else (
        f"The model returns {len(output)} values; number {place + 1} of them is read as its outputs "
        f"[n, {_columns(rows[place])}]. forward= picks another."
    )  # fmt: skip
    return replace(samples, forward=forward), remark


def outputs_of(model: nn.Module, samples: Samples, device: torch.device, classes: int) -> int:
    """Return how many logits a model has per sample, whichever of its tensors holds those of so many classes."""
    with borrowed(model):
        try:
            return predict(model, samples, [0], 1, device).shape[1]
        except SeveralOutputsError:
            samples, _ = picking(model, samples, device, classes)
            return predict(model, samples, [0], 1, device).shape[1]


def _with_gradients(model: nn.Module, samples: Samples, device: torch.device) -> Any:
    """Run a few samples such that autograd records what was made of what, where it can."""
    few = [0] * TRIED if len(samples) < TRIED else range(TRIED)
    (batch,) = samples.batches(few, TRIED)
    parameters = dict(model.named_parameters())
    wanted = {name: p for name, p in parameters.items() if p.is_floating_point() and not p.is_inference()}
    with borrowed(model):
        try:
            with differentiable(parameters, wanted):
                return run_model(model, to_device(batch.inputs, device), samples.forward)
        except (DataError, RuntimeError):  # a model that runs only without gradients
            return run_model(model, to_device(batch.inputs, device), samples.forward)


def _place(output: Sequence[Any], classes: int) -> int | None:
    """Return the place of the logits; None if it is not certain."""
    rows = rows_in(output, TRIED)
    first = min(rows)
    if any(isinstance(x, Tensor) and x.ndim > 0 for x in output[:first]):
        return None
    last = [k for k in rows if not any(_feeds(rows[k], rows[other]) for other in rows if other != k)]
    # What is made of the logits without weights, such as probabilities, says the same as they do.
    last = [k for k in last if not any(other < k and _same(rows[other], rows[k]) for other in last)]
    fitting = [k for k in last if _classes(rows[k]) == classes]
    if first in last:
        return first if len(last) == 1 or fitting == [first] else None
    sure = len(last) == 1 and _feeds(rows[first], rows[last[0]])
    return last[0] if sure and (fitting or _classes(rows[first]) < classes <= _classes(rows[last[0]])) else None


def _columns(rows: Tensor) -> int:
    return rows.shape[1] if rows.ndim == 2 else 1


def _classes(rows: Tensor) -> int:
    """Return how many classes an output of this shape tells apart."""
    return max(_columns(rows), 2)


def _feeds(first: Tensor, second: Tensor) -> bool:
    """Tell whether one tensor is multiplied with weights on the way to the other."""
    return True in _ways(first, second)


def _same(first: Tensor, second: Tensor) -> bool:
    """Tell whether one tensor is made of the other without weights, whichever."""
    return _columns(first) == _columns(second) and {False} in (_ways(first, second), _ways(second, first))


def _ways(first: Tensor, second: Tensor) -> set[bool]:
    """Return, for the ways from one tensor to another in autograd's record, whether they multiply with weights."""
    found: set[bool] = set()
    pending = [(second.grad_fn, False)]
    seen: set[tuple[Any, bool]] = set()
    while pending:
        node, weighted = pending.pop()
        if node is None or (node, weighted) in seen:
            continue
        seen.add((node, weighted))
        if node is first.grad_fn:
            found.add(weighted)
            continue
        weighted = weighted or operation_of(node) in LINEAR
        pending += [(each, weighted) for each, _ in node.next_functions]
    return found

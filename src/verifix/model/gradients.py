"""Gradients of the verified loss with respect to a borrowed model's own parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from verifix.errors import DataError
from verifix.losses import best_sharpness, cross_entropy
from verifix.model.predict import logits_in
from verifix.model.run import Forward, run_model, to_device
from verifix.model.samples import Samples

_THROUGH_INPUTS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Models some of whose parameters had no gradient, and whether they have one where inputs ask for gradients, too.

That is so of reentrant checkpointing, which otherwise passes none on, without a word. It is tried once per model.
"""


_REACHED: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
"""Parameters that gradients were asked for, by model, and whether they ever had one."""


def unreached(model: nn.Module) -> list[str]:
    """Return the parameters of a model that gradients were asked for and never had one, in the model's order."""
    reached = _REACHED.get(model, {})
    return [name for name, _ in model.named_parameters() if not reached.get(name, True)]


def gradients(
    model: nn.Module,
    samples: Samples,
    indices: Sequence[int],
    names: Sequence[str],
    *,
    batch_size: int,
    device: torch.device,
    tempered: bool = False,
) -> Mapping[str, Tensor]:
    """Return the gradient of the mean cross-entropy over some samples.

    Parameters
    ----------
    model
        The model, borrowed (see `verifix.model.borrow.borrowed`), on `device`.
    samples
        The verified samples.
    indices
        Those whose loss counts.
    names
        Parameters to differentiate by.
    batch_size
        Samples per batch; the gradients of the batches are added up.
    device
        Where the model is.
    tempered
        Whether each batch's logits are taken at their best temperature. At its optimum the temperature itself adds
        nothing to the gradient.

    Returns
    -------
    Mapping
        Gradients by parameter name, zero for those that the loss does not depend on.

    Raises
    ------
    DataError
        If the model does not pass gradients on, or they are not finite.
    """
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[name] for name in names}
    total: dict[str, Tensor] = {}

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        sharpness = best_sharpness(logits.detach().double().cpu(), labels.cpu()) if tempered else 1.0
        return cross_entropy(precise(logits) * sharpness, labels).sum() / len(indices)

    with differentiable(parameters, wanted):
        for batch in samples.batches(indices, batch_size):
            own = partial(loss, labels=batch.labels.to(device))
            slopes = slopes_of(model, batch.inputs, len(batch.labels), wanted, own, device, samples.forward)
            for name, slope in slopes.items():  # not in place: two parameters may have been given one tensor
                total[name] = total[name] + slope if name in total else slope
    total = {name: total[name] if name in total else torch.zeros_like(p) for name, p in wanted.items()}
    broken = next((name for name, gradient in total.items() if not _finite(gradient)), None)
    if broken is not None:
        raise DataError(f"the gradient of {broken!r} contains NaN or Inf; correct the model in float32")
    return total


def slopes_of(
    model: nn.Module,
    inputs: Any,
    count: int,
    wanted: Mapping[str, Tensor],
    loss: Callable[[Tensor], Tensor],
    device: torch.device,
    forward: Forward | None = None,
) -> dict[str, Tensor]:
    """Return the gradient of a loss of one batch's logits; inside `differentiable`.

    Parameters
    ----------
    model
        The model, borrowed.
    inputs
        A batch, which is copied to the device.
    count
        Samples in it.
    wanted
        Parameters to differentiate by.
    loss
        Logits ``[count, outputs]`` → a scalar.
    device
        Where the model is.
    forward
        How the batch enters the model; None for calling it.

    Returns
    -------
    dict
        By name, for those that the loss depends on.

    Raises
    ------
    DataError
        If the model passes no gradients on.
    """

    def found(through_inputs: bool) -> dict[str, Tensor]:
        own = to_device(inputs, device)
        logits = logits_in(run_model(model, _asking_for_gradients(own) if through_inputs else own, forward), count)
        if not logits.requires_grad:
            return {}
        return _by_backward(loss(logits), wanted) if through_inputs else _by_grad(loss(logits), wanted)

    slopes = found(_THROUGH_INPUTS.get(model, False))
    if len(slopes) < len(wanted) and model not in _THROUGH_INPUTS:
        again = found(True)
        _THROUGH_INPUTS[model] = len(again) > len(slopes)
        slopes = max(slopes, again, key=len)
    if not slopes:
        raise DataError(
            "no gradients flow through the model (is there a no_grad in its forward?); use --recipe verifix, which "
            "needs none"
        )
    reached = _REACHED.setdefault(model, {})
    reached.update({name: name in slopes or reached.get(name, False) for name in wanted})
    return slopes


def _by_grad(loss: Tensor, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of the parameters that a loss depends on, also of those that are no leaves."""
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return {name: slope for name, slope in zip(wanted, found, strict=True) if slope is not None}


def _by_backward(loss: Tensor, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same where `torch.autograd.grad` is refused, as it is by reentrant checkpointing."""
    try:
        loss.backward()
        return {name: parameter.grad for name, parameter in wanted.items() if parameter.grad is not None}
    finally:
        for parameter in wanted.values():
            parameter.grad = None


def _asking_for_gradients(inputs: Any) -> Any:
    """Return inputs of which those with fractions require gradients; not as leaves, which a model may not write to."""
    return tree_map(
        lambda x: x.requires_grad_().clone() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )


def _finite(x: Tensor) -> bool:
    """Whether all numbers are finite; their sum says so in a tenth of the time, unless it overflows."""
    return bool(torch.isfinite(x.sum()) or torch.isfinite(x).all())


def precise(logits: Tensor) -> Tensor:
    """Return logits in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def differentiable(parameters: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[None]:
    """Let gradients reach the wanted parameters alone; give every parameter its flag back.

    Parameters
    ----------
    parameters
        All parameters of a model, by name.
    wanted
        Those to differentiate by.

    Yields
    ------
    None
    """
    # Those of a scripted part are no leaves, once copied: their flags cannot be set, and gradients reach them anyway.
    flags = {name: parameter.requires_grad for name, parameter in parameters.items() if parameter.is_leaf}
    try:
        for name in flags:
            parameters[name].requires_grad_(name in wanted)
        # cuDNN's recurrent layers refuse a backward pass in eval mode; torch's own do not.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        for name, flag in flags.items():
            parameters[name].requires_grad_(flag)

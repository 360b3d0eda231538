"""Run a model on samples and score what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verifix.borrow import Forward, run_model, to_device
from verifix.errors import DataError, UsageError, VerifixError
from verifix.finite import check_finite, first_broken, first_tensor
from verifix.samples import Batch, Samples

Score = Callable[[Tensor, Tensor], Tensor]
"""``(logits [n, k], labels [n]) → [n]`` or a scalar; for a loss, one number per sample."""

Update = Mapping[str, Tensor]
"""New values of parameters and buffers, by qualified name."""


def device_named(name: str) -> torch.device:
    """Return a device that is there.

    Parameters
    ----------
    name
        Such as "cpu" or "cuda:0".

    Returns
    -------
    torch.device
        The device.

    Raises
    ------
    UsageError
        If torch does not know it, or it is not there.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        line = str(error).strip().splitlines()[0]
        raise UsageError(f"device {name!r} is not available ({line}); use 'cpu', 'cuda' or 'auto'") from None
    return device


def predict(
    model: nn.Module, samples: Samples, indices: Sequence[int], batch_size: int, device: torch.device
) -> Tensor:
    """Return logits ``[n, outputs]``, float64 on the CPU, of the samples at `indices`, in that order."""
    parts = [
        logits_of(model, to_device(batch.inputs, device), batch, samples.forward)
        for batch in samples.batches(indices, batch_size)
    ]
    return torch.cat(parts)


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
        mapping with ``logits`` in it; or a tuple that begins with one of these.
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


def logits_in(output: object, count: int) -> Tensor:
    """Return a model's output as logits that gradients flow through, in its own dtype; see `as_logits`."""
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


def probabilities(logits: Tensor) -> Tensor:
    """Return each sample's probability of every class, ``[n, classes]``; two classes for one logit."""
    return F.softmax(F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits, dim=1)


def correct_or_not(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where the predicted class is the label, else 0: float64 ``[n]``. One logit predicts class 1 above 0."""
    predicted = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
    return (predicted == labels).double()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each sample's cross-entropy in nats, ``[n]``; binary cross-entropy for one logit."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")
    return F.cross_entropy(logits, labels, reduction="none")


def tempered_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each sample's cross-entropy after the temperature that suits these logits best.

    A projection also shrinks the logits. Plain cross-entropy rewards that on its own, even against labels that mean
    nothing, so strengths are compared with the confidence of each candidate set to its best value first. Logits
    without information get temperature infinity, and all of them the same loss.

    Parameters
    ----------
    logits
        ``[n, outputs]``.
    labels
        ``[n]``.

    Returns
    -------
    Tensor
        Nats, ``[n]``.
    """
    return cross_entropy(logits * best_sharpness(logits, labels), labels)


def best_sharpness(logits: Tensor, labels: Tensor) -> float:
    """Return the factor (one over the temperature) at which the mean cross-entropy of logits is smallest.

    Parameters
    ----------
    logits
        ``[n, outputs]``.
    labels
        ``[n]``.

    Returns
    -------
    float
        0 or more; 0 if the logits hold no information.
    """
    from scipy.optimize import minimize_scalar

    span = float((logits.amax(dim=1) - logits.amin(dim=1)).mean()) if logits.shape[1] > 1 else 0.0
    unit = span or float(logits.abs().mean()) or 1.0

    def mean_loss(sharpness: float) -> float:
        return float(cross_entropy(logits * (sharpness / unit), labels).mean())

    best = minimize_scalar(mean_loss, bounds=(0.0, 100.0), method="bounded", options={"xatol": 1e-6})
    # The search never tries its bounds; at 0 all logits are equal, which must tie exactly for a fair comparison.
    return float(best.x) / unit if best.fun < mean_loss(0.0) - 1e-9 else 0.0


def apply_score(function: Score, logits: Tensor, labels: Tensor, what: str, per_sample: bool) -> Tensor:
    """Call a user's score or loss and check what it returns.

    Parameters
    ----------
    function
        The callable.
    logits, labels
        ``[n, outputs]`` and ``[n]``.
    what
        "score" or "loss", for the message.
    per_sample
        Whether one number per sample is needed.

    Returns
    -------
    Tensor
        float64 ``[n]``, or a scalar where that is allowed.

    Raises
    ------
    VerifixError
        If the shape is another, or a value is not finite.
    """
    result = function(logits, labels)
    try:
        value = torch.as_tensor(result).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise VerifixError(f"{what}= returned a {type(result).__name__}; it must return a tensor of numbers") from None
    allowed = [labels.shape] if per_sample else [labels.shape, torch.Size([])]
    if value.shape not in allowed or not torch.isfinite(value).all():
        raise VerifixError(
            f"{what}= returned {'non-finite values' if value.shape in allowed else f'shape {list(value.shape)}'}; "
            f"it must return finite numbers of shape [{len(labels)}]{'' if per_sample else ' or a scalar'}"
        )
    return value


def tensors_of(model: nn.Module, *, every_name: bool = False) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by qualified name: shared ones once, or under every name."""
    return {
        **dict(model.named_parameters(remove_duplicate=not every_name)),
        **dict(model.named_buffers(remove_duplicate=not every_name)),
    }


@contextmanager
def weights_replaced(model: nn.Module, update: Update) -> Iterator[None]:
    """Run a model with other weights for as long as the context lasts; the old ones come back in any case.

    Values are copied into the tensors' own memory, so that ties, views and fused copies of them follow.

    Parameters
    ----------
    model
        The model.
    update
        New values of some of its parameters and buffers.

    Yields
    ------
    None
    """
    tensors = tensors_of(model)
    before = {name: tensors[name].detach().clone() for name in update}
    try:
        for name, value in update.items():
            tensors[name].data.copy_(value)
        yield
    finally:
        for name, value in before.items():
            tensors[name].data.copy_(value)

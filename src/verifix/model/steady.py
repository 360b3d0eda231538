"""Whether a model gives each sample one answer: on every run, whatever came before or beside it, and as a copy.

Everything that verifix measures compares answers of the same samples before and after a correction, from batches of
other samples and from a copy of the model. A model whose answers depend on any of these would show a gain where nothing
was changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from verifix.errors import DataError, UsageError, first_of
from verifix.model.borrow import borrowed
from verifix.model.kept_state import state_kept
from verifix.model.predict import logits_of
from verifix.model.run import to_device
from verifix.model.samples import Samples
from verifix.model.sources import Batch
from verifix.model.tensors import device_of, tensors_in

TRIED = 2
"""Samples on which a model is tried."""

TOLERANCE = 1e-3
"""How far answers may lie apart, relative to their size: kernels for batches of other sizes round otherwise."""

HALF_TOLERANCE = 5e-2
"""The same for models in half precision."""


REMEDY = "normalise by running statistics in eval mode (BatchNorm with track_running_stats=True), or by LayerNorm"

PADDED = (
    "The outputs of a sample depend on how far its batch is padded. Pass a mask that the model respects, or pad all "
    "samples to one length."
)

DRAWS = (
    "Two runs of the model on the same samples give different outputs, although it is in eval mode. Turn off whatever "
    "draws at random in it (dropout that ignores the mode, sampling, noise): scores and gains hold for one draw only."
)

STATE = (
    "the outputs of a sample depend on the samples that the model was run on before, because it keeps {what} from call "
    "to call; no score means anything then. Reset that at the start of forward, or with forward="
)

CLOSURE = (
    ": the copy still uses the original, through a hook or a function that was made in its __init__; let these take "
    "the module as an argument instead of closing over self"
)


def check_steady(model: nn.Module, work: nn.Module, where: torch.device, samples: Samples) -> list[str]:
    """Run a few samples twice, alone, and through the original, and compare the answers.

    Parameters
    ----------
    model
        The user's model; it is left as it was.
    work
        A copy of it, borrowed.
    where
        The device of the copy.
    samples
        The samples.

    Returns
    -------
    list of str
        What the user should know: that answers depend on the run, the batch or its padding, and what to do.

    Raises
    ------
    UsageError
        If a copy answers otherwise than the original, or the model keeps state from call to call that its answers
        depend on.
    DataError
        If the model cannot run on the samples, or not on one alone.
    """
    count = min(TRIED, samples.batch_size or TRIED, len(samples))
    batch = next(samples.batches(range(count), count))
    with state_kept(model):
        with state_kept(work) as changed:
            first = _answers_of_copy(model, work, where, batch, samples)
        if _differ(first, _after_others(work, batch, where, samples), work):
            with state_kept(work):
                again = _answers(work, batch, where, samples)
            if _differ(first, again, work):
                return [DRAWS]
            raise UsageError(STATE.format(what=_named(changed)))
        own = _answers_of_original(model, batch, samples)
    if _differ(first, own, work):
        raise UsageError(f"a copy of the model gives other outputs than the model itself{CLOSURE}")
    return _remarks_on_batches(first, batch, work, where, samples)


def _answers(model: nn.Module, batch: Batch, device: torch.device, samples: Samples) -> Tensor:
    return logits_of(model, to_device(batch.inputs, device), batch, samples.forward)


def _after_others(work: nn.Module, batch: Batch, where: torch.device, samples: Samples) -> Tensor:
    """Run a copy on other samples, as many, and then on a batch; return the answers to that."""
    count = len(batch.labels)
    others = list(range(len(samples)))[-count:]
    others = others[::-1] if others == list(batch.indices) else others
    with state_kept(work):
        _answers(work, next(samples.batches(others, count)), where, samples)
        return _answers(work, batch, where, samples)


def _named(attributes: Sequence[str]) -> str:
    """Name a few attributes."""
    return first_of(map(repr, attributes)) or "something"


def _answers_of_original(model: nn.Module, batch: Batch, samples: Samples) -> Tensor:
    """Run the user's model, and give it the weights back that its own forward may write to."""
    own = [parameter for parameter in model.parameters() if parameter.layout is torch.strided]
    before = [parameter.detach().clone() for parameter in own]
    try:
        with borrowed(model):
            return _answers(model, batch, device_of(model), samples)
    finally:
        for parameter, value in zip(own, before, strict=True):
            if not torch.equal(parameter, value):
                parameter.data.copy_(value)


def _answers_of_copy(model: nn.Module, work: nn.Module, where: torch.device, batch: Batch, samples: Samples) -> Tensor:
    """Run the copy; if it fails where the original runs, say that the copy is at fault."""
    try:
        return _answers(work, batch, where, samples)
    except DataError as error:
        try:
            _answers_of_original(model, batch, samples)
        except DataError:
            raise error from None
        raise UsageError(
            f"a copy of the model does not run, although the model itself does ({error}){CLOSURE}"
        ) from None


def _remarks_on_batches(
    together: Tensor, batch: Batch, work: nn.Module, where: torch.device, samples: Samples
) -> list[str]:
    """Compare the answers of a batch with those of its samples alone."""
    if len(batch.labels) < 2:
        return []
    rows, same_shape = [], True
    for index in batch.indices:
        alone = samples.alone(index)
        same_shape = same_shape and _sizes(alone.inputs) == _sizes(batch.inputs)
        try:
            rows.append(_answers(work, alone, where, samples))
        except DataError:
            raise DataError(
                f"the model runs on {len(batch.labels)} samples together, but not on one alone, so that its outputs "
                f"depend on the batch; {REMEDY}"
            ) from None
    if not _differ(together, torch.cat(rows), work):
        return []
    return [f"The outputs of a sample depend on the other samples of its batch: {REMEDY}."] if same_shape else [PADDED]


def _differ(a: Tensor, b: Tensor, model: nn.Module) -> bool:
    """Tell whether logits differ by more than rounding."""
    half = any(parameter.dtype.itemsize < 4 and parameter.is_floating_point() for parameter in model.parameters())
    size = float(a.abs().max()) if a.numel() else 0.0
    return a.shape != b.shape or float((a - b).abs().max()) > (HALF_TOLERANCE if half else TOLERANCE) * max(size, 1e-6)


def _sizes(inputs: Any) -> list[list[Any]]:
    """Return the shapes of all tensors but for the axis of the samples."""
    return [["nested"] if x.is_nested else list(x.shape[1:]) for x in tensors_in(inputs)]

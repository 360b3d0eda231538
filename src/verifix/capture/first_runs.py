"""The first runs of a model's copy, on a few samples: which checks all that comes later relies on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from verifix.capture.interceptor import intercepting
from verifix.capture.layer import Layer
from verifix.errors import DataError, UsageError
from verifix.model.borrow import borrowed
from verifix.model.conversion import converting
from verifix.model.kept_state import state_kept
from verifix.model.predict import SeveralOutputsError, logits_of
from verifix.model.run import InputTypeError, to_device
from verifix.model.samples import Samples, check_labels
from verifix.model.several_outputs import picking
from verifix.model.steady import check_steady

ADAPTATIONS = 2
"""How often samples or answers may need another form: inputs in the weights' dtype, and one of several outputs."""


def check_runs(
    model: nn.Module, work: nn.Module, where: torch.device, samples: Samples
) -> tuple[Samples, int, list[str]]:
    """Run the copy on a few samples.

    Parameters
    ----------
    model, work, where
        The model, its working copy, and the device of that.
    samples
        The samples.

    Returns
    -------
    samples : Samples
        The same, with a `forward` that converts inputs and picks the logits where that is needed.
    outputs : int
        Logits per sample.
    remarks : list of str
        What is to be known of the answers.
    """
    said: list[str] = []
    for _ in range(ADAPTATIONS):
        try:
            outputs, remarks = _check_answers(model, work, where, samples)
        except SeveralOutputsError:
            with state_kept(work):
                samples, remark = picking(work, samples, where)
        except InputTypeError as error:
            samples, remark = converting(work, samples, error)
        else:
            return samples, outputs, [*filter(None, said), *remarks]
        said.append(remark)
    outputs, remarks = _check_answers(model, work, where, samples)
    return samples, outputs, [*filter(None, said), *remarks]


def _check_answers(model: nn.Module, work: nn.Module, where: torch.device, samples: Samples) -> tuple[int, list[str]]:
    """Return the number of a model's outputs, and what is to be known of its answers."""
    with state_kept(model), state_kept(work):
        try:
            outputs = check_outputs(model, work, where, samples)
        except DataError:
            check_steady(model, work, where, samples)  # which says so if the copy alone is at fault
            raise
    return outputs, check_steady(model, work, where, samples)


def check_outputs(model: nn.Module, work: nn.Module, where: torch.device, samples: Samples) -> int:
    """Run the copy on a small batch, which must leave the original alone; return the number of its outputs."""
    count = min(2, samples.batch_size or 2)
    batch = next(samples.batches(range(count), count))

    def ignore(layer: Layer, rows: Tensor) -> None:
        """Rows are not needed."""

    with borrowed(model), intercepting(model, ignore, masked=False) as original:
        logits = logits_of(work, to_device(batch.inputs, where), batch, samples.forward)
    used = [layer.parameter for layer in original.layers] + list(original.used_by)
    if used:
        raise UsageError(
            f"a copy of the model still uses {used[0]!r} of the original, because a forward was replaced by a closure; "
            "define forward in the module's class instead"
        )
    check_labels(samples.labels, logits.shape[1], samples.where)
    return logits.shape[1]

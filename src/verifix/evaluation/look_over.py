"""Whether the uncorrected model knows the samples as they are given: their order, preprocessing and colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from verifix.evaluation.channel_order import remark_on_colours
from verifix.evaluation.duplicates import check_contradictions
from verifix.evaluation.input_check import judged
from verifix.evaluation.label_order import check_mapping
from verifix.model.batching import with_smaller_batches
from verifix.model.predict import predict
from verifix.model.run import run_model
from verifix.model.samples import Samples
from verifix.options import CorrectOptions


def look_over(
    logits: Tensor,
    inputs: str,
    work: nn.Module,
    where: torch.device,
    samples: Samples,
    options: CorrectOptions,
    names: Sequence[str] | None = None,
) -> list[str]:
    """See whether the uncorrected model knows the samples as they are given.

    Parameters
    ----------
    logits
        What it answers, ``[n, outputs]``.
    inputs
        What was noticed about the inputs of its first BatchNorm; may be empty.
    work, where
        The working copy, and its device: images of three colours are run once more.
    samples
        The verified samples.
    options
        The settings.
    names
        Class names, for messages.

    Returns
    -------
    list of str
        What the user should know, a sentence or two each.

    Raises
    ------
    DataError
        If the predictions fit another mapping of labels to outputs far better, or one input has two labels; if the
        samples do not look as in training, and `check_inputs` is on; if the accuracy is not the expected one.
    """
    remarks: list[str] = []
    if options.check_labels and options.origin != "trusted":
        copies = check_contradictions(samples)
        if copies:
            remarks.append(f"{copies} of the {len(samples)} samples are copies of others; copies share a fold.")

    if options.check_labels:
        check_mapping(logits, samples.labels, names=names)
    seen = [inputs, _remark_on_colours(work, where, samples, logits, options)]
    return remarks + judged(logits, samples.labels, seen, samples.source.prepared, options)


def _remark_on_colours(
    work: nn.Module, where: torch.device, samples: Samples, logits: Tensor, options: CorrectOptions
) -> str:
    """Try images of three colours with red and blue exchanged."""
    inputs = next(samples.batches([0], 1)).inputs
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] != 3 or not inputs.is_floating_point():
        return ""

    def forward(model: nn.Module, images: Tensor) -> object:
        return run_model(model, images.flip(1), samples.forward)

    other = replace(samples, forward=forward)
    exchanged, _ = with_smaller_batches(
        lambda size: predict(work, other, range(len(samples)), size, where), samples.batch_size, options
    )
    return remark_on_colours(logits, exchanged, samples.labels)

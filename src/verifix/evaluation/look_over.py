"""Whether the uncorrected model knows the samples as they are given: their order, preprocessing and colours."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from verifix.capture.input_statistics import watching_first_norm
from verifix.evaluation.accuracy import accuracy_of, remark_on_chance, remark_on_expected
from verifix.evaluation.channel_order import remark_on_colours
from verifix.evaluation.draw import remark_on_draw
from verifix.evaluation.duplicates import check_contradictions
from verifix.evaluation.input_check import settled
from verifix.evaluation.label_order import check_mapping
from verifix.losses import predicted_classes
from verifix.model.batching import with_smaller_batches
from verifix.model.predict import predict
from verifix.model.run import run_model
from verifix.model.samples import Samples
from verifix.options import CorrectOptions


def look_over(work: nn.Module, where: torch.device, samples: Samples, options: CorrectOptions) -> list[str]:
    """Run the uncorrected model once over the samples, and see whether it knows them as they are given.

    Parameters
    ----------
    work, where
        The working copy, and its device.
    samples
        The verified samples.
    options
        The settings.

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
    picked = options.origin == "trusted"
    if options.check_labels and not picked:
        copies = check_contradictions(samples)
        if copies:
            remarks.append(f"{copies} of the {len(samples)} samples are copies of others; copies share a fold.")

    if not (options.check_labels or options.expected) and options.check_inputs is False:
        return remarks  # nothing wants the predictions

    def run(size: int) -> tuple[Tensor, str]:
        with watching_first_norm(work) as seen:
            return predict(work, samples, range(len(samples)), size, where), seen.remark()

    (logits, remark), size = with_smaller_batches(run, samples.batch_size, options)
    if options.check_labels:
        check_mapping(logits, samples.labels)
    predicted, weights = predicted_classes(logits), getattr(options, "weights", None)
    doubts = [remark, _remark_on_colours(work, where, samples, logits, size)]
    if options.drawn != "suspects":  # whose labels a model is to be wrong about
        what = "trusted" if picked else "verified"
        doubts.append(remark_on_chance(predicted, samples.labels, max(logits.shape[1], 2), what))
    comparable = weights is not None or not remark_on_draw(options.drawn)
    found = accuracy_of(predicted, samples.labels, weights)
    unexpected = remark_on_expected(found, options.expected if comparable else None)
    return remarks + settled(doubts, unexpected, samples.source.prepared, options.check_inputs)


def _remark_on_colours(work: nn.Module, where: torch.device, samples: Samples, logits: Tensor, size: int) -> str:
    """Try images of three colours with red and blue exchanged."""
    inputs = next(samples.batches([0], 1)).inputs
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] != 3 or not inputs.is_floating_point():
        return ""

    def forward(model: nn.Module, images: Tensor) -> object:
        return run_model(model, images.flip(1), samples.forward)

    exchanged = predict(work, replace(samples, forward=forward), range(len(samples)), size, where)
    return remark_on_colours(logits, exchanged, samples.labels)

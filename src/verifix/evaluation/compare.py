"""`verifix.compare`: two models, or what they answered, on the same labelled samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from verifix.evaluation.comparison import Comparison
from verifix.evaluation.comparison import compare as compare_answers
from verifix.evaluation.predictions import answers_of
from verifix.evaluation.runs import Answered, RunArguments, answered
from verifix.options import check_outputs, check_seed


def compare(
    before: Any,
    after: Any,
    data: Any = None,
    labels: Any = None,
    *,
    weights: Any = None,
    groups: Any = None,
    seed: int = 0,
    outputs: Literal["auto", "logits", "log-probabilities", "probabilities", "percent"] = "auto",
    classes: Sequence[str] | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare two models on the same labelled samples, which neither model has learned from.

    ``compare(model_a, model_b, data)`` runs two models, ``compare(outputs_a, outputs_b, labels)`` takes what they
    answered.

    Parameters
    ----------
    before, after
        Two models; or the output of each model: logits, log-probabilities, probabilities or percent ``[n, classes]``,
        or one such number per sample ``[n, 1]``, that of class 1; tensors, arrays or lists. Whole numbers ``[n]`` are
        predicted classes; figures that need probabilities are then None.
    data
        For models: labelled samples in any form that `verifix.correct` takes; with `labels`, inputs alone. For outputs:
        the labels, class indices ``[n]``.
    labels
        Class indices, or class names, ``[n]``.
    weights
        How much each sample counts, ``[n]``, if the samples are not a random sample of what the model will meet; see
        `class_weights`. By default, all weights are equal.
    groups
        Which samples belong together, one value per sample ``[n]`` (texts or numbers, as for scikit-learn's
        ``GroupKFold``), if some are copies or near-copies, or of one patient, video or author: interval, p-values and
        power then count groups. By default, every sample counts as independent.
    seed
        Seed of the bootstrap.
    outputs
        What the numbers of both are. "auto" finds it out for each, and refuses what is not clear.
    classes
        For models: class names in the order of the outputs, if labels are names and the models have none of their own.
    progress
        For models: show progress on stderr.

    Returns
    -------
    Comparison
        Accuracy, calibration, flips and a verdict.

    Raises
    ------
    DataError
        If the arguments do not fit together, something is not finite, or it is not clear what the numbers are.
    UsageError
        If the seed is not a whole number, or `outputs` is not a known word.
    """
    check_seed(seed)
    check_outputs(outputs)
    names = None
    if isinstance(before, nn.Module) or isinstance(after, nn.Module):
        settings = RunArguments(labels=labels, classes=classes, outputs=outputs, seed=seed, progress=progress)
        before, after, one = _answers(before, after, data, settings)
        groups = one.samples.groups if groups is None else groups
        labels, names = one.samples.labels, one.names
    labels = data if labels is None else labels
    comparison = compare_answers(before, after, labels, weights=weights, groups=groups, seed=seed, outputs=outputs)
    return replace(comparison, class_names=names)


def _answers(before: Any, after: Any, data: Any, settings: RunArguments) -> tuple[Any, Any, Answered]:
    """Run what are models over the samples; return both answers, and what one of them answered to what."""
    found = {
        what: answered(each, data, settings, f"answers {what}")
        for what, each in (("before", before), ("after", after))
        if isinstance(each, nn.Module)
    }
    before = answers_of(found["before"].logits) if "before" in found else before
    after = answers_of(found["after"].logits) if "after" in found else after
    return before, after, next(iter(found.values()))

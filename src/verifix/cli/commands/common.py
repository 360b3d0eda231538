"""What several commands share: the model with its weights, the device, the class names, a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from verifix.cli.options import CorrectCommand, ScoreCommand
from verifix.cli.verifying_options import SelectCommand
from verifix.errors import DataError, UsageError, first_of
from verifix.evaluation.predictions import as_weights
from verifix.evaluation.shares import class_weights
from verifix.io.checkpoints.checkpoint import Checkpoint
from verifix.io.checkpoints.head_size import outputs_in
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.data.prediction_files import read_numbers
from verifix.io.data.preparation import Preparation
from verifix.io.models import build_model, own_checkpoint
from verifix.io.options import WeightOptions
from verifix.model.answers import predicted
from verifix.model.borrow import check_model
from verifix.model.class_names import class_numbers
from verifix.model.given import check_count
from verifix.model.outputs import understood
from verifix.model.samples import Samples, check_labels, read_samples
from verifix.model.several_outputs import outputs_of
from verifix.model.sources import Source, ask_dataset
from verifix.model.tensors import device_named, device_of
from verifix.model.wrappers import unwrapped
from verifix.options import RunOptions
from verifix.progress import note, progress_bar

SIZED = ("timm:", "torchvision:")
"""Models that are built with the number of outputs that they are told."""


def open_checkpoint(command: CorrectCommand | ScoreCommand | SelectCommand) -> Checkpoint:
    """Read the checkpoint that a command names, or the one that its model brings."""
    return read_checkpoint(command.checkpoint or own_checkpoint(command.model), command.weights)


def open_model(command: Any, checkpoint: Checkpoint | None) -> nn.Module:
    """Build the model that a command names, in eval mode, with the weights of a checkpoint if there is one."""
    built = build_model(command.model, command.num_classes, command.in_chans, command.further)
    if checkpoint is not None and command.num_classes is None and command.model.startswith(SIZED):
        outputs = outputs_in(checkpoint.state, built)
        if outputs is not None:
            note(f"the head in {checkpoint.path} has {outputs} outputs, as with --num-classes {outputs}")
            built = build_model(command.model, outputs, command.in_chans, command.further)
    model: nn.Module = unwrapped(built)
    if checkpoint is not None:
        checkpoint.load_into(model)
        check_model(model)
    return model.eval()


def device_wanted(name: str | torch.device) -> torch.device:
    """Return the device wanted; "auto" is a GPU if there is one."""
    return device_named(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else str(name))


def first_sample(source: Source) -> Samples:
    """Return the first sample alone."""
    one = Subset(source.dataset, range(min(1, len(source.dataset))))  # type: ignore[arg-type]
    return read_samples(replace(source, dataset=one))


def check_names(model: nn.Module, source: Source, preparation: Preparation) -> Preparation:
    """Refuse class names that are more or fewer than the outputs of the model: labels would shift without a word.

    Parameters
    ----------
    model
        The model.
    source
        The samples; those of a folder may have brought the names.
    preparation
        How they became inputs.

    Returns
    -------
    Preparation
        The same, with the class names that are known now.

    Raises
    ------
    DataError
        If there is not one for each output.
    """
    dataset: Any = source.dataset
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = preparation.class_names or getattr(dataset, "class_names", None)
    if names is None:
        return preparation
    outputs = outputs_of(model, first_sample(source), device_of(model), len(names))
    if len(names) != max(outputs, 2) and preparation.class_names is None:
        raise DataError(
            f"the folders name {len(names)} classes ({first_of(names, 5)}) and the model has {outputs} outputs, so "
            "which is which is not known; give --classes with all class names in the order of the outputs"
        )
    check_count(names, outputs, "--classes")
    return replace(preparation, class_names=tuple(names))


def logits_of(model: nn.Module, samples: Samples, options: RunOptions, title: str) -> tuple[Tensor, str]:
    """Return a model's logits of all samples, whose labels must name its outputs, and what these were read as."""
    samples, remark = understood(model, samples, device_of(model), options.outputs)
    with progress_bar(title, len(samples), options.progress) as bar:
        logits = predicted(model, samples, done=bar.update)
    check_labels(samples.labels, logits.shape[1], samples.where)
    return logits, remark


def weights_of(options: WeightOptions, labels: Any, names: Sequence[str] | None, used: Sequence[int]) -> Any:
    """Return how much each sample counts ``[n]``, or None if all count the same.

    Parameters
    ----------
    options
        Class shares, or a file of weights, one for each sample.
    labels
        Of all samples ``[n]``.
    names
        Class names; None if there are none.
    used
        Which samples are used: among these the classes shall have their shares, and others count nothing.

    Returns
    -------
    array or None
        The weights.

    Raises
    ------
    UsageError
        If a share names no class, or a class twice.
    DataError
        If a class has no share or no sample that is used, or the file is not one weight per sample.
    """
    chosen = list(used)
    if options.weights_file is not None:
        return _weights_in_file(options.weights_file, len(labels), chosen)
    shares = options.shares
    if shares is None:
        return None
    numbers = class_numbers(list(shares), names, "--class-shares", "entry {} of --class-shares".format)
    if len(set(numbers)) < len(numbers):
        raise UsageError("--class-shares names a class twice; name each class once")
    share_of = dict(zip(numbers, shares.values(), strict=True))
    elsewhere = set(np.asarray(labels).tolist()) - set(np.asarray(labels[chosen]).tolist())
    for label in sorted(elsewhere):
        if share_of.get(label, 0) > 0:
            raise DataError(
                f"class {label} has the share {share_of[label]:g}, but none of its samples is among the {len(chosen)} "
                f"of {len(labels)} on which the gain is measured; verify more samples of it, or omit the shares"
            )
    weights = np.zeros(len(labels))
    weights[chosen] = class_weights(labels[chosen], share_of)
    return weights


def known_weights(samples: Samples) -> Any:
    """Return how much each sample counts ``[n]``, as its data set says it; None if that does not know."""
    dataset, numbers = samples.origin
    found = [ask_dataset(dataset, i, "weight") for i in numbers]
    return None if not found or None in found else np.array(found)


def _weights_in_file(path: str, count: int, chosen: Sequence[int]) -> Any:
    """Read weights, and check them as they stand in the file, before anything is left out."""
    weights = read_numbers(path, "weight")
    try:
        as_weights(weights, count)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if not weights[chosen].any():
        raise DataError(
            f"{path}: only samples on which the gain is not measured have a weight above 0 ({len(chosen)} of {count} "
            "are used); give weights to others"
        )
    return weights

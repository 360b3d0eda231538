"""What a call in Python was given: samples as one thing or as inputs and labels, with labels as numbers or names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from verifix.errors import DataError, UsageError, first_of
from verifix.model.class_names import as_argument, checked_names, class_numbers, names_of
from verifix.model.labels import LABEL_KEYS
from verifix.model.samples import Samples
from verifix.model.wrappers import unwrapped
from verifix.options import CorrectArguments


@dataclass(frozen=True, eq=False)
class Made:
    """What a correction was made from, in memory.

    Attributes
    ----------
    model
        The uncorrected model.
    samples
        The samples as they were read.
    settings
        Those of `verifix.correct`.
    seconds
        What it took.
    """

    model: nn.Module
    samples: Samples
    settings: CorrectArguments
    seconds: float


def given_samples(model: nn.Module, data: Any, labels: Any, classes: Any) -> tuple[Any, tuple[str, ...] | None]:
    """Return samples in a form that `read_samples` takes, and the class names.

    Parameters
    ----------
    model
        The model, whose own class names count where none are given.
    data
        Samples in any form, or inputs alone if there are `labels`.
    labels
        Labels ``[n]`` of the inputs: class indices, or class names; None if `data` has labels.
    classes
        Class names in the order of the model's outputs; None if they are not given.

    Returns
    -------
    data
        The samples, with labels as class indices.
    names : tuple of str or None
        The class names, if they are known.

    Raises
    ------
    UsageError
        If labels are given twice, or class names are no list of texts.
    DataError
        If a label is a name that is not among the class names, or none are known.
    """
    names = checked_names(classes) or names_of(unwrapped(model))
    if labels is not None:
        _refuse_labelled(data)
        return (data, _numbers(labels, names)), names
    if isinstance(data, Mapping):
        keys = [key for key in LABEL_KEYS if key in data]
        return {**data, **{key: _numbers(data[key], names) for key in keys}} if keys else data, names
    if isinstance(data, tuple) and len(data) == 2:
        return (data[0], _numbers(data[1], names)), names
    return data, names


def check_count(names: Sequence[str] | None, outputs: int, setting: str = "classes=") -> None:
    """Refuse class names that are more or fewer than the outputs of the model; `setting` is what gives them."""
    if names is not None and len(names) != max(outputs, 2):
        raise DataError(
            f"there are {len(names)} class names ({first_of(names, 5)}) and the model has {outputs} "
            f"output{'s' * (outputs > 1)}; give {setting} with one name for each"
        )


def _refuse_labelled(data: Any) -> None:
    """Refuse labels beside samples that have their own; what is indexed by number alone may be a data set."""
    sized = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    inputs = isinstance(data, (Tensor, Mapping, tuple, list)) or hasattr(data, "__array__") or hasattr(data, "to_numpy")
    if not (sized and inputs):
        raise UsageError(
            f"labels are given, and the samples are a {type(data).__name__}, which has labels of its own; give inputs "
            "and labels, or this alone"
        )


def _numbers(labels: Any, names: tuple[str, ...] | None) -> Any:
    """Return labels as class indices if there are names among them; else as they are."""
    if isinstance(labels, Tensor):
        return labels
    values = np.asarray(labels if hasattr(labels, "__array__") else list(labels), dtype=object).reshape(-1).tolist()
    if not any(isinstance(value, str) for value in values):
        return labels
    return class_numbers(values, names, "the samples", "sample {}".format, spell=as_argument)

"""Labels as class indices, whatever holds them: integers, whole floats, columns, objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifix.errors import DataError, one_line

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
"""Where the labels of a batch that is a dictionary stand."""

UNKNOWN = -1
"""The label of a sample that has none."""


def as_tensor(values: Any, what: str) -> Tensor:
    """Turn numbers into a tensor: whatever torch takes, and frames and arrays of other libraries by way of numpy.

    Parameters
    ----------
    values
        The numbers.
    what
        What they are, for messages.

    Returns
    -------
    Tensor
        The numbers, in their own dtype where torch has it.

    Raises
    ------
    DataError
        If they are none.
    """
    try:
        if isinstance(values, (list, tuple)) and any(isinstance(value, str) for value in values):
            values = np.array(values, dtype=object)
        if isinstance(values, (list, tuple)) and values and all(hasattr(value, "shape") for value in values):
            return torch.stack([as_tensor(value, what) for value in values])
        if not isinstance(values, Tensor) and (hasattr(values, "__array__") or hasattr(values, "to_numpy")):
            values = np.asarray(values if hasattr(values, "__array__") else values.to_numpy())
            values = _of_objects(values, what) if values.dtype.kind in "OU" else values
            # Not writable, in another byte order or with negative steps, numpy's arrays are no tensors as they are.
            values = values.astype(values.dtype.newbyteorder("="), order="C")
        return torch.as_tensor(values)
    except DataError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        detail = one_line(error)
        raise DataError(f"the {what} cannot be converted to a tensor ({detail}); give numbers in one array") from None


def _of_objects(values: np.ndarray[Any, Any], what: str) -> np.ndarray[Any, Any]:
    """Return an array of Python's objects as one of numbers; pandas has such columns where something was missing."""
    for i, value in enumerate(values.reshape(-1).tolist()):
        if not isinstance(value, (int, float)):
            remedy = (
                "they must be class indices (integers), in the order of the model's outputs"
                if what == "labels"
                else "give numbers in one array"
            )
            raise DataError(f"the {what} are objects, and number {i} of them is {value!r}; {remedy}")
    return np.array(values.tolist())


def class_indices(labels: Tensor, count: int) -> Tensor:
    """Return labels as class indices.

    Parameters
    ----------
    labels
        Integers, or floats that are whole numbers: numbers with blanks become floats. ``[n]`` or ``[n, 1]``.
    count
        How many samples there are.

    Returns
    -------
    Tensor
        int64 ``[count]``.

    Raises
    ------
    DataError
        Naming the first label that is no whole number; or if they have another shape.
    """
    if labels.shape not in ((count,), (count, 1)):
        one_hot = "; for one column per class, give labels.argmax(1)" if labels.ndim == 2 else ""
        raise DataError(
            f"labels have shape {list(labels.shape)} for {count} inputs; they must be class indices of shape "
            f"[{count}]{one_hot}"
        )
    wrong = broken_label(labels)
    if wrong is not None:
        first = "" if labels.is_complex() else f", and number {wrong} of them is {_spelled(labels.reshape(-1)[wrong])}"
        raise DataError(f"labels are {labels.dtype}{first}; they must be class indices (integers)")
    return labels.reshape(-1).long()


def broken_label(labels: Tensor) -> int | None:
    """Return the place of the first label that is no whole number, or too large for its dtype to count in ones."""
    if labels.is_complex():
        return 0
    if not labels.is_floating_point():
        return None
    whole = (labels == labels.round()) & (labels.abs() < 2 / torch.finfo(labels.dtype).eps)
    return None if whole.all() else int(whole.reshape(-1).logical_not().nonzero()[0])


def _spelled(label: Tensor) -> str:
    value = label.item()
    return str(int(value)) if value == round(value, 0) and abs(value) < float("inf") else str(value)


def parted(batch: Mapping[Any, Any]) -> tuple[dict[Any, Any], Any]:
    """Tell inputs and labels of a dictionary apart.

    Parameters
    ----------
    batch
        A batch or a sample.

    Returns
    -------
    inputs : dict
        All that is no label.
    labels
        What stands under one of `LABEL_KEYS`; under several, if they are equal.

    Raises
    ------
    DataError
        If there are no labels, or two that differ.
    """
    keys = [key for key in LABEL_KEYS if key in batch]
    if not keys:
        raise DataError(
            f"a batch of the verified set has the keys {', '.join(map(str, batch))}; the labels must be under one of "
            f"{', '.join(LABEL_KEYS)}"
        )
    for key in keys[1:]:
        if not _equal(batch[keys[0]], batch[key]):
            raise DataError(
                f"a batch of the verified set has labels under {keys[0]} and {key}, which differ; which of them are "
                "meant is not known, so leave one of them out"
            )
    return {key: value for key, value in batch.items() if key not in keys}, batch[keys[0]]


def _equal(first: Any, second: Any) -> bool:
    """Whether two labels, or arrays of them, are the same, whatever holds them."""
    try:
        a, b = as_tensor(first, "labels"), as_tensor(second, "labels")
    except DataError:
        return type(first) is type(second) and bool(np.array_equal(np.asarray(first), np.asarray(second)))
    return torch.equal(a.double().reshape(-1), b.double().reshape(-1))

"""Inputs and labels as arrays in a ``.npz`` file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from verifix.errors import DataError, UsageError, one_line
from verifix.io.data.groups import Grouped, read_groups
from verifix.io.data.preparation import RESIZING, Preparation, flag, listing
from verifix.io.options import DataOptions, group_column
from verifix.model.class_names import class_numbers
from verifix.model.labels import UNKNOWN, broken_label
from verifix.progress import note

INPUT_NAMES = ("x", "X", "inputs", "images", "data")
LABEL_NAMES = ("y", "Y", "labels", "label", "targets")
LARGE = 2**28
MOST_PACKED = 200
"""Files that unpack to more bytes than `LARGE`, and to more than so many times their own, are refused."""


class Arrays(Grouped, TensorDataset):
    """Inputs and labels of a file.

    Parameters
    ----------
    inputs, labels
        Tensors ``[n, ...]`` and ``[n]``.
    path
        The file.
    prepared
        How its numbers became inputs, in words.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, path: Path, prepared: str) -> None:
        super().__init__(inputs, labels)
        self.labels = labels
        self.path = path
        self.prepared = prepared

    def place(self, index: int) -> str:
        """Say where a sample stands, for messages."""
        return f"row {index} of {self.path}"


def read_npz(path: Path, options: DataOptions, preparation: Preparation) -> Arrays:
    """Read arrays.

    Parameters
    ----------
    path
        A file with inputs ``x [n, ...]`` and labels ``y [n]``, class indices or names.
    options
        Flags; an explicit mean and std are for numbers of every kind.
    preparation
        Mean and std of 8-bit images, and the class names.

    Returns
    -------
    Arrays
        Yields ``(input, label)``.

    Raises
    ------
    DataError
        If the file cannot be read, or its arrays do not fit.
    """
    for name in RESIZING:
        if getattr(options, name) is not None:
            raise UsageError(f"{flag(name)} is for image files; the arrays of {path} are used as they are")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            _check_size(arrays, path)
            used = [_pick(arrays, INPUT_NAMES, path)]
            x = _tensor(arrays[used[0]])
            if preparation.labelled:
                used.append(_pick(arrays, LABEL_NAMES, path))
                y = _labels(arrays[used[1]], preparation, path)
            else:
                y = torch.full(x.shape[:1], UNKNOWN)
            own, row = group_column(options), f"row {{}} of {path}"
            groups = (
                () if own is None else read_groups(own, arrays.files, partial(_column, arrays, path), path, row.format)
            )
            ignored = () if preparation.labelled else LABEL_NAMES
            left = [name for name in arrays.files if name not in (*used, own, *ignored)]
    except DataError:
        raise
    except Exception as error:  # zipfile and zlib have errors of their own
        line = one_line(error)
        raise DataError(f"{path} is not a readable .npz file ({line}); write numbers with numpy.savez") from None
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise DataError(f"{path} has inputs {list(x.shape)} and labels {list(y.shape)}; give one label per input")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1:
        raise DataError(f"{path} has labels {list(y.shape)}; give one class index per input, in the shape [{len(y)}]")
    if left:
        note(f"{path}: {' and '.join(used)} are read, and the arrays {', '.join(left[:5])} are left out ({len(left)})")
    scaled, normalised = x.dtype == torch.uint8, x.dtype == torch.uint8 or bool(options.channel_mean)
    x = _pixels(x, path)
    _check_finite(x, path)
    if groups and len(groups) != len(y):
        raise DataError(f"{path} has {len(groups)} groups for {len(y)} labels; give one group per input")
    prepared = _in_words(x, preparation, scaled=scaled, normalised=normalised)
    found = Arrays(_normalised(x, preparation, path) if normalised else x, y, path, prepared)
    found.groups = groups
    return found


def _in_words(x: Tensor, preparation: Preparation, *, scaled: bool, normalised: bool) -> str:
    """Say how the numbers of a file become inputs."""
    size = f"{'×'.join(map(str, x.shape[2:]))}, " if x.ndim == 4 else ""
    numbers = "8-bit numbers divided by 255" if scaled else "numbers as they are"
    normal = f"mean {listing(preparation.mean)}, std {listing(preparation.std)}" if preparation.mean else ""
    return f"arrays: {size}{numbers}, {normal if normalised and normal else 'not normalised'}"


def _column(arrays: Any, path: Path, name: str) -> list[Any]:
    values = arrays[name]
    if values.ndim != 1:
        raise DataError(f"{path} has the array {name!r} {list(values.shape)}; groups are one value per input, [n]")
    return list(values.tolist())


def _check_size(arrays: Any, path: Path) -> None:
    """Refuse a small file that unpacks to a large one: nothing that a camera or a person made does."""
    packed, unpacked = path.stat().st_size, sum(entry.file_size for entry in arrays.zip.infolist())
    if unpacked > max(LARGE, MOST_PACKED * packed):
        raise DataError(
            f"{path} has {packed / 2**20:.1f} MiB but would unpack to {unpacked / 2**30:.1f} GiB, which real data "
            "never does; write it again with numpy.savez"
        )


def _check_finite(x: Tensor, path: Path) -> None:
    if x.numel() and not torch.isfinite(x).all():
        first = int(torch.isfinite(x).reshape(len(x), -1).all(dim=1).logical_not().nonzero()[0])
        raise DataError(f"{path}: the input of sample {first} contains NaN or Inf; every input must be finite")


def _labels(labels: np.ndarray[Any, Any], preparation: Preparation, path: Path) -> Tensor:
    if labels.dtype.kind in "fc":
        numbers = _tensor(labels)
        broken = broken_label(numbers)
        if broken is None:
            return numbers.long()
        first = f"label {broken} is {labels.reshape(-1)[broken]}"
        raise DataError(
            f"{path} has labels of {labels.dtype}, and {first}; they must be class indices (integers) or names"
        )
    if labels.dtype.kind != "U":
        return _tensor(labels)
    names = labels.reshape(-1).tolist()
    place = f"label {{}} of {path}".format
    return torch.tensor(class_numbers(names, preparation.class_names, str(path), place)).reshape(labels.shape)


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=False))


def _pixels(x: Tensor, path: Path) -> Tensor:
    """Turn 8-bit images, with their channels last, first or left out, into floats; other numbers become float32."""
    if x.dtype in (torch.float16, torch.float64):
        return x.float()
    if x.dtype != torch.uint8:
        return x
    if x.ndim == 3:
        return x[:, None].float() / 255
    last, first = x.ndim == 4 and x.shape[3] in (1, 3), x.ndim == 4 and x.shape[1] in (1, 3)
    if last == first:
        raise DataError(
            f"{path} has 8-bit inputs {list(x.shape)}; they must be images [n, height, width], or with 1 or 3 channels "
            "either last or first"
        )
    return (x.permute(0, 3, 1, 2) if last else x).float() / 255


def _normalised(x: Tensor, preparation: Preparation, path: Path) -> Tensor:
    if not preparation.mean:
        return x
    if x.ndim != 4 or x.shape[1] != len(preparation.mean):
        raise DataError(
            f"{path} has inputs {list(x.shape)}; these --mean and --std are for images with "
            f"{len(preparation.mean)} channels"
        )
    mean, std = torch.tensor(preparation.mean), torch.tensor(preparation.std)
    return (x - mean[:, None, None]) / std[:, None, None]


def _pick(arrays: Any, names: Sequence[str], path: Path) -> str:
    found = [name for name in names if name in arrays]
    if not found:
        raise DataError(f"{path} has the arrays {', '.join(arrays) or 'none'}; one must be named {' or '.join(names)}")
    for name in found[1:] if names is LABEL_NAMES else ():  # other inputs are left out with a note
        if not np.array_equal(arrays[found[0]], arrays[name]):
            raise DataError(
                f"{path} has the labels {found[0]} and {name}, which differ; which of them are meant is not known, so "
                "leave one of them out"
            )
    return found[0]

"""CIFAR-10N and CIFAR-100N: the labels that people gave to the images of CIFAR, and those images."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from verifix.errors import DataError, VerifixError
from verifix.io.data.images import Images
from verifix.io.data.noisy_benchmarks import choose, require
from verifix.io.data.preparation import Preparation
from verifix.model.class_names import class_numbers
from verifix.storage.tensors import read_torch

LABELS_HOME = "get the labels from their authors, http://www.noisylabels.com"
IMAGES_HOME = "get the images from https://www.cs.toronto.edu/~kriz/cifar.html and unpack them there"
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """Files and names of one of the two sets."""

    human: str
    labels: tuple[str, ...]
    python_folder: str
    python_files: tuple[str, ...]
    python_label: str
    python_names: tuple[str, str]
    binary_folder: str
    binary_files: tuple[str, ...]
    binary_labels: int
    binary_names: str


CIFAR10N = Layout(
    human="CIFAR-10_human.pt",
    labels=("clean_label", "aggre_label", "worse_label", "random_label1", "random_label2", "random_label3"),
    python_folder="cifar-10-batches-py",
    python_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
    python_label="labels",
    python_names=("batches.meta", "label_names"),
    binary_folder="cifar-10-batches-bin",
    binary_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    binary_labels=1,
    binary_names="batches.meta.txt",
)
CIFAR100N = Layout(
    human="CIFAR-100_human.pt",
    labels=("clean_label", "noisy_label"),
    python_folder="cifar-100-python",
    python_files=("train",),
    python_label="fine_labels",
    python_names=("meta", "fine_label_names"),
    binary_folder="cifar-100-binary",
    binary_files=("train.bin",),
    binary_labels=2,
    binary_names="fine_label_names.txt",
)


class Pixels(Images):
    """Images in memory, as an array ``[n, 32, 32, 3]`` of 8-bit numbers."""

    array: np.ndarray[Any, Any]

    def size_of(self, index: int) -> tuple[int, int]:  # noqa: ARG002 - they are all of one size
        """Return the width and height of an image."""
        return self.array.shape[2], self.array.shape[1]

    def _decoded(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index])


def read_cifar_n(rest: str, preparation: Preparation, layout: Layout, name: str) -> Images:
    """Read the training images of CIFAR with one of the sets of human labels.

    Parameters
    ----------
    rest
        ``DIR:`` and the name of the labels.
    preparation
        How to turn an image into an input, and the class names.
    layout
        Which of the two sets.
    name
        What it is called on the command line.

    Returns
    -------
    Images
        The images in the order of CIFAR.

    Raises
    ------
    DataError
        If the layout is another, or images and labels do not belong together.
    """
    folder, key = choose(name, rest, layout.labels)
    path = require(folder / layout.human, LABELS_HOME)
    pixels, true, names = _images(folder, layout)
    human = _human_labels(path)
    labels, clean = (_labels(human, each, path, len(true)) for each in (key, "clean_label"))
    wrong = int((clean != true).sum())
    if wrong:
        raise DataError(
            f"the clean_label of {path} differs from the images' own labels in {wrong} of {len(true)} places, so they "
            f"are in another order; {IMAGES_HOME}"
        )
    place = partial("image {1} of {0}".format, path)
    own = [names] if names else []
    numbers = class_numbers(labels.tolist(), preparation.class_names, str(path), place, own)
    images = Pixels(_no_bytes, place, numbers, preparation, str(folder))
    images.array = pixels
    return images


def _no_bytes(index: int) -> bytes:
    raise NotImplementedError(index)  # these images are in memory, decoded


def _human_labels(path: Path) -> dict[str, Any]:
    """Read a file of ``torch.save`` that may hold numpy arrays besides tensors, and nothing that runs."""
    kinds = [type(np.dtype(kind)) for kind in (np.int64, np.int32, np.int16, np.int8, np.uint8)]
    rebuild = [(_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals([*rebuild, np.ndarray, np.dtype, *kinds]):
            content = read_torch(path)
    except VerifixError as error:
        raise DataError(f"{error}; {LABELS_HOME}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not a dictionary of labels; {LABELS_HOME}")
    return content


def _labels(human: dict[str, Any], key: str, path: Path, count: int) -> np.ndarray[Any, Any]:
    if key not in human:
        raise DataError(f"{path} has no {key} (it has {', '.join(map(str, human))}); {LABELS_HOME}")
    labels = np.asarray(human[key])
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{key} of {path} is {labels.dtype} of shape {list(labels.shape)}, and there are {count} images; it must "
            f"hold one whole number per image; {LABELS_HOME}"
        )
    return labels


def _images(folder: Path, layout: Layout) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[str]]:
    """Return images ``[n, 32, 32, 3]``, their labels and, where they are there, the class names."""
    python, binary = folder / layout.python_folder, folder / layout.binary_folder
    if not python.is_dir() and not binary.is_dir():
        raise DataError(f"{python} is missing, and {binary} too; {IMAGES_HOME}")
    if python.is_dir():
        parts = [_python_part(require(python / file, IMAGES_HOME), layout) for file in layout.python_files]
        names = _python_names(python / layout.python_names[0], layout)
    else:
        parts = [_binary_part(require(binary / file, IMAGES_HOME), layout) for file in layout.binary_files]
        file = binary / layout.binary_names
        names = file.read_text("utf-8").split() if file.is_file() else []
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), np.concatenate([labels for _, labels in parts]), names


def _python_part(path: Path, layout: Layout) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    content = _unpickled(path)
    data, labels = (content.get(key) for key in ("data", layout.python_label))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
        raise DataError(f"{path} has no data of 8-bit numbers [n, {PIXELS}]; {IMAGES_HOME}")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(label) is int for label in labels):
        raise DataError(f"{path} lacks one number in {layout.python_label} for each image; {IMAGES_HOME}")
    return data, np.array(labels, dtype=np.int64)


def _python_names(path: Path, layout: Layout) -> list[str]:
    names = _unpickled(path).get(layout.python_names[1]) if path.is_file() else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _binary_part(path: Path, layout: Layout) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    width = layout.binary_labels + PIXELS
    if len(content) == 0 or len(content) % width:
        raise DataError(f"{path} has {len(content)} bytes, which is not a multiple of {width}; {IMAGES_HOME}")
    rows = content.reshape(-1, width)
    return rows[:, layout.binary_labels :], rows[:, layout.binary_labels - 1].astype(np.int64)


_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_FROM_BUFFER: Any = np.empty(0).__reduce_ex__(5)[0]


def _encoded(text: str, encoding: str) -> bytes:
    """Do what Python 2's pickles ask for where they hold bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


class _Arrays(pickle.Unpickler):  # noqa: S301 - it finds no class but those of numpy arrays
    """Reads plain containers and numpy arrays; whatever else a file asks for is refused."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encoded,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return what stands for a name in the file."""
        try:
            return self.allowed[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is never run") from None


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        content = _Arrays(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} is not a readable batch of CIFAR ({error}); {IMAGES_HOME}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not a dictionary; {IMAGES_HOME}")
    return {str(key): value for key, value in content.items()}

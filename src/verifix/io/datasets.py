"""Labelled samples from files: an image folder, arrays in ``.npz``, or images in Parquet."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from verifix.errors import DataError, UsageError
from verifix.options import DataOptions

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
INPUT_NAMES = ("x", "X", "inputs", "images", "data")
LABEL_NAMES = ("y", "Y", "labels", "label", "targets")


class Images(Dataset[tuple[Tensor, int]]):
    """Encoded images with labels, decoded when they are read.

    Parameters
    ----------
    sources
        For each image a function that returns its file's bytes, and its name for messages.
    labels
        Class indices.
    options
        How to turn an image into an input.
    """

    def __init__(
        self, sources: Sequence[tuple[Callable[[], bytes], str]], labels: Sequence[int], options: DataOptions
    ) -> None:
        self.sources = sources
        self.labels = labels
        self.mean = torch.tensor(options.channel_mean or [0.0, 0.0, 0.0])[:, None, None]
        self.std = torch.tensor(options.channel_std or [1.0, 1.0, 1.0])[:, None, None]
        self.size = options.size
        self._shape: torch.Size | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one input ``[channels, height, width]`` and its label."""
        read, name = self.sources[index]
        pixels = self._decode(read, name)
        x = (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - self.mean) / self.std
        if self._shape is not None and x.shape != self._shape:
            raise DataError(
                f"{name} is {x.shape[2]}×{x.shape[1]} pixels and an earlier image {self._shape[2]}×{self._shape[1]}; "
                "give --size to bring all images to one size"
            )
        self._shape = x.shape
        return x, self.labels[index]

    def _decode(self, read: Callable[[], bytes], name: str) -> np.ndarray[Any, Any]:
        try:
            with Image.open(io.BytesIO(read())) as image:
                picture = _eight_bits(image, name).convert("L" if len(self.mean) == 1 else "RGB")
        except UnidentifiedImageError:
            raise DataError(f"{name} is not in a known image format; replace it or leave it out") from None
        except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{name} is not a readable image ({error}); replace it or leave it out") from None
        if self.size is not None:
            picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
        array = np.array(picture)
        return array if array.ndim == 3 else array[:, :, None]


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Bring an image to 8 bits a channel; Pillow's own conversion clips deeper ones to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{name} has 32 bits a channel, whose range is not known; save it with 8 or 16 bits")
    return image.convert("RGBA") if "transparency" in image.info else image


def open_data(path: str | Path, options: DataOptions) -> Dataset[Any]:
    """Open labelled samples.

    Parameters
    ----------
    path
        A folder with one subfolder of images per class; a ``.npz`` file with inputs (``x``) and labels (``y``); or a
        ``.parquet`` file with a column ``image: {bytes, path}`` and a label column.
    options
        Preprocessing and names.

    Returns
    -------
    Dataset
        Yields ``(input, label)`` by index.

    Raises
    ------
    UsageError
        If there is nothing there, or its kind is unknown.
    DataError
        If it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(path, options)
    if not path.is_file():
        raise UsageError(f"{path} does not exist; check the path of the data")
    readers = {".npz": _from_npz, ".parquet": _from_parquet}
    if path.suffix not in readers:
        raise UsageError(f"{path} is not data by its name; give an image folder, a .npz file or a .parquet file")
    return readers[path.suffix](path, options)


def _from_folder(path: Path, options: DataOptions) -> Images:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = [folder.name for folder in folders]
    if not folders:
        raise DataError(f"{path} has no subfolders; an image folder has one subfolder per class")
    numbers = _class_numbers(path, names, options.class_names)
    files = [
        (file, numbers[folder.name])
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not file.name.startswith(".")
    ]
    if not files:
        raise DataError(f"{path} has no images; images end in {', '.join(IMAGE_SUFFIXES)}")
    return Images([(file.read_bytes, str(file)) for file, _ in files], [label for _, label in files], options)


def _class_numbers(path: Path, names: Sequence[str], classes: Sequence[str] | None) -> dict[str, int]:
    """Map folder names to class numbers by name, never by order."""
    if classes is not None:
        if len(set(classes)) < len(classes):
            raise DataError(f"--classes names {max(classes, key=list(classes).count)!r} twice; name each class once")
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise DataError(f"{path / unknown[0]} is none of the classes {', '.join(classes[:10])}; check --classes")
        return {name: classes.index(name) for name in names}
    if all(name.isascii() and name.isdigit() for name in names):
        return {name: int(name) for name in names}
    raise DataError(
        f"the folders of {path} have names ({', '.join(names[:3])}, …), and the order of the model's outputs is not "
        "known; give --classes with all class names in the order of the outputs"
    )


def _from_npz(path: Path, options: DataOptions) -> TensorDataset:
    if options.size is not None:
        raise UsageError(f"--size is for image files; the arrays of {path} are taken as they are")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs, labels = (_tensor(_pick(arrays, names, path)) for names in (INPUT_NAMES, LABEL_NAMES))
    except DataError:
        raise
    except Exception as error:  # zipfile and zlib have errors of their own
        line = " ".join(str(error).split())
        raise DataError(f"{path} is not a readable .npz file ({line}); write numbers with numpy.savez") from None
    if inputs.ndim == 0 or labels.ndim == 0 or len(inputs) != len(labels):
        raise DataError(
            f"{path} has inputs {list(inputs.shape)} and labels {list(labels.shape)}; give one label per input"
        )
    return TensorDataset(_normalised(_pixels(inputs, path), options, path), labels)


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


def _normalised(x: Tensor, options: DataOptions, path: Path) -> Tensor:
    if not options.channel_mean:
        return x
    if x.ndim != 4 or x.shape[1] != len(options.channel_mean):
        raise DataError(
            f"{path} has inputs {list(x.shape)}; these --mean and --std are for images with "
            f"{len(options.channel_mean)} channels"
        )
    mean, std = torch.tensor(options.channel_mean), torch.tensor(options.channel_std)
    return (x - mean[:, None, None]) / std[:, None, None]


def _pick(arrays: Any, names: Sequence[str], path: Path) -> np.ndarray[Any, Any]:
    for name in names:
        if name in arrays:
            array: np.ndarray[Any, Any] = arrays[name]
            return array
    raise DataError(f"{path} has the arrays {', '.join(arrays) or 'none'}; one must be named {' or '.join(names)}")


def _from_parquet(path: Path, options: DataOptions) -> Images:
    import pyarrow
    import pyarrow.parquet

    label = options.label_column
    try:
        schema = pyarrow.parquet.read_schema(path)
        if label == "image":
            raise UsageError("--label-column is 'image', which holds the images; name the column of the labels")
        missing = [name for name in ("image", label) if name not in schema.names]
        if missing:
            raise DataError(
                f"{path} has no column {missing[0]!r} (it has {', '.join(schema.names)}); "
                "it needs image {bytes, path} and a label column, see --label-column"
            )
        table = pyarrow.parquet.read_table(path, columns=["image", label])
        images, labels = table["image"], table[label].to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        line = str(error).strip().splitlines()[0]
        raise DataError(f"{path} is not a readable Parquet file ({line}); check that it is complete") from None
    if not pyarrow.types.is_struct(images.type) or "bytes" not in {field.name for field in images.type}:
        raise DataError(f"the column 'image' of {path} is {images.type}; it must be a struct with the field 'bytes'")
    wrong = next((i for i, y in enumerate(labels) if type(y) is not int or y.bit_length() > 62), None)
    if wrong is not None:
        raise DataError(
            f"row {wrong} of {path} has the label {labels[wrong]!r}; labels must be class indices (integers)"
        )

    sources = [(partial(_encoded, images, i), f"the image in row {i} of {path}") for i in range(len(labels))]
    return Images(sources, labels, options)


def _encoded(images: Any, row: int) -> bytes:
    content: bytes = images[row]["bytes"].as_py()
    return content

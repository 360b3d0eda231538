"""Images, decoded when they are read, and the folder with one subfolder of them per class."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from verifix.errors import DataError, first_of, one_line
from verifix.io.data.groups import Grouped
from verifix.io.data.left_out import note_left_out
from verifix.io.data.preparation import Preparation
from verifix.model.class_names import NUMBER, class_numbers
from verifix.model.labels import UNKNOWN
from verifix.progress import note

BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
"""What Pillow says to images of more than twice, and more than once, the pixels that it finds plausible."""

COMMON_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
"""What is decoded, whatever the name of a file says. Pillow would hand EPS over to another program, Ghostscript."""


MOST_LOOKED_AT = 50
"""About how many images are looked at, evenly spread, to tell their size."""


class Images(Grouped, Dataset[tuple[Tensor, int]]):
    """Encoded images with labels, decoded when they are read.

    Parameters
    ----------
    read
        Returns the bytes of an image's file, by index.
    place
        Says where an image is, by index, for messages.
    labels
        Class indices.
    preparation
        How to turn an image into an input.
    source
        What the images come from, for messages.
    upright
        Whether to turn images as their EXIF data says, as the library that wrote them does when it reads them.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        place: Callable[[int], str],
        labels: Sequence[int],
        preparation: Preparation,
        source: str,
        *,
        upright: bool = False,
    ) -> None:
        self.read = read
        self.place = place
        self.labels = labels
        self.prepare = preparation.for_images(source)
        self.upright = upright
        self.source = source
        self.files: Sequence[str] = ()
        self.class_names: tuple[str, ...] | None = preparation.class_names
        self._several: set[int] = set()
        self._shape: torch.Size | None = None
        self._last: tuple[int, bytes] = (-1, b"")

    def size_of(self, index: int) -> tuple[int, int] | None:
        """Return the width and height of an image; None if it is not readable, which is told when it is read."""
        with contextlib.suppress(Exception), _bombs_refused():
            return Image.open(io.BytesIO(self.read(index)), formats=_formats()).size
        return None

    def file(self, index: int) -> str | None:
        """Return the path of an image; None if it has no file of its own."""
        return self.files[index] if self.files else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one input ``[channels, height, width]`` and its label."""
        image = self._decoded(index)
        self._last = index, _pixels_digest(image)
        x = self.prepare(image)
        if self._shape is not None and x.shape != self._shape:
            raise DataError(
                f"{self.place(index)} is {x.shape[2]}×{x.shape[1]} pixels and an earlier image "
                f"{self._shape[2]}×{self._shape[1]}; give --size to bring all images to one size"
            )
        self._shape = x.shape
        return x, self.labels[index]

    def fingerprint(self, index: int) -> bytes:
        """Return the SHA-256 of an image's size and pixels: 8-bit RGB, turned upright, before it is prepared."""
        return self._last[1] if self._last[0] == index else _pixels_digest(self._decoded(index))

    def picture(self, index: int) -> Image.Image:
        """Return an image as people should see it: upright, with 8 bits a channel, before it is prepared."""
        image = self._decoded(index)
        with contextlib.suppress(Exception):  # broken EXIF data says nothing on the image
            return ImageOps.exif_transpose(image)
        return image

    def remark(self) -> str:
        """Say how many of the images that were read have more frames or pages than the first; empty for none."""
        count = len(self._several)
        if not count:
            return ""
        first = f"the first is {self.place(min(self._several))}"
        return (
            f"{self.source}: of {count} image{'s' * (count > 1)} with several frames, only the first is read; {first}"
        )

    def _decoded(self, index: int) -> Image.Image:
        name = self.place(index)
        try:
            content = self.read(index)
            with _bombs_refused(), Image.open(io.BytesIO(content), formats=_formats()) as image:
                if _has_more_frames(image, content):
                    self._several.add(index)
                image.load()
                return _eight_bits(ImageOps.exif_transpose(image) if self.upright else image, name)
        except UnidentifiedImageError:
            what = "not in a known image format" if content else "empty"
            raise DataError(f"{name} is {what}; replace it or leave it out") from None
        except BOMBS:
            raise DataError(
                f"{name} has more than {Image.MAX_IMAGE_PIXELS} pixels; scale it down or leave it out"
            ) from None
        except DataError:
            raise
        except Exception as error:  # Pillow raises nearly anything on a damaged file
            line = one_line(error, 200)
            raise DataError(f"{name} is not a readable image ({line}); replace it or leave it out") from None


def _has_more_frames(image: Image.Image, content: bytes) -> bool:
    """Tell animations and files of several pages; what a camera puts beside a picture, in MPO, is no other frame."""
    if image.format != "GIF":
        return image.format != "MPO" and getattr(image, "is_animated", False)
    with contextlib.suppress(Exception), Image.open(io.BytesIO(content), formats=("GIF",)) as again:
        return bool(getattr(again, "is_animated", False))  # it looks for the second frame, which may be damaged
    return False


def note_small(images: Images, preparation: Preparation, source: str) -> None:
    """Write a note if most images are smaller than the model's input, so that they are enlarged.

    Parameters
    ----------
    images
        The images, of which about `MOST_LOOKED_AT` are looked at.
    preparation
        How they become inputs, and of what size.
    source
        What they come from.
    """
    if preparation.size is None:
        return
    found = map(images.size_of, range(0, len(images), max(1, len(images) // MOST_LOOKED_AT)))
    sizes = sorted(size for size in found if size is not None)
    if 2 * sum(min(size) < min(preparation.size) for size in sizes) <= len(sizes):
        return
    width, height = sizes[len(sizes) // 2]
    note(
        f"{source}: the images are smaller than the model's input, for example {width}×{height} pixels, and are "
        f"enlarged ({preparation.description}); give --size if the model was trained on smaller inputs"
    )


@lru_cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@lru_cache
def image_suffixes() -> tuple[str, ...]:
    """Return the suffixes, in small letters, of all names that Pillow has for the formats that are decoded."""
    formats = _formats()
    registered = [suffix for suffix, name in Image.registered_extensions().items() if name in formats]
    return tuple(dict.fromkeys([*COMMON_SUFFIXES, *sorted(registered)]))


@contextmanager
def _bombs_refused() -> Iterator[None]:
    """Refuse an image of far more pixels than a camera takes, of which Pillow only warns; other warnings are noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _pixels_digest(image: Image.Image) -> bytes:
    with contextlib.suppress(Exception):  # broken EXIF data says nothing on the image
        image = ImageOps.exif_transpose(image)
    rgb = image.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}".encode() + rgb.tobytes()).digest()


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Bring an image to 8 bits a channel; Pillow's own conversion clips deeper ones to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{name} has 32 bits a channel, whose range is not known; save it with 8 or 16 bits")
    return image.convert("RGBA") if "transparency" in image.info else image


def from_files(
    files: Sequence[str],
    labels: Sequence[int],
    preparation: Preparation,
    source: str,
    place: Callable[[int], str] | None = None,
) -> Images:
    """Return image files with labels.

    Parameters
    ----------
    files
        Paths.
    labels
        Class indices.
    preparation
        How to turn an image into an input.
    source
        What they come from, for messages.
    place
        Says where an image is, by its index, for messages; by default its path.

    Returns
    -------
    Images
        The images.
    """
    images = Images(partial(_file_bytes, files), place or files.__getitem__, labels, preparation, source)
    images.files = files
    return images


def _file_bytes(files: Sequence[str], index: int) -> bytes:
    return Path(files[index]).read_bytes()


def read_folder(path: Path, preparation: Preparation) -> Images:
    """Read a folder with one subfolder of images per class, named after it; without labels, all images below it.

    Parameters
    ----------
    path
        The folder.
    preparation
        How to turn an image into an input, and the class names.

    Returns
    -------
    Images
        The images, sorted by name.

    Raises
    ------
    DataError
        If there are no images, or the names of the folders do not fit the model.
    """
    preparation.for_images(str(path))
    if not preparation.labelled:
        return _read_unlabelled(path, preparation)
    entries = sorted(p for p in path.iterdir() if not _hidden(p.name))
    every = [p for p in entries if p.is_dir()]
    for folder in every:
        if path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{folder} is a link that leads back to {folder.resolve()}; remove the link")
    note_left_out([str(p) for p in entries if not p.is_dir()], str(path), "in no class folder")
    images, others = {}, []
    for folder in every:
        images[folder], left = _images_in(folder)
        others += left
    note_left_out(others, str(path), "without an image suffix, or no regular file")
    folders = [folder for folder in every if images[folder]]
    if folders and len(folders) < len(every):
        empty = [folder.name for folder in every if not images[folder]]
        note(f"{path}: ignored the folders without images: {', '.join(empty[:5])}")
    if not every:
        raise DataError(
            f"{path} has no subfolders; an image folder has one subfolder per class, or a metadata.csv with file_name "
            "and label (and a folder of datasets.save_to_disk has a dataset_info.json)"
        )
    names, known = [folder.name for folder in folders], preparation.class_names
    if known is None and preparation.sorted_names and not any(NUMBER.fullmatch(folder.name) for folder in every):
        known = tuple(folder.name for folder in every)
        note(
            f"{path}: the model has no class names, so the folders in alphabetical order are taken as its outputs, as "
            f"torchvision does ({first_of(known, 10)}); --classes gives another order"
        )
    numbers = class_numbers(names, known, f"the folders of {path}", lambda i: str(folders[i]))
    files = [(str(file), number) for folder, number in zip(folders, numbers, strict=True) for file in images[folder]]
    if not files:
        raise DataError(f"{path} has no images; images end in {', '.join(image_suffixes())}")
    found = from_files([file for file, _ in files], [number for _, number in files], preparation, str(path))
    found.class_names = known
    return found


def _read_unlabelled(path: Path, preparation: Preparation) -> Images:
    images, others = _images_in(path)
    note_left_out(others, str(path), "without an image suffix, or no regular file")
    if not images:
        raise DataError(f"{path} has no images; images end in {', '.join(image_suffixes())}")
    return from_files(list(map(str, images)), [UNKNOWN] * len(images), preparation, str(path))


def _images_in(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the images below a folder, and the names of all else that is not hidden."""
    images, others = [], []
    for file in files_below(folder):
        if file.suffix.lower() in image_suffixes() and file.is_file():
            images.append(file)
        else:
            others.append(str(file))
    return images, others


def files_below(folder: Path) -> list[Path]:
    """List the files below a folder, sorted, but for hidden ones. Links to folders are listed and not followed.

    Parameters
    ----------
    folder
        The folder.

    Returns
    -------
    list of Path
        The files.
    """
    entries = (entry for entry in folder.rglob("*") if not any(map(_hidden, entry.relative_to(folder).parts)))
    return sorted(entry for entry in entries if entry.is_symlink() or not entry.is_dir())


def _hidden(name: str) -> bool:
    """Tell what programs leave beside the images: .ipynb_checkpoints, ._a.png, __MACOSX."""
    return name.startswith((".", "__MACOSX"))

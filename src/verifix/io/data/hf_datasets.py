"""Folders that the datasets library has written with ``save_to_disk``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from verifix.errors import DataError, UsageError
from verifix.io.data.groups import with_groups
from verifix.io.data.image_values import image_bytes, root_of
from verifix.io.data.images import Images
from verifix.io.data.labels import only_column
from verifix.io.data.manifests import LABEL_COLUMNS
from verifix.io.data.preparation import Preparation
from verifix.io.data.text import as_texts, columns_named, pair_among, text_source
from verifix.io.optional_imports import library, reason
from verifix.io.options import DataOptions
from verifix.model.class_names import class_numbers
from verifix.model.labels import UNKNOWN
from verifix.model.sources import Source

SPLITS_FILE = "dataset_dict.json"
DATASET_FILES = ("dataset_info.json", "state.json")


def is_saved_dataset(path: Path) -> bool:
    """Tell whether a folder was written by ``save_to_disk``.

    Parameters
    ----------
    path
        The folder.

    Returns
    -------
    bool
        Whether it was.
    """
    return (path / SPLITS_FILE).is_file() or all((path / file).is_file() for file in DATASET_FILES)


def read_saved(path: Path, split: str | None, options: DataOptions, preparation: Preparation) -> Source:
    """Read a dataset that ``save_to_disk`` has written; nothing in it is run, and images stay on the disk.

    Parameters
    ----------
    path
        The folder.
    split
        Which split, where there are several.
    options
        Names of the columns.
    preparation
        How to turn samples into inputs, and the class names.

    Returns
    -------
    Source
        The samples.

    Raises
    ------
    DataError
        If the folder is damaged, or has no usable columns.
    UsageError
        If the split is not there, or one must be chosen.
    """
    datasets = library("datasets", "datasets", "text")
    try:
        content = datasets.load_from_disk(str(path))
    except Exception as error:  # arrow, json and the library each have errors of their own
        raise DataError(
            f"{path} is not a readable folder of datasets.save_to_disk ({reason(error)}); save it again"
        ) from None
    data = _one_split(content, path, split)
    columns = _content(data, options, preparation, path)
    content_name = columns[0]
    is_feature = isinstance(data.features[content_name], datasets.Image)
    is_image = is_feature or options.image_column is not None
    _ = (preparation.for_images if is_image else preparation.for_texts)(str(path))  # before labels are looked at
    place = partial(_row_of, path)
    numbers = _numbers(data, options, preparation, path) if preparation.labelled else [UNKNOWN] * len(data)
    names = list(data.features)
    if not is_image:
        texts = text_source(as_texts([data[name] for name in columns]), numbers, place, preparation, str(path))
        return with_groups(texts, options, names, data.__getitem__, path)
    encoded = data.select_columns([content_name])
    if is_feature:
        encoded = encoded.cast_column(content_name, datasets.Image(decode=False))
    where = partial(_image_of, path)
    read = partial(_bytes_of, encoded, content_name, root_of(options.image_root, path), where)
    images = Source(Images(read, where, numbers, preparation, str(path), upright=True))
    return with_groups(images, options, names, data.__getitem__, path)


def _one_split(content: Any, path: Path, split: str | None) -> Any:
    if not isinstance(content, dict):
        if split is not None:
            raise UsageError(f"{path} has no splits; give it without :{split}")
        return content
    names = ", ".join(content)
    if split is None and len(content) != 1:
        raise UsageError(f"{path} has the splits {names}; choose one as {path}:{next(iter(content), 'train')}")
    if split is not None and split not in content:
        raise UsageError(f"{path} has no split {split!r}; it has {names}")
    return content[split] if split is not None else next(iter(content.values()))


def _content(data: Any, options: DataOptions, preparation: Preparation, path: Path) -> list[str]:
    """Choose the column of images or texts: the one named, or the only one there is; or two columns of texts."""
    import datasets

    if options.text_column is not None:
        return columns_named(options.text_column, list(data.features), str(path))
    if options.image_column is not None:
        if options.image_column not in data.features:
            raise DataError(f"{path} has no column {options.image_column!r} (it has {', '.join(data.features)})")
        return [options.image_column]
    images = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
    texts = [name for name, kind in data.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")
             and name != options.label_column and not isinstance(kind, datasets.Image)]  # fmt: skip
    found = (texts or images) if preparation.tokenize is not None else (images or texts)
    pair = pair_among(texts, str(path)) if preparation.tokenize is not None else []
    if pair:
        return pair
    if "text" in found:
        return ["text"]
    if len(found) != 1:
        raise DataError(
            f"{path} has the columns {', '.join(data.features)}; name the one of images or texts with --image-column "
            "or --text-column, or two of texts with --text-column a,b"
        )
    return [str(found[0])]


def _label_column(data: Any, options: DataOptions, path: Path) -> str:
    """Choose the column of the labels: the one named, or else `LABEL_COLUMNS`."""
    known = {name: data[name] for name in LABEL_COLUMNS if name in data.features and options.label_column is None}
    name = options.label_column or LABEL_COLUMNS[0]
    if known:
        name = only_column(known, str(path), "name the right column with --label-column")
    if name not in data.features:
        raise DataError(
            f"{path} has no column {name!r} (it has {', '.join(data.features)}); name the labels with --label-column"
        )
    return name


def _numbers(data: Any, options: DataOptions, preparation: Preparation, path: Path) -> list[int]:
    """Return the labels as outputs of the model."""
    name = _label_column(data, options, path)
    own = getattr(data.features[name], "names", None)
    names = [own] if own is not None else []
    return class_numbers(list(data[name]), preparation.class_names, f"{path}", partial(_row_of, path), names)


def _row_of(path: Path, index: int) -> str:
    return f"row {index} of {path}"


def _image_of(path: Path, index: int) -> str:
    return f"the image in {_row_of(path, index)}"


def _bytes_of(data: Sequence[Any], column: str, root: Path, place: Callable[[int], str], index: int) -> bytes:
    return image_bytes(data[index][column], root, place(index))

"""Image sets with labels that are wrong by nature, in the layouts in which their authors give them out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from verifix.errors import DataError, UsageError
from verifix.io.data.images import Images, from_files
from verifix.io.data.left_out import note_left_out
from verifix.io.data.preparation import Preparation
from verifix.io.data.tables import text_of
from verifix.model.class_names import class_numbers

WEBVISION_LISTS = {
    "train_google": "train_filelist_google.txt",
    "train_flickr": "train_filelist_flickr.txt",
    "val": "val_filelist.txt",
}
WEBVISION_HOME = "get WebVision 1.0 from its authors, https://data.vision.ee.ethz.ch/cvl/webvision/dataset2017.html"
CLOTHING_LISTS = {
    "noisy_train": ("noisy_train_key_list.txt", "noisy_label_kv.txt"),
    "clean_train": ("clean_train_key_list.txt", "clean_label_kv.txt"),
    "clean_val": ("clean_val_key_list.txt", "clean_label_kv.txt"),
    "clean_test": ("clean_test_key_list.txt", "clean_label_kv.txt"),
}
CLOTHING_HOME = "ask its authors for Clothing1M as https://github.com/Cysu/noisy_label says"
MINI_CLASSES = 50
"""Mini-WebVision is the first 50 classes of WebVision's Google subset."""


def choose(name: str, rest: str, choices: Sequence[str], default: str | None = None) -> tuple[Path, str]:
    """Split ``DIR:CHOICE``.

    Parameters
    ----------
    name
        Of the set, for the message.
    rest
        What stands behind it.
    choices
        What may be chosen.
    default
        What is chosen if nothing is given.

    Returns
    -------
    folder : Path
        The folder.
    choice : str
        One of `choices`.

    Raises
    ------
    UsageError
        If nothing of them is chosen, or the folder does not exist.
    """
    folder, _, choice = rest.rpartition(":")
    if choice not in choices:
        folder, choice = (rest, default) if default is not None else (folder, choice)
    if choice is None or choice not in choices or not folder:
        raise UsageError(f"{name}:{rest} does not say what to read; write {name}:DIR:{'|'.join(choices)}")
    if not Path(folder).is_dir():
        raise UsageError(
            f"{folder} is not a folder; write {name}:DIR:{'|'.join(choices)} with the folder of the dataset"
        )
    return Path(folder), choice


def require(path: Path, home: str) -> Path:
    """Check that a file or folder of a set is there.

    Parameters
    ----------
    path
        The file or folder.
    home
        Where to get it.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    DataError
        If it is not.
    """
    if not path.exists():
        raise DataError(f"{path} is missing; {home}")
    return path


def read_webvision(rest: str, preparation: Preparation, *, mini: bool = False) -> Images:
    """Read WebVision 1.0.

    Parameters
    ----------
    rest
        ``DIR``, ``DIR:train_google``, ``DIR:train_flickr`` or ``DIR:val``; by default the validation images, whose
        labels people have checked.
    preparation
        How to turn an image into an input, and the class names.
    mini
        Only the first 50 classes, and of the training images only those from Google.

    Returns
    -------
    Images
        The images in the order of their list.

    Raises
    ------
    DataError
        If the layout is another.
    """
    lists = {k: v for k, v in WEBVISION_LISTS.items() if not (mini and k == "train_flickr")}
    folder, split = choose("mini-webvision" if mini else "webvision", rest, list(lists), "val")
    path = require(folder / "info" / lists[split], WEBVISION_HOME)
    root = require(folder / "val_images_256" if split == "val" else folder, WEBVISION_HOME)
    synsets = _synsets(require(folder / "info" / "synsets.txt", WEBVISION_HOME))
    pairs = [(name, int(label)) for name, label in _pairs(path)]
    limit = MINI_CLASSES if mini else len(synsets)
    kept = [(name, label) for name, label in pairs if label < limit or not mini]
    left = [name for name, label in pairs if label >= limit and mini]
    note_left_out(left, f"the list {path}", f"of other classes than the first {MINI_CLASSES}")
    return _listed(kept, root, path, preparation, synsets)


def _synsets(path: Path) -> list[list[str]]:
    """Return the namings of the classes: WordNet's numbers, all words, and the first word."""
    lines = [line.strip().partition(" ") for line in text_of(path).splitlines() if line.strip()]
    return [[n for n, _, _ in lines], [words for _, _, words in lines], [w.split(",")[0] for _, _, w in lines]]


def read_clothing1m(rest: str, preparation: Preparation) -> Images:
    """Read Clothing1M.

    Parameters
    ----------
    rest
        ``DIR:`` and one of noisy_train, clean_train, clean_val, clean_test.
    preparation
        How to turn an image into an input, and the class names.

    Returns
    -------
    Images
        The images in the order of their list.

    Raises
    ------
    DataError
        If the layout is another.
    """
    folder, split = choose("clothing1m", rest, list(CLOTHING_LISTS))
    keys_name, labels_name = CLOTHING_LISTS[split]
    lists = folder / "annotations" if (folder / "annotations").is_dir() else folder
    keys_path, labels_path = (require(lists / name, CLOTHING_HOME) for name in (keys_name, labels_name))
    categories = text_of(require(lists / "category_names_eng.txt", CLOTHING_HOME)).splitlines()
    require(folder / "images", CLOTHING_HOME)
    labels = dict(_pairs(labels_path))
    keys = [line.strip() for line in text_of(keys_path).splitlines() if line.strip()]
    unknown = next((key for key in keys if key not in labels), None)
    if unknown is not None:
        raise DataError(f"{labels_path} has no label of {unknown}, which {keys_path} lists; {CLOTHING_HOME}")
    names = [name.strip() for name in categories if name.strip()]
    return _listed([(key, int(labels[key])) for key in keys], folder, keys_path, preparation, [names])


def _pairs(path: Path) -> list[tuple[str, str]]:
    """Return the names and labels of a list with one of both in each line."""
    pairs = []
    for number, line in enumerate(text_of(path).splitlines(), 1):
        name, _, label = line.strip().rpartition(" ")
        if line.strip() and not (name and label.isascii() and label.isdigit()):
            raise DataError(f"line {number} of {path} is {line[:80]!r}; it must be a file name, a space and a number")
        if name:
            pairs.append((name, label))
    return pairs


def _listed(
    pairs: Sequence[tuple[str, int]], root: Path, path: Path, preparation: Preparation, own: Sequence[Sequence[str]]
) -> Images:
    preparation.for_images(str(path))
    if not pairs:
        raise DataError(f"{path} lists no images; check that it is complete")
    for name, _ in pairs:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(
                f"{path} lists {name}, which is outside of {root}; get the list from the authors of the dataset"
            )
        if not (root / name).is_file():
            raise DataError(f"{root / name} is missing, which {path} lists; unpack all images of the dataset there")
    source = f"the list {path}"
    place = partial(_entry, pairs, path)
    numbers = class_numbers([label for _, label in pairs], preparation.class_names, source, place, own)
    return from_files([str(root / name) for name, _ in pairs], numbers, preparation, source)


def _entry(pairs: Sequence[tuple[str, int]], path: Path, index: int) -> str:
    return f"{pairs[index][0]} in {path}"

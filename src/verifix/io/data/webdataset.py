"""Shards of webdataset: tar files in which the files of one sample share their name up to the first dot."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from verifix.errors import DataError, UsageError
from verifix.io.data.groups import with_groups
from verifix.io.data.images import Images, image_suffixes
from verifix.io.data.left_out import note_left_out
from verifix.io.data.preparation import Preparation
from verifix.io.data.text import text_source
from verifix.io.optional_imports import library
from verifix.io.options import DataOptions, group_column
from verifix.model.class_names import as_written, class_numbers
from verifix.model.labels import UNKNOWN
from verifix.model.sources import Source


class Member(NamedTuple):
    """Where the content of a file in a tar file begins, and its size in bytes."""

    path: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the content."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def read_shards(pattern: str, options: DataOptions, preparation: Preparation) -> Source:
    """Read local shards; images stay in them until they are needed.

    Parameters
    ----------
    pattern
        A ``.tar`` file, or several as ``shard-{000..003}.tar``.
    options
        The label column is the name of the label in ``json``.
    preparation
        How to turn samples into inputs, and the class names.

    Returns
    -------
    Source
        The samples, in the order in which they stand.

    Raises
    ------
    DataError
        If a shard is damaged, or a sample has no content or no label.
    UsageError
        If a shard does not exist.
    """
    names = library("webdataset.tariterators", "webdataset", "shards")
    paths = [Path(path) for path in library("webdataset.shardlists", "webdataset", "shards").expand_urls(pattern)]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} does not exist; check the path of the shards (only local files are read)")
    left: list[str] = []
    samples = [sample for path in paths for sample in _samples(path, names.base_plus_ext, left).values()]
    note_left_out(left, pattern, "without a suffix, or no regular file")
    if not samples:
        raise DataError(f"{pattern} holds no samples; each needs an image (jpg, png, …) or txt, and cls or json")
    key = _content_key(samples, pattern)
    _ = (preparation.for_texts if key == "txt" else preparation.for_images)(pattern)  # before labels are looked at
    contents = [_content(sample, key) for sample in samples]
    further = [sample[k].name for sample in samples for k in _image_keys(sample)[1:]] if key == "image" else []
    note_left_out(further, pattern, "beside another image of the same sample")
    place = partial(_place, contents)
    if preparation.labelled:
        labels = [_label(sample, options, place(i)) for i, sample in enumerate(samples)]
        numbers = class_numbers(labels, preparation.class_names, pattern, place)
    else:
        numbers = [UNKNOWN] * len(samples)
    if key == "txt":
        source = text_source([_text(member) for member in contents], numbers, place, preparation, pattern)
    else:
        source = Source(Images(partial(_bytes_of, contents), place, numbers, preparation, pattern))
    named = [key for key in [group_column(options)] if key is not None]
    return with_groups(source, options, named, partial(_in_json, samples, place), pattern)


def _in_json(samples: Sequence[Mapping[str, Member]], place: Callable[[int], str], name: str) -> list[Any]:
    """Return what stands under a name in the json of every sample."""
    return [_json_entry(sample, name, place(i), "group", "--groups") for i, sample in enumerate(samples)]


def _samples(path: Path, split_name: Any, left: list[str]) -> dict[str, dict[str, Member]]:
    """Return the files of each sample of a shard by their endings, and add to `left` what belongs to no sample."""
    samples: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(path, "r:") as file:  # without compression, which would leave no place to read from
            size = path.stat().st_size
            for info in file:
                base, ending = split_name(info.name)
                name = Path(base or info.name).name
                if info.isdir() or name.startswith("__") or (base is None and name.startswith(".")):
                    continue
                if base is None or not info.isreg():
                    left.append(info.name)
                    continue
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError(f"{info.name} extends beyond the end of the file")
                sample = samples.setdefault(base, {})
                if ending.lower() in sample:
                    raise DataError(f"{info.name} is twice in {path}; name each sample once, and write it again")
                sample[ending.lower()] = Member(path, info.name, info.offset_data, info.size)
            _check_end(path, file, size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{path} is not a readable tar file without compression ({error}); check that it is complete"
        ) from None
    return samples


def _check_end(path: Path, file: tarfile.TarFile, size: int) -> None:
    """Refuse a file that was cut between two members, which the library takes for a complete one."""
    with path.open("rb") as raw:
        raw.seek(min(file.offset, size))
        ending = raw.read(512)
    if len(ending) < 512 or any(ending):
        raise tarfile.ReadError("it has no end mark")


def _content_key(samples: Sequence[Mapping[str, Member]], pattern: str) -> str:
    if any(map(_image_keys, samples)):
        return "image"
    if any("txt" in sample for sample in samples):
        return "txt"
    endings = sorted({ending for sample in samples for ending in sample})
    raise DataError(f"{pattern} holds only {', '.join(endings[:5])}; each sample needs an image (jpg, png, …) or txt")


def _image_keys(sample: Mapping[str, Member]) -> list[str]:
    """Return the endings of a sample's images, the one that is read first."""
    return [key for suffix in image_suffixes() if (key := suffix.removeprefix(".")) in sample]


def _content(sample: Mapping[str, Member], key: str) -> Member:
    member = sample.get("txt") if key == "txt" else next((sample[k] for k in _image_keys(sample)), None)
    if member is None:
        first = next(iter(sample.values()))
        raise DataError(
            f"{first.name} in {first.path} has no {'txt' if key == 'txt' else 'image'} beside it, as other samples "
            "have; complete the sample, or leave it out"
        )
    return member


def _label(sample: Mapping[str, Member], options: DataOptions, place: str) -> Any:
    wanted = options.label_column
    if "json" in sample and wanted != "cls" and ("cls" not in sample or wanted is not None):
        return _json_entry(sample, wanted or "label", place, "label", "--label-column")
    if "cls" in sample and wanted in (None, "cls"):
        own, other = _text(sample["cls"]).strip(), None if wanted else _label_beside(sample)
        if other is not None and as_written(other) != as_written(own):
            raise DataError(
                f"{place} has the label {own!r} in its cls and {other!r} in its json; correct one of them, or choose "
                "with --label-column cls or --label-column label"
            )
        return own
    if "cls" in sample:
        raise DataError(f"{place} has no json with {wanted!r}, which --label-column names; omit it to read the cls")
    raise DataError(f"{place} has no label (its sample has {', '.join(sample)}); add cls, or json with a label")


def _json_entry(sample: Mapping[str, Member], name: str, place: str, what: str, flag: str) -> Any:
    if "json" not in sample:
        raise DataError(f"{place} has no json beside it to read the {what} {name!r} from; add one")
    try:
        return json.loads(_text(sample["json"]))[name]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f'{place} has a json without the {what} {name!r} ({type(error).__name__}); write {{"{name}": …}}, or '
            f"name it with {flag}"
        ) from None


def _label_beside(sample: Mapping[str, Member]) -> Any:
    """Return the label in a json beside a cls; None if it holds something else."""
    try:
        return json.loads(_text(sample["json"]))["label"]
    except (ValueError, KeyError, TypeError, RecursionError, DataError):
        return None


def _text(member: Member) -> str:
    try:
        return member.read().decode()
    except UnicodeDecodeError:
        raise DataError(f"{member.name} in {member.path} is not UTF-8; write the shard with that encoding") from None


def _place(members: Sequence[Member], index: int) -> str:
    return f"{members[index].name} in {members[index].path}"


def _bytes_of(members: Sequence[Member], index: int) -> bytes:
    return members[index].read()

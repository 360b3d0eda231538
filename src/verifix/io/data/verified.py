"""What was decided on samples of a data set: read from files of records, checked, and put in place of given labels."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from verifix.errors import DataError, UsageError
from verifix.io.data.groups import Grouped
from verifix.io.data.identity import NAMED, files_of, fingerprint_of, folder_of
from verifix.io.data.preparation import Preparation
from verifix.io.data.records import VERIFIED, Header, Record, header_of, read_lines
from verifix.io.data.tally import Tally, decided_label
from verifix.io.options import DataOptions, group_column
from verifix.model.class_names import class_numbers
from verifix.model.labels import LABEL_KEYS
from verifix.model.sources import Source, ask_dataset
from verifix.options import GroupOptions
from verifix.progress import note

Opener = Callable[[str, DataOptions, Preparation], Source]


@dataclass(frozen=True)
class Decisions:
    """What was decided in one round or several.

    Attributes
    ----------
    header
        The data set, and its random part over all rounds.
    labels
        Name of the right class by id, where it was decided and nobody says otherwise.
    left_out
        Why other samples with records have none, by id: "unsure", "skip" or "disagreement".
    """

    header: Header
    labels: dict[int, str]
    left_out: dict[int, str]

    @property
    def counted(self) -> frozenset[int]:
        """Ids of the samples of the random part that are a random sample: up to the first one without a record.

        Who verifies out of turn, such as one class at a time, has no random sample before the turn is over.
        """
        return frozenset(itertools.takewhile(lambda each: each in self.labels or each in self.left_out,
                                             self.header.random))  # fmt: skip


def read_decisions(path: str | Path) -> Decisions:
    """Read a file of records, and those of the earlier rounds that it names.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Decisions
        What they say together; of a person's records on a sample, the last one that was not taken back counts.

    Raises
    ------
    UsageError
        If a file is not there.
    DataError
        If a line contradicts itself, or the rounds are of different data sets.
    """
    header, own = read_lines(path, VERIFIED, Record)
    records: list[Record] = []
    for place in header.earlier:
        earlier, found = read_lines(place, VERIFIED, Record)
        check_same(earlier, header.length, header.fingerprint, str(place), f"that of {path}")
        records += checked_records(found, earlier, place)
    return _together(header, [*records, *checked_records(own, header, path)])


def _together(header: Header, records: Sequence[Record]) -> Decisions:
    tally = Tally(records)
    labels: dict[int, str] = {}
    left_out: dict[int, str] = {}
    for number in tally.voted():
        record = tally.outcome(number)
        label = None if record is None else decided_label(record)
        if label is not None:
            labels[number] = label
        else:
            left_out[number] = "disagreement" if record is None else record.status
    return Decisions(header, labels, left_out)


def checked_records(records: Sequence[Record], header: Header, path: object) -> Sequence[Record]:
    """Return records; refuse those that contradict themselves, or name a class that there is not."""
    for number, record in enumerate(records, 2):
        label = decided_label(record)
        fault = ""
        if record.status in ("ok", "relabel") and label is None:
            fault = f"has the status {record.status!r} but no label"
        elif record.status == "relabel" and record.verified is None:
            fault = "has the status 'relabel' but no verified label"
        elif record.status == "ok" and record.label is not None and label != record.label:
            fault = f"has the status 'ok', but the given label {record.label!r} and the verified label {label!r}"
        elif label is not None and label not in header.classes:
            fault = f"has the label {label!r}, which is not among the classes of line 1"
        if fault:
            raise DataError(
                f"record {number - 1} of {path} (sample {record.id}) {fault}; correct it, or verify it again"
            )
    return records


def check_same(header: Header, length: int, fingerprint: str, path: str, what: str) -> None:
    """Refuse a data set that is not the one that a file is about.

    Parameters
    ----------
    header
        Of the file.
    length, fingerprint
        Of the data set.
    path
        The file, for messages.
    what
        The data set, for messages.

    Raises
    ------
    DataError
        If it has another length, or other names or labels.
    """
    if header.length != length:
        raise DataError(
            f"{path} is about a data set of {header.length} samples, but {what} has {length}; name the right one "
            "with --pool, or verify samples of this one"
        )
    if header.fingerprint != fingerprint:
        raise DataError(
            f"{path} is about a data set with other file names or labels than {what}, so its ids may mean other "
            "samples; name the right one with --pool, or restore it as it was"
        )


class Verified(Grouped, Dataset[Any]):
    """Samples of a data set with the labels that were decided.

    Parameters
    ----------
    origin
        The data set.
    ids
        Which of its samples.
    labels
        Their classes, as outputs of the model.
    weights
        How much each counts where a gain is measured: one over the probability of its draw, 0 if it was not drawn at
        random. Empty if nothing is known of the draw.
    """

    def __init__(self, origin: Any, ids: Sequence[int], labels: Sequence[int], weights: Sequence[float] = ()) -> None:
        self.origin = origin
        self.ids = ids
        self.labels = labels
        self.weights = weights
        groups = getattr(origin, "groups", ())
        self.groups = [groups[i] for i in ids] if groups else ()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Any:
        """Return a sample as its data set has it, with the label that was decided."""
        item, label = self.origin[self.ids[index]], self.labels[index]
        if isinstance(item, dict):
            return {name: value for name, value in item.items() if name not in LABEL_KEYS} | {"labels": label}
        return item[0], label

    def weight(self, index: int) -> float | None:
        """Return how much a sample counts where a gain is measured; None if that is not known."""
        return self.weights[index] if self.weights else None

    def place(self, index: int) -> Any:
        """Return where a sample stands."""
        return ask_dataset(self.origin, self.ids[index], "place")

    def file(self, index: int) -> Any:
        """Return the file of a sample."""
        return ask_dataset(self.origin, self.ids[index], "file")

    def text(self, index: int) -> Any:
        """Return the text that a sample was made from."""
        return ask_dataset(self.origin, self.ids[index], "text")

    def fingerprint(self, index: int) -> Any:
        """Return the digest of what a sample was before it was prepared."""
        return ask_dataset(self.origin, self.ids[index], "fingerprint")

    def remark(self) -> str:
        """Say what the data set has to say of the samples that were read."""
        remark = getattr(self.origin, "remark", None)
        return str(remark()) if callable(remark) else ""


@dataclass(frozen=True, kw_only=True)
class _BaseOptions(GroupOptions, DataOptions):
    """How the data set is read: its columns, and how its samples become inputs."""


def is_verified(path: str | Path) -> bool:
    """Tell whether a file is one of records."""
    header = header_of(path)
    return header is not None and header.format == VERIFIED


def read_verified(path: Path, options: DataOptions, preparation: Preparation, opener: Opener) -> Source:
    """Read the samples on which something was decided, with their labels.

    Parameters
    ----------
    path
        A file of records.
    options
        Settings; those that name columns take the place of what the file says.
    preparation
        How to turn samples into inputs, and the class names.
    opener
        Opens the data set that the file is about.

    Returns
    -------
    Source
        The samples; a note says how many are left out, and why.

    Raises
    ------
    DataError
        If nothing was decided, or the data set is not as it was.
    """
    decisions = read_decisions(path)
    source = origin_of(decisions.header, options, preparation, opener, str(path))
    ids = sorted(decisions.labels)
    if not ids:
        raise DataError(f"{path} has no sample with a verified label; verify some samples first")
    if not preparation.labelled:
        labels = [-1] * len(ids)
    else:
        labels = _numbers([decisions.labels[i] for i in ids], decisions.header, preparation, path)
    _note_left_out(decisions, path)
    return replace(source, dataset=Verified(source.dataset, ids, labels, weights_of(decisions, ids)))


def weights_of(decisions: Decisions, ids: Sequence[int]) -> list[float]:
    """Return how much samples count where a gain is measured: those of the random part alike, others not at all."""
    probability = decisions.header.probability
    if probability is None:
        return []
    counted = decisions.counted
    return [1 / probability if i in counted else 0.0 for i in ids]


def origin_of(header: Header, options: DataOptions, preparation: Preparation, opener: Opener, path: str) -> Source:
    """Open the data set that a file is about, and check that it is the same."""
    data = options.pool or header.data
    if not data:
        raise UsageError(f"{path} does not say where its data set is; name it with --pool")
    own = {field.name: getattr(options, field.name) for field in fields(DataOptions) if field.name != "pool"}
    named = {
        name: own[name] if own[name] is not None and name != "classes" else header.options.get(name) for name in NAMED
    }
    base = _BaseOptions(**own | named, groups=group_column(options))
    classes = header.options.get("classes")
    how = replace(
        preparation,
        class_names=None if classes is None else tuple(classes),
        labelled=bool(header.options.get("labels", True)),
    )
    if is_verified(data):
        raise UsageError(f"{data} is a file of records itself; name the data set that {path} is about with --pool")
    source = opener(data, base, how)
    dataset: Any = source.dataset
    files = files_of(dataset, len(dataset), folder_of(data, base.image_root))
    check_same(header, len(dataset), fingerprint_of(files, dataset.labels), path, data)
    return source


def _numbers(names: Sequence[str], header: Header, preparation: Preparation, path: Path) -> list[int]:
    own = header.options.get("classes")
    if own is None or preparation.class_names is None:
        numbers = [header.classes.index(name) for name in names]
        if own is not None:
            note(f"{path} has class names but the model has none, so their order in the file is that of the outputs")
        return numbers
    return class_numbers(names, preparation.class_names, str(path), lambda i: f"a record of {path} ({names[i]!r})")


def _note_left_out(decisions: Decisions, path: Path) -> None:
    """Say how many samples are not used, and how many of the random part do not count as a random sample."""
    if decisions.left_out:
        what = ", ".join(f"{count} {why}" for why, count in sorted(Counter(decisions.left_out.values()).items()))
        note(f"{path}: {len(decisions.left_out)} samples are left out: {what}")
    if decisions.header.probability is None:
        return
    counted, drawn = decisions.counted, [i for i in decisions.header.random if i in decisions.labels]
    early = [i for i in drawn if i not in counted]
    if early:
        note(
            f"{path}: {len(early)} samples of the random part were verified before others that were drawn earlier, and "
            f"only train; verify {len(decisions.header.random) - len(counted)} more in their order to count them"
        )
    lost = [i for i in counted if i in decisions.left_out]
    if lost:
        note(
            f"{path}: {len(lost)} of {len(counted)} random samples have no agreed label, so what is measured holds for "
            "samples whose label can be told"
        )

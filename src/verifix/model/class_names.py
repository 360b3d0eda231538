"""Class names: those that a model has of its own, and labels that become outputs of the model by name."""

from __future__ import annotations

import difflib
import math
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from decimal import Decimal
from typing import Any

from torch import nn

from verifix.errors import DataError, UsageError, first_of, printable
from verifix.progress import note

WHOLE = re.compile(r"([+-]?[0-9]{1,18})\.0*")
NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
DECIMAL = re.compile(r"[+-]?[0-9]*\.[0-9]*(e[+-]?[0-9]+)?", re.IGNORECASE)

MOST_SPELLED = 60
"""Class names up to which a message spells out what to paste."""

Spelling = Callable[[Sequence[str]], str]
"""How class names are given: as a flag of the command line, or as an argument in Python."""


def as_flag(names: Sequence[str]) -> str:
    """Return class names as the flag that gives them, ready to paste."""
    return f"--classes {shlex.quote(','.join(names))}"


def as_argument(names: Sequence[str]) -> str:
    """Return class names as the argument that gives them, ready to paste."""
    return f"classes={list(names)!r}"


def checked_names(classes: Any) -> tuple[str, ...] | None:
    """Return class names that were given in Python; None if there are none. Refuse what is no list of texts."""
    if classes is None:
        return None
    names = [] if isinstance(classes, str) else list(classes)
    if not names or not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) < len(names):
        raise UsageError(
            f"classes is {first_of(map(repr, names), 10) or repr(classes)}; it must be a list of texts, one name for "
            "each output of the model, each once"
        )
    return tuple(names)


def names_of(model: nn.Module | None) -> tuple[str, ...] | None:
    """Return the class names that a model of transformers or timm has of its own, in the order of its outputs."""
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(labels, Mapping) and all(label == f"LABEL_{i}" for i, label in labels.items()):
        labels = None  # what transformers writes where nobody gave names
    config = getattr(model, "pretrained_cfg", None)
    known = labels or (config.get("label_names") if isinstance(config, Mapping) else None)
    return names_among(known, model)


def names_among(labels: object, model: nn.Module | None) -> tuple[str, ...] | None:
    """Return class names if there is one for each output of a model."""
    if isinstance(labels, Mapping):
        numbered = {int(key): value for key, value in labels.items() if str(key).isdigit()}
        labels = [numbered[i] for i in range(len(labels)) if i in numbered]
    if not isinstance(labels, (list, tuple)) or not labels or any(isinstance(label, bool) for label in labels):
        return None  # true and false are what YAML makes of yes and no, and no names
    outputs = getattr(model, "num_classes", None) or getattr(getattr(model, "config", None), "num_labels", None)
    return tuple(map(str, labels)) if outputs in (None, len(labels)) else None


def named(label: int, names: Sequence[str] | None) -> str:
    """Return what a class is called, for reading: its name, or its number where there is none."""
    return printable(names[label], one_line=True) if names is not None and label < len(names) else f"class {label}"


def class_numbers(
    labels: Sequence[object],
    classes: Sequence[str] | None,
    source: str,
    place: Callable[[int], str],
    own: Sequence[Sequence[str]] = (),
    spell: Spelling = as_flag,
) -> list[int]:
    """Turn labels into outputs of the model.

    Parameters
    ----------
    labels
        Class names, or class numbers as whole numbers or as text; 1.0 is 1, as integers with blanks become floats.
    classes
        Class names of the model, in the order of its outputs; None if they are not known.
    source
        What the labels come from, for messages.
    place
        Says where a label stands, by its index, for messages.
    own
        Namings of the data itself, each with the name of every number; the first that the model knows is used.
    spell
        How class names are given, for messages.

    Returns
    -------
    list of int
        The output of each label.

    Raises
    ------
    DataError
        If a label is neither a name that the model has nor a whole number.
    """
    labels = _without_decimals(
        labels, {*_table(classes or ()), *(_plain(name) for naming in own for name in naming)}, place
    )
    _check_kinds(labels, place)
    if not own or all(isinstance(label, str) for label in labels):
        return _by_name(labels, classes, source, place, spell)
    for i, label in enumerate(labels):
        if isinstance(label, int) and not 0 <= label < len(own[0]):
            raise DataError(f"{place(i)} has the label {label}, but {source} names {len(own[0])} classes; correct it")
    if classes is not None:
        return _by_own_names(labels, classes, source, place, own)
    note(
        f"{source} has class names but the model has none, so its class numbers are used as the model's outputs; give "
        "--classes to map them by name"
    )
    return _by_name(labels, own[0], source, place, spell)


def _without_decimals(labels: Sequence[object], names: Container[str], place: Callable[[int], str]) -> list[object]:
    """Turn whole floats into integers, and their texts into those of integers if all texts are numbers."""
    texts = [label.strip() for label in labels if isinstance(label, str)]
    if not all((NUMBER.fullmatch(text) or DECIMAL.fullmatch(text)) and _plain(text) not in names for text in texts):
        return [label if isinstance(label, str) else _whole(label) for label in labels]
    whole = [_whole(label) for label in labels]
    for i, label in enumerate(whole):
        if isinstance(label, str) and not NUMBER.fullmatch(label.strip()):
            raise DataError(
                f"{place(i)} has the label {label!r}; labels must be class indices (integers) or class names, so "
                "correct the label"
            )
    return whole


def as_written(label: object) -> str:
    """Return a label as text, a whole number without decimals, so that 1, 1.0 and "1.0" are the same.

    Parameters
    ----------
    label
        The label.

    Returns
    -------
    str
        The text.
    """
    return str(_whole(label)).strip()


def _whole(label: object) -> object:
    """Return a class number that is a float, a decimal or the text of one as an integer or its text."""
    if isinstance(label, (float, Decimal)) and math.isfinite(label) and -(2**53) < label < 2**53:
        return int(label) if label == int(label) else label
    found = WHOLE.fullmatch(label.strip()) if isinstance(label, str) else None
    return label if found is None else found[1]


def _check_kinds(labels: Sequence[object], place: Callable[[int], str]) -> None:
    for i, label in enumerate(labels):
        if isinstance(label, str) and label.strip():
            continue
        if type(label) is not int or label.bit_length() > 62:
            raise DataError(
                f"{place(i)} has the label {label!r}; labels must be class indices (integers) or class names"
            )


def _by_name(
    labels: Sequence[object],
    classes: Sequence[str] | None,
    source: str,
    place: Callable[[int], str],
    spell: Spelling,
) -> list[int]:
    texts = {label.strip() for label in labels if isinstance(label, str)}
    table = _table(classes or ())
    if all(NUMBER.fullmatch(text) for text in texts) and not all(_plain(text) in table for text in texts):
        return [int(str(label)) for label in labels]
    if texts and classes is None:
        _check_mixed(labels, place)
        decimal = next((i for i, label in enumerate(labels) if DECIMAL.fullmatch(str(label).strip())), None)
        if decimal is not None:
            raise DataError(
                f"{place(decimal)} has the label {labels[decimal]!r}; labels must be class indices (integers) or class "
                "names"
            )
        names = sorted(texts)
        raise DataError(
            f"the labels of {source} are names ({first_of(names)}), and the order of the model's outputs is not known; "
            f"give {'--classes' if spell is as_flag else 'classes='} with all class names in the order of the outputs"
            f"{_ready(names, spell)}"
        )
    return [
        label if isinstance(label, int) else _look_up(str(label), table, classes or (), place(i))
        for i, label in enumerate(labels)
    ]


def _ready(names: Sequence[str], spell: Spelling) -> str:
    """Return what to paste if the classes are those that were met, in alphabetical order."""
    if len(names) > MOST_SPELLED or any("," in name for name in names):
        return ""
    return f", for example {spell(names)} if these are all and they are in alphabetical order"


def _check_mixed(labels: Sequence[object], place: Callable[[int], str]) -> None:
    """Refuse a label such as "nan" among class numbers, by name."""
    numbers = [not isinstance(label, str) or bool(NUMBER.fullmatch(str(_whole(label)).strip())) for label in labels]
    if any(numbers) and not all(numbers):
        i = numbers.index(False)
        raise DataError(
            f"{place(i)} has the label {labels[i]!r}, and {sum(numbers)} of {len(labels)} labels are class numbers; "
            "correct it or leave the sample out, or give --classes if it is a class name"
        )


def _by_own_names(
    labels: Sequence[object],
    classes: Sequence[str],
    source: str,
    place: Callable[[int], str],
    own: Sequence[Sequence[str]],
) -> list[int]:
    """Map numbers to the data's own names, and those to the model's outputs."""
    table = _table(classes)
    used = {label for label in labels if isinstance(label, int)}
    names = next((naming for naming in own if all(_plain(naming[k]) in table for k in used)), own[0])
    numbers = [
        _look_up(names[label] if isinstance(label, int) else str(label), table, classes, place(i))
        for i, label in enumerate(labels)
    ]
    if any(number != label for number, label in zip(numbers, labels, strict=True) if isinstance(label, int)):
        note(f"the classes of {source} are in another order than the model's; they were mapped by name")
    return numbers


def _look_up(name: str, table: dict[str, list[int]], classes: Sequence[str], where: str) -> int:
    numbers = table.get(_plain(name), [])
    if len(numbers) == 1:
        return numbers[0]
    if numbers:
        raise DataError(
            f"{where} has the label {name!r}, which is the name of both output {numbers[0]} and {numbers[1]}; "
            "give class numbers instead of names"
        )
    close = difflib.get_close_matches(name, classes, 1)
    hint = f"did you mean {close[0]!r}? Correct the label" if close else "correct the label"
    raise DataError(
        f"{where} has the label {name!r}, which is not among the model's classes {', '.join(classes[:10])}"
        f"{', …' if len(classes) > 10 else ''}; {hint}, or check --classes"
    )


def check_classes(classes: Sequence[str]) -> None:
    """Check that class names given by the user differ.

    Parameters
    ----------
    classes
        The names.

    Raises
    ------
    DataError
        Naming one that is there twice.
    """
    name, count = Counter(map(_plain, classes)).most_common(1)[0] if classes else ("", 1)
    if count > 1 or "" in map(_plain, classes):
        raise DataError(f"--classes names {name!r} twice; name each class once" if count > 1 else "--classes is empty "
                        "or has an empty name; give all class names in the order of the outputs")  # fmt: skip


def _table(classes: Sequence[str]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for i, name in enumerate(classes):
        table.setdefault(_plain(name), []).append(i)
    return table


def _plain(name: str) -> str:
    """Spell a name in one form of Unicode: file systems differ in it."""
    return unicodedata.normalize("NFC", name).strip()

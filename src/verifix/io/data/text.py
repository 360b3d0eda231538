"""Texts and pairs of texts, cut into tokens when they are read, and padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from verifix.errors import DataError, UsageError
from verifix.io.data.groups import Grouped
from verifix.io.data.labels import check_column
from verifix.io.data.preparation import Preparation, Text, Tokens
from verifix.model.sources import Source
from verifix.progress import note
from verifix.settings import split_list

PAIRS = (
    *(("text", "text_pair"), ("text1", "text2"), ("text_a", "text_b"), ("sentence1", "sentence2")),
    *(("sentence_a", "sentence_b"), ("premise", "hypothesis"), ("question", "sentence"), ("question", "passage")),
    *(("question", "context"), ("question1", "question2"), ("query", "passage"), ("query", "document")),
)
"""Columns that hold pairs of texts, as data sets on the Hugging Face Hub name them, in the order that models take."""


def columns_named(given: Sequence[str] | str, names: Sequence[str], source: str) -> list[str]:
    """Return the columns of texts that the user named.

    Parameters
    ----------
    given
        One name, or two as a list or joined by a comma.
    names
        The columns that there are.
    source
        What they are columns of, for messages.

    Returns
    -------
    list of str
        One column, or two for pairs.

    Raises
    ------
    UsageError
        If there are more.
    DataError
        If one is not there.
    """
    found = [given] if isinstance(given, str) and given in names else split_list(given)
    if not 1 <= len(found) <= 2:
        raise UsageError(f"--text-column names {len(found)} columns; a sample is one text, or a pair of two")
    for name in found:
        check_column(name, names, source, "name the right one with --text-column")
    return found


def pair_among(names: Sequence[str], source: str) -> list[str]:
    """Return the two columns that hold pairs of texts, by their names, with a note.

    Parameters
    ----------
    names
        The columns that there are.
    source
        What they are columns of, for messages.

    Returns
    -------
    list of str
        The two, or none.

    Raises
    ------
    DataError
        If there are several, or a column of texts beside them.
    """
    found = [list(pair) for pair in PAIRS if set(pair) <= set(names)]
    if not found:
        return []
    first, others = found[0], [each for pair in found[1:] for each in pair]
    others += [name for name in ("text",) if name in names]
    beside = [name for name in others if name not in first]
    if beside:
        raise DataError(
            f"{source} has the columns {first[0]} and {first[1]}, which may be a pair of texts, and {beside[0]}; name "
            f"what the model takes with --text-column, such as {first[0]},{first[1]} or {beside[0]}"
        )
    note(f"{source}: {first[0]} and {first[1]} are read as pairs of texts; --text-column names others")
    return first


def as_texts(columns: Sequence[Sequence[Any]]) -> list[Any]:
    """Return the texts of one column, or the pairs of two."""
    return list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))


class Texts(Grouped, Dataset[dict[str, Any]]):
    """Texts with labels.

    Parameters
    ----------
    texts
        The texts, or pairs of them.
    labels
        Class indices.
    tokenize
        Turns texts into tensors by name, each ``[texts, tokens]``.
    place
        Says where a text stands, by its index, for messages.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        labels: Sequence[int],
        tokenize: Callable[[Sequence[Text]], Tokens],
        place: Callable[[int], str],
    ) -> None:
        self.texts = texts
        self.labels = labels
        self.tokenize = tokenize
        self.place = place

    def text(self, index: int) -> str:
        """Return a text, or both of a pair."""
        text = self.texts[index]
        return text if isinstance(text, str) else " | ".join(text)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the tensors ``[tokens]`` of one text by name, and its label under ``labels``."""
        return {name: x[0] for name, x in self.tokenize([self.texts[index]]).items()} | {"labels": self.labels[index]}


def text_source(
    texts: Sequence[Any],
    labels: Sequence[int],
    place: Callable[[int], str],
    preparation: Preparation,
    source: str,
) -> Source:
    """Return texts with labels, and how to put them into batches.

    Parameters
    ----------
    texts
        The texts, or pairs of them as tuples.
    labels
        Class indices.
    place
        Says where a text stands, by its index, for messages.
    preparation
        How to turn texts into inputs.
    source
        What they come from, for messages.

    Returns
    -------
    Source
        Yields dictionaries of tensors ``[tokens]``; its batches are padded.

    Raises
    ------
    DataError
        If the model takes no texts, or one of these is none.
    """
    tokenize, pad = preparation.for_texts(source)
    for i, text in enumerate(texts):
        for part in text if isinstance(text, tuple) else (text,):
            if not isinstance(part, str) or not part.strip():
                raise DataError(f"{place(i)} has the text {part!r}; give it words, or leave the sample out")
    return Source(Texts(texts, labels, tokenize, place), partial(_batch, pad=pad))


def _batch(items: Sequence[dict[str, Any]], pad: Callable[[Sequence[Tokens]], Tokens]) -> dict[str, Any]:
    inputs = [{name: x for name, x in item.items() if name != "labels"} for item in items]
    return {**pad(inputs), "labels": torch.tensor([item["labels"] for item in items])}

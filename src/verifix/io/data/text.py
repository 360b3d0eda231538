"""Texts, cut into tokens when they are read, and padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from verifix.errors import DataError
from verifix.io.data.groups import Grouped
from verifix.io.data.preparation import Preparation, Tokens
from verifix.model.sources import Source


class Texts(Grouped, Dataset[dict[str, Any]]):
    """Texts with labels.

    Parameters
    ----------
    texts
        The texts.
    labels
        Class indices.
    tokenize
        Turns texts into tensors by name, each ``[texts, tokens]``.
    place
        Says where a text stands, by its index, for messages.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[int],
        tokenize: Callable[[Sequence[str]], Tokens],
        place: Callable[[int], str],
    ) -> None:
        self.texts = texts
        self.labels = labels
        self.tokenize = tokenize
        self.place = place

    def text(self, index: int) -> str:
        """Return a text."""
        return self.texts[index]

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
        The texts.
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
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()), None)
    if wrong is not None:
        raise DataError(f"{place(wrong)} has the text {texts[wrong]!r}; give it words, or leave the sample out")
    return Source(Texts(texts, labels, tokenize, place), partial(_batch, pad=pad))


def _batch(items: Sequence[dict[str, Any]], pad: Callable[[Sequence[Tokens]], Tokens]) -> dict[str, Any]:
    inputs = [{name: x for name, x in item.items() if name != "labels"} for item in items]
    return {**pad(inputs), "labels": torch.tensor([item["labels"] for item in items])}

"""What turns samples into the inputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from verifix.errors import DataError

ImageFunction = Callable[[Image.Image], Tensor]
Tokens = Mapping[str, Tensor]
Text = str | tuple[str, str]
"""A text, or a pair of texts that the model takes together."""

RESIZING = ("size", "crop_pct", "crop_mode", "interpolation")
"""Settings of how an image is brought to a size."""


def flag(name: str) -> str:
    """Return a setting as the command line spells it."""
    return f"--{name.replace('_', '-')}"


def listing(numbers: Sequence[float]) -> str:
    """Return numbers as a text with commas."""
    return ",".join(f"{number:g}" for number in numbers)


@dataclass(frozen=True)
class Preparation:
    """How samples become the model's inputs.

    Attributes
    ----------
    image
        Turns an image with 8 bits a channel into a float tensor ``[channels, height, width]``; None if the model
        takes no images.
    tokenize
        Turns texts, or pairs of them, into tensors by name, each ``[texts, tokens]``, padded; None if there is no
        tokenizer.
    pad
        Brings tensors by name, each ``[tokens]``, of several texts into one batch.
    mean
        Mean of each channel on the scale 0 to 1, for 8-bit arrays; empty if they are not normalised.
    std
        Standard deviation of each channel.
    class_names
        Class names in the order of the model's outputs, or None if they are not known.
    description
        What is done, in a few words.
    place
        The folder that the description names; empty if it names none.
    size
        Height and width of the model's input, to which images are resized; None if they keep their size.
    labelled
        Whether labels are read; else there need be none, and every sample has the label `UNKNOWN`.
    sorted_names
        Whether the sorted names of class folders may count as class names where none are known: whoever allows it
        compares them with the model's outputs, in number and by its predictions.
    """

    image: ImageFunction | None
    tokenize: Callable[[Sequence[Text]], Tokens] | None = None
    pad: Callable[[Sequence[Tokens]], Tokens] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] | None = None
    description: str = ""
    place: str = ""
    size: tuple[int, int] | None = None
    labelled: bool = True
    sorted_names: bool = False

    @property
    def steps(self) -> str:
        """What is done, wherever the model lies: the same for the same preparation."""
        return self.description.replace(self.place, "the model") if self.place else self.description

    def for_images(self, source: str) -> ImageFunction:
        """Return how to turn an image into an input.

        Parameters
        ----------
        source
            What the images come from, for the message.

        Returns
        -------
        callable
            `image`.

        Raises
        ------
        DataError
            If the model takes no images.
        """
        if self.image is None:
            raise DataError(
                f"{source} holds images, but the model takes no images ({self.description}); give a table with a "
                "column of texts for a text model, or an image model"
            )
        return self.image

    def for_texts(self, source: str) -> tuple[Callable[[Sequence[Text]], Tokens], Callable[[Sequence[Tokens]], Tokens]]:
        """Return how to turn texts into inputs, and those into a batch.

        Parameters
        ----------
        source
            What the texts come from, for the message.

        Returns
        -------
        tokenize, pad : callable
            The attributes of these names.

        Raises
        ------
        DataError
            If the model takes no texts.
        """
        if self.tokenize is not None and self.pad is not None:
            return self.tokenize, self.pad
        if self.image is None:
            raise DataError(f"{source} holds texts, but {self.description}; save it there with save_pretrained")
        raise DataError(
            f"{source} holds texts, but the model takes images; give images, or a text model with its tokenizer as "
            "hf:DIR"
        )

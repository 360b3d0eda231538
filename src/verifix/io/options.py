"""Settings of models, data and weights that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verifix.errors import UsageError
from verifix.options import names_in_file, numbers, split_list, whole

BRING_WEIGHTS = ("hf:", "hf-hub:", "local-dir:")
"""Models whose weights come from where the model comes from, so that no checkpoint needs to be given."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How to read samples and turn them into the model's inputs.

    Attributes
    ----------
    mean
        Mean of each channel on the scale 0 to 1, such as 0.491,0.482,0.447; one number for grey images. By default
        what the model's own data config says, if it has one.
    std
        Standard deviation of each channel, in the same form, with the same default.
    size
        Side of the model's input in pixels; by default what the model's own data config says, else images keep
        their size.
    max_length
        Cut texts after this many tokens; by default after as many as the model and its tokenizer take.
    label_column
        Name of the label column of a table; by default verified_label (a manifest) or label.
    image_column
        Name of the column with images or file names; by default image or file_name.
    text_column
        Name of the column with texts; by default text.
    image_root
        Folder that file names in a table are relative to; by default the table's own folder.
    classes
        Class names in the order of the model's outputs, separated by commas, or a file with one name per line;
        needed where labels are names and the model brings no names of its own.
    """

    mean: list[float] | str | None = None
    std: list[float] | str | None = None
    size: int | None = None
    max_length: int | None = None
    label_column: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    image_root: str | None = None
    classes: list[str] | str | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        mean, std = self.channel_mean, self.channel_std
        if mean and std and len(mean) != len(std):
            raise UsageError(f"mean has {len(mean)} numbers and std {len(std)}; give both, one number per channel")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (0, 1, 3):
                raise UsageError(f"{name} has {len(values)} numbers; give 3 for colour images or 1 for grey ones")
        if any(abs(value) > 10 for value in (*mean, *std)):
            raise UsageError(
                f"mean is {self.mean!r} and std {self.std!r}; they are for pixels from 0 to 1: divide by 255"
            )
        if any(s <= 0 for s in std):
            raise UsageError(f"std is {self.std!r}; every number must be above 0")
        if self.size is not None and (not whole(self.size) or self.size < 1):
            raise UsageError(f"size is {self.size!r}; it must be a whole number of pixels, 1 or more")
        if self.max_length is not None and (not whole(self.max_length) or self.max_length < 1):
            raise UsageError(f"max_length is {self.max_length!r}; it must be a whole number of tokens, 1 or more")

    @property
    def channel_mean(self) -> list[float]:
        """The mean as numbers; empty if none was given."""
        return numbers("mean", self.mean)

    @property
    def channel_std(self) -> list[float]:
        """The standard deviation as numbers; empty if none was given."""
        return numbers("std", self.std)

    @property
    def class_names(self) -> list[str] | None:
        """The class names, or None if none were given."""
        names = names_in_file(self.classes) if isinstance(self.classes, str) else None
        return split_list(self.classes) if names is None else names


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, with which weights.

    Attributes
    ----------
    model
        The model: py:FILE_OR_MODULE:FACTORY, torchvision:NAME, timm:NAME, hf:DIR (a folder of transformers), or
        hf-hub:ORG/NAME and local-dir:DIR as timm spells them.
    num_classes
        Number of outputs to build a torchvision or timm model with; their own by default.
    weights
        Which weights of a checkpoint that has several: "raw", "ema" (averaged over training steps), or "auto" for
        the averaged ones if there are any, as timm and Lightning read them too.
    """

    model: str
    num_classes: int | None = None
    weights: Literal["auto", "raw", "ema"] = "auto"

    def __post_init__(self) -> None:
        """Check the number of outputs."""
        if self.num_classes is not None and (not whole(self.num_classes) or self.num_classes < 1):
            raise UsageError(f"num_classes is {self.num_classes!r}; it must be a whole number of outputs, 1 or more")

    @property
    def brings_weights(self) -> bool:
        """Whether the weights come from where the model comes from."""
        return self.model.startswith(BRING_WEIGHTS)


def need_weights(model: ModelOptions, checkpoint: str | None, place: str) -> None:
    """Refuse to go on without a checkpoint, unless the model brings its weights; `place` is where to give it."""
    if checkpoint is None and not model.brings_weights:
        raise UsageError(
            f"{model.model} is a model without weights; give the trained weights with {place} (only "
            f"{', '.join(BRING_WEIGHTS)} models bring their own)"
        )


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """How much the samples count that a gain is measured on.

    Attributes
    ----------
    class_shares
        Share of each class in what the model will meet, if the samples have other shares: 0.9,0.1 in the order of the
        classes, or cat=0.9,dog=0.1, or a file with one of these per line.
    weights_file
        How much each sample counts, if they are not a random sample: .npy, or a table with a column weight; one for
        each verified sample, or with --test for each test sample, in their order.
    """

    class_shares: list[float] | str | None = None
    weights_file: str | None = None

    def __post_init__(self) -> None:
        """Check that only one is given, and that shares can be read."""
        if self.class_shares is not None and self.weights_file is not None:
            raise UsageError("--class-shares and --weights-file both say how much samples count; give one of them")
        _ = self.shares

    @property
    def shares(self) -> dict[str | int, float] | None:
        """The share of each class, by its name or its number; None if none were given."""
        if self.class_shares is None:
            return None
        given = self.class_shares
        lines = names_in_file(given, "--class-shares") if isinstance(given, str) else None
        parts = [str(part) for part in lines or split_list(given) or []]  # type: ignore[arg-type]
        parts = [piece.strip() for part in parts for piece in part.split(",")]
        return dict(_share(i, part) for i, part in enumerate(parts))


def _share(place: int, text: str) -> tuple[str | int, float]:
    """Read one share: a number, or a class and a number."""
    name, given, number = text.rpartition("=")
    try:
        return (name.strip() if given else place), float(number)
    except ValueError:
        raise UsageError(f"--class-shares has {text!r}; give numbers such as 0.9,0.1 or cat=0.9,dog=0.1") from None


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How to run a model over samples.

    Attributes
    ----------
    device
        Where to compute; "auto" is a GPU if there is one.
    batch_size
        Samples per batch.
    progress
        Show progress.
    """

    device: str = "auto"
    batch_size: int = 250
    progress: bool = True

    def __post_init__(self) -> None:
        """Check the size of batches."""
        if self.batch_size < 1:
            raise UsageError(f"batch_size is {self.batch_size}; it must be 1 or more")

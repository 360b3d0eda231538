"""Settings of models, data and weights, which several commands share."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from verifix.errors import UsageError
from verifix.io.model_names import check_name
from verifix.settings import (
    AS_LIST,
    AS_TEXT,
    AS_WORDS,
    DATA,
    MAIN,
    MODEL,
    NEEDED,
    PROOF,
    READS,
    READS_DATA,
    READS_LIST,
    READS_MODEL,
    Settings,
    one_of,
    require,
    split_list,
    whole,
)

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
"""Ways to crop and to resize, as timm spells them."""

OF_THEIR_OWN = {"num_classes": "num-classes", "in_chans": "in-chans"}
"""Arguments of timm's models that are settings of their own."""

BRING_WEIGHTS = ("hf:", "hf-hub:", "local-dir:")
"""Models whose weights come from where the model comes from, so that no checkpoint needs to be given."""


def group_column(options: Settings) -> str | None:
    """Return the column of the samples' groups, if a command takes one and was given it."""
    column: str | None = getattr(options, "groups", None)
    return column


def listed(given: Sequence[str] | str, flag: str) -> list[str]:
    """Return a list that may be given as a text with commas, or as the name of a file with one entry per line."""
    parts = split_list(given)
    wrong = [part for part in parts if not isinstance(part, str)]
    if wrong:
        raise UsageError(
            f"{flag} has {wrong[0]!r}, which is no text; give names as text (in YAML, put no, yes and numbers in "
            "quotation marks)"
        )
    path = parts[0] if len(parts) == 1 else ""
    if Path(path).is_file():
        try:
            return [line.strip() for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read for {flag} ({error}); write UTF-8, one class per line") from None
    if path.endswith(".txt"):
        raise UsageError(f"{path} does not exist; {flag} takes a list separated by commas, or a file of it")
    return parts


def numbers(name: str, value: Sequence[float] | str | None) -> list[float]:
    """Return a list of numbers, which may be given as a text with commas; None is an empty one."""
    try:
        found = [float(part) for part in (split_list(value) if isinstance(value, str) else value) or []]
    except (TypeError, ValueError):
        found = [math.nan]
    if not all(math.isfinite(number) for number in found):
        raise UsageError(f"{name} is {value!r}; give numbers separated by commas, such as 0.491,0.482,0.447")
    return found


@dataclass(frozen=True, kw_only=True)
class PoolOptions(Settings):
    """Where samples are that records refer to."""

    pool: Annotated[str | None, DATA, READS_DATA] = None
    """The data set that a queue or a file of verified records is about. Default: the one that the file names."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(PoolOptions):
    """How samples are read and turned into the model's inputs."""

    mean: Annotated[Sequence[float] | str | None, DATA, AS_TEXT] = None
    """Mean of each channel on the scale 0 to 1, such as 0.491,0.482,0.447; one number for grey images. Default: the
    model's own data config, if it has one."""
    std: Annotated[Sequence[float] | str | None, DATA, AS_TEXT] = None
    """Standard deviation of each channel, in the same form and with the same default."""
    size: Annotated[int | None, DATA] = None
    """Side of the model's input in pixels. Default: the model's own data config; without one, images keep their
    size."""
    crop_pct: Annotated[float | None, DATA] = None
    """Share of the resized image's side that the centre crop keeps, as in timm: 0.95 resizes to size/0.95 first, 1.0
    crops nothing. Default: the model's own data config; without one, 1.0."""
    crop_mode: Annotated[Literal["center", "squash", "border"] | None, DATA] = None
    """How an image becomes a square, as in timm: "center" cuts the longer side off, "squash" changes the ratio of the
    sides, "border" pads the shorter side. Default: the model's own data config; without one, "center" with --crop-pct
    and else "squash"."""
    interpolation: Annotated[Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None, DATA] = None
    """How images are resized. Default: the model's own data config; without one, "bilinear"."""
    in_chans: Annotated[int | None, MODEL] = None
    """Number of channels of an input, to build a timm model with, and to read images as grey (1) or colour (3).
    Default: the model's own number; without a data config, 1 if --mean has one number and else 3."""
    max_length: Annotated[int | None, DATA] = None
    """Truncate texts to this many tokens. By default, to as many as the model and its tokenizer accept."""
    label_column: Annotated[str | None, DATA] = None
    """Name of the label column of a table. Default: verified_label (in a manifest) or label."""
    image_column: Annotated[str | None, DATA] = None
    """Name of the column with images or file names. Default: image or file_name."""
    text_column: Annotated[Sequence[str] | str | None, DATA, AS_TEXT] = None
    """Name of the column with texts, or two names for pairs of texts, such as premise,hypothesis. Default: text, or a
    pair of columns with names that are common for pairs."""
    image_root: Annotated[str | None, DATA, READS] = None
    """Folder that image paths in a table or saved dataset are relative to, and that they must point into. Default: the
    folder of the table or dataset."""
    classes: Annotated[Sequence[str] | None, DATA, AS_LIST, READS_LIST] = None
    """Class names in the order of the model's outputs, separated by commas, or a file with one name per line. Needed if
    labels are names and the model has no class names of its own."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
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
        if self.image_column is not None and self.text_column is not None:
            raise UsageError(
                "--image-column and --text-column are both given; a sample is an image or a text, so give one"
            )
        for name, what in (("size", "pixels"), ("max_length", "tokens"), ("in_chans", "channels")):
            value = getattr(self, name)
            require(value is None or whole(value, 1), name, value, f"a whole number of {what}, 1 or more")
        for name, words in (("crop_mode", CROP_MODES), ("interpolation", INTERPOLATIONS)):
            value = getattr(self, name)
            require(one_of(value, None, *words), name, value, f"one of {', '.join(words)}")
        pct = self.crop_pct
        number = isinstance(pct, (int, float)) and not isinstance(pct, bool) and 0 < pct <= 1
        require(pct is None or number, "crop_pct", pct, "a number above 0 and up to 1, such as 0.95")

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
        return None if self.classes is None else listed(self.classes, "--classes")


@dataclass(frozen=True, kw_only=True)
class SampleOptions(DataOptions):
    """Which labelled samples a model is run over."""

    data: Annotated[str, MAIN, NEEDED, READS_DATA] = ""
    """Labelled samples, in any form that --verified of verifix correct takes. For files of predictions, compare also
    takes labels alone: .npy, .npz or a table. inspect reads one input from them."""


@dataclass(frozen=True, kw_only=True)
class LimitOptions(Settings):
    """How many samples are used."""

    limit: Annotated[int | None, DATA] = None
    """Use at most this many samples, drawn by class; with --trusted, of the samples to pick from."""

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        ok = self.limit is None or whole(self.limit, 1)
        require(ok, "limit", self.limit, "a whole number of samples, 1 or more")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Settings):
    """Which model, built how."""

    model: Annotated[str, MAIN, NEEDED, READS_MODEL] = ""
    """The model: py:FILE_OR_MODULE:FACTORY, torchvision:NAME, timm:NAME, hf:DIR (a folder of transformers), or
    hf-hub:ORG/NAME and local-dir:DIR as timm spells them. compare does not need it for files of predictions."""
    num_classes: Annotated[int | None, MODEL] = None
    """Number of outputs to build a torchvision or timm model with. Default: the model's own number."""
    weights: Annotated[Literal["auto", "raw", "ema"], MODEL] = "auto"
    """Which weights to take from a checkpoint that has several: "raw", "ema" (averaged over training steps), or "auto":
    the averaged ones if there are any, as timm and Lightning do."""
    model_kwargs: Annotated[Sequence[str] | None, MODEL, AS_WORDS] = None
    """Further arguments to build a timm or torchvision model with, as timm spells them: img_size=32 patch_size=4."""

    def __post_init__(self) -> None:
        """Check the number of outputs, and the further arguments."""
        super().__post_init__()
        if self.model:
            check_name(self.model)
        ok = self.num_classes is None or whole(self.num_classes, 1)
        require(ok, "num_classes", self.num_classes, "a whole number of outputs, 1 or more")
        _ = self.further

    @property
    def further(self) -> dict[str, Any]:
        """The further arguments by name, with numbers, tuples and the like read as Python writes them."""
        found: dict[str, Any] = {}
        for word in self.model_kwargs or ():
            name, given, text = word.partition("=")
            if not given or not name.isidentifier() or name in found or name in OF_THEIR_OWN:
                raise UsageError(
                    f"model_kwargs has {word!r}; give name=value, each name once, such as img_size=32 (and "
                    f"{', '.join(f'--{own}' for own in OF_THEIR_OWN.values())} as settings of their own)"
                )
            try:
                found[name] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                found[name] = text
        return found

    @property
    def brings_weights(self) -> bool:
        """Whether the weights come from where the model comes from."""
        return self.model.startswith(BRING_WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(ModelOptions):
    """Which model, with which weights."""

    checkpoint: Annotated[str | None, MAIN, READS] = field(default=None, kw_only=False)
    """The trained weights: .safetensors, .pt, .pth, .pth.tar, .bin or .ckpt, an index of several such files, or a
    folder of transformers. Models of hf:, hf-hub: and local-dir: bring weights of their own. inspect does not need
    it."""

    def need_weights(self, place: str) -> None:
        """Refuse to go on without weights; `place` is where to give them."""
        if self.checkpoint is None and not self.brings_weights:
            raise UsageError(
                f"{self.model} is a model without weights; give the trained weights with {place} (only "
                f"{', '.join(BRING_WEIGHTS)} models bring their own)"
            )


@dataclass(frozen=True, kw_only=True)
class WeightOptions(Settings):
    """How much the samples count that a gain is measured on."""

    class_shares: Annotated[Sequence[str] | None, PROOF, AS_LIST, READS_LIST] = None
    """Share of each class in the data that the model will meet, if the samples have other shares: 0.9,0.1 in the order
    of the classes, or cat=0.9,dog=0.1, or a file with one of these per line."""
    weights_file: Annotated[str | None, PROOF, READS] = None
    """Weight of each sample, if they are not a random sample: .npy, or a table with a column weight. One for each
    verified sample, or with --test for each test sample, in their order."""

    def __post_init__(self) -> None:
        """Check that only one is given, and that shares can be read."""
        super().__post_init__()
        if self.class_shares is not None and self.weights_file is not None:
            raise UsageError("--class-shares and --weights-file both say how much samples count; give one of them")
        _ = self.shares

    @property
    def shares(self) -> dict[str | int, float] | None:
        """The share of each class, by its name or its number; None if none were given."""
        if self.class_shares is None:
            return None
        parts = [piece.strip() for part in listed(self.class_shares, "--class-shares") for piece in part.split(",")]
        return dict(_share(i, part) for i, part in enumerate(parts))


def _share(place: int, text: str) -> tuple[str | int, float]:
    """Read one share: a number, or a class and a number."""
    name, given, number = text.rpartition("=")
    try:
        return (name.strip() if given else place), float(number)
    except ValueError:
        raise UsageError(f"--class-shares has {text!r}; give numbers such as 0.9,0.1 or cat=0.9,dog=0.1") from None

"""Settings as frozen dataclasses that check themselves. No torch here: the command line reads them for its help."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from verifix.errors import UsageError

VERIFIED_FROM = ("unseen", "training", "trusted")
UNITS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
"""Units of time, in seconds."""

TRUST_METHODS = ("low-loss", "low-curvature", "confident")
"""Ways to rank samples by how far their given label is to be trusted; see `verifix.trust`."""

TRUSTED_COUNT = 1000
"""How many samples are trusted unless the user says."""

MOST_CONTRAST = 1e5
"""With the largest strength of the grid, the projection's system then still is positive definite in float64."""

BRING_WEIGHTS = ("hf:", "hf-hub:", "local-dir:")
"""Models whose weights come from where the model comes from, so that no checkpoint needs to be given."""


@dataclass(frozen=True)
class CorrectOptions:
    """How to correct.

    Attributes
    ----------
    alpha
        Strength of the projection: "auto" lets the verified samples choose; a number means exactly that projection.
    recipe
        Stages to run: "auto" is all of them, as far as the verified samples support each one (with alpha given as a
        number it is that projection alone); "verifix" is the paper's method; or names of stages joined by commas,
        such as project,refit.
    budget
        Time that choosing may take, such as 90s, 5min or 1h; stages that do not fit are left out.
    include
        Correct only layers that match one of these parameter-name globs or kinds.
    exclude
        Leave alone layers that match one of these parameter-name globs or kinds.
    folds
        Folds of the cross-fitting that chooses strengths.
    seed
        Seed of the folds.
    device
        Where to compute; "auto" is where the model is.
    batch_size
        Samples per batch; "auto" starts at 64, or at the DataLoader's own, and halves when memory runs out.
    verified_from
        Whether the model has been trained on the verified samples ("training") or not ("unseen"); "trusted" if nobody
        verified them, and they were picked because their label is probably right.
    moments
        A moments file of earlier verified samples, to be counted as well.
    padding
        Whether token ids that contain the model's pad id need a mask of the padding; --no-padding if they need none.
    affine
        Centre the projection: take the mean of each layer's inputs off before, and let its bias make up for it.
    suspects
        Samples whose labels are suspected to be wrong, and none of the verified ones; the projection shrinks what
        they excite. Their labels are not used.
    contrast
        Weight of the suspected samples, above 0.
    check_labels
        Whether to stop if the predictions fit another order of the labels far better, or one input has two labels;
        --no-check-labels if they are right all the same.
    progress
        Show progress.
    """

    alpha: float | Literal["auto"] = "auto"
    recipe: str = "auto"
    budget: str | float | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    folds: int = 5
    seed: int = 0
    device: str = "auto"
    batch_size: int | Literal["auto"] = "auto"
    verified_from: Literal["unseen", "training", "trusted"] = "unseen"
    moments: str | None = None
    padding: bool = True
    affine: bool = False
    suspects: str | None = None
    contrast: float = 1.0
    check_labels: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        number = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool)
        if self.alpha != "auto" and not (number and 0 < self.alpha < math.inf):
            raise UsageError(f"alpha is {self.alpha!r}; it must be a finite number above 0, or 'auto'")
        number = isinstance(self.contrast, (int, float)) and not isinstance(self.contrast, bool)
        if not number or not 0 < self.contrast <= MOST_CONTRAST:
            raise UsageError(
                f"contrast is {self.contrast!r}; it must be a number above 0, up to {MOST_CONTRAST:g}; "
                "for no contrast, give no suspects"
            )
        for name in ("affine", "check_labels"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be True or False")
        if not _whole(self.folds) or self.folds < 2:
            raise UsageError(f"folds is {self.folds!r}; it must be a whole number of 2 or more")
        check_seed(self.seed)
        if self.batch_size != "auto" and (not _whole(self.batch_size) or self.batch_size < 1):
            raise UsageError(f"batch_size is {self.batch_size!r}; it must be a whole number of 1 or more, or 'auto'")
        if self.verified_from not in VERIFIED_FROM:
            raise UsageError(f"verified_from is {self.verified_from!r}; it must be 'unseen', 'training' or 'trusted'")
        if not self.budget_seconds > 0:
            raise UsageError(f"budget is {self.budget!r}; it must be a time above 0, such as 5min")
        for name in ("include", "exclude"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, list) and all(isinstance(p, str) for p in value)):
                raise UsageError(f"{name} is {value!r}; it must be a list of patterns, such as ['head.*', 'conv2d']")

    @classmethod
    def of_arguments(cls, arguments: Mapping[str, Any]) -> CorrectOptions:
        """Take the settings out of the arguments of `verifix.correct`, which may also be objects where these are text.

        Parameters
        ----------
        arguments
            The arguments by name; others are left out.

        Returns
        -------
        CorrectOptions
            The settings, checked.
        """
        own = {field.name: arguments[field.name] for field in fields(cls) if field.name != "suspects"}
        moments = own["moments"]
        own["moments"] = str(moments) if isinstance(moments, (str, Path)) else None
        own |= {name: patterns(own[name]) for name in ("include", "exclude")}
        return cls(**own | {"device": str(own["device"])})

    @property
    def minimum_samples(self) -> int:
        """How many verified samples these settings need: few leave nothing to choose from."""
        return max(50, 2 * self.folds) if self.choosing else 2

    @property
    def stages(self) -> str:
        """The recipe to run: a given alpha alone means the projection alone."""
        return "verifix" if self.recipe == "auto" and self.alpha != "auto" else self.recipe

    @property
    def choosing(self) -> bool:
        """Whether any stage's strength is left for the verified samples to choose."""
        return self.alpha == "auto" or self.stages not in ("verifix", "project")

    @property
    def budget_seconds(self) -> float:
        """The budget in seconds; infinite if none was given."""
        if self.budget is None:
            return math.inf
        if isinstance(self.budget, (int, float)) and not isinstance(self.budget, bool):
            return float(self.budget)
        found = re.fullmatch(r"([\d.]+)\s*([a-z]*)", str(self.budget).strip().lower())
        try:
            number, unit = found.groups()  # type: ignore[union-attr]
            return float(number) * UNITS[unit]
        except (AttributeError, ValueError, KeyError):
            raise UsageError(f"budget is {self.budget!r}; give a time such as 90s, 5min or 1h") from None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_trust(method: str, count: object) -> None:
    """Check the settings of `verifix.trust` that can be checked without data.

    Parameters
    ----------
    method
        How to rank.
    count
        How many samples to pick.

    Raises
    ------
    UsageError
        If the method is unknown, or the count is no whole number of 2 or more.
    """
    if method not in TRUST_METHODS:
        raise UsageError(f"method is {method!r}; it must be one of {', '.join(map(repr, TRUST_METHODS))}")
    if not _whole(count) or count < 2:  # type: ignore[operator]
        raise UsageError(f"count is {count!r}; it must be a whole number of 2 or more")


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
        for name, numbers in (("mean", mean), ("std", std)):
            if len(numbers) not in (0, 1, 3):
                raise UsageError(f"{name} has {len(numbers)} numbers; give 3 for colour images or 1 for grey ones")
        if any(abs(value) > 10 for value in (*mean, *std)):
            raise UsageError(
                f"mean is {self.mean!r} and std {self.std!r}; they are for pixels from 0 to 1: divide by 255"
            )
        if any(s <= 0 for s in std):
            raise UsageError(f"std is {self.std!r}; every number must be above 0")
        if self.size is not None and (not _whole(self.size) or self.size < 1):
            raise UsageError(f"size is {self.size!r}; it must be a whole number of pixels, 1 or more")
        if self.max_length is not None and (not _whole(self.max_length) or self.max_length < 1):
            raise UsageError(f"max_length is {self.max_length!r}; it must be a whole number of tokens, 1 or more")

    @property
    def channel_mean(self) -> list[float]:
        """The mean as numbers; empty if none was given."""
        return _numbers("mean", self.mean)

    @property
    def channel_std(self) -> list[float]:
        """The standard deviation as numbers; empty if none was given."""
        return _numbers("std", self.std)

    @property
    def class_names(self) -> list[str] | None:
        """The class names, or None if none were given."""
        names = _names_in_file(self.classes) if isinstance(self.classes, str) else None
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
        if self.num_classes is not None and (not _whole(self.num_classes) or self.num_classes < 1):
            raise UsageError(f"num_classes is {self.num_classes!r}; it must be a whole number of outputs, 1 or more")

    @property
    def brings_weights(self) -> bool:
        """Whether the weights come from where the model comes from."""
        return self.model.startswith(BRING_WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """How much the samples count that a gain is measured on.

    Attributes
    ----------
    class_shares
        Share of each class in what the model will meet, if the samples have other shares: 0.9,0.1 in the order of the
        classes, or cat=0.9,dog=0.1, or a file with one of these per line.
    weights_file
        How much each sample counts, if they are not a random sample: .npy, or a table with a column weight.
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
        lines = _names_in_file(given, "--class-shares") if isinstance(given, str) else None
        parts = [str(part) for part in lines or split_list(given) or []]  # type: ignore[arg-type]
        parts = [piece.strip() for part in parts for piece in part.split(",")]
        return dict(_share(i, part) for i, part in enumerate(parts))


@dataclass(frozen=True, kw_only=True)
class CorrectCommand(CorrectOptions, WeightOptions, DataOptions, ModelOptions):
    """Correct a checkpoint from a verified set.

    Attributes
    ----------
    checkpoint
        The trained weights: .safetensors, .pt, .pth, .pth.tar, .bin or .ckpt, an index of several such files, or a
        folder of transformers; for hf:, hf-hub: and local-dir: by default the model's own.
    verified
        The verified samples: a folder with one subfolder of images per class, or with metadata.csv; a table (.csv,
        .jsonl, .parquet) of file names, images or texts with labels; a folder of datasets.save_to_disk (FOLDER:SPLIT);
        .tar shards (shard-{000..003}.tar); a .npz file with inputs "x" and labels "y"; or webvision:DIR,
        mini-webvision:DIR, clothing1m:DIR:LIST, cifar10n:DIR:LABELS, cifar100n:DIR:LABELS.
    verified_from
        Whether the model has been trained on the verified samples ("training") or not ("unseen", to be preferred).
        On samples it was trained on, scores are no estimate for new data. Needed with --verified; "trusted" goes
        without saying with --trusted, and with --verified means that nobody verified these samples.
    trusted
        Instead of verified samples, when there are none: labelled samples, such as the training set with its wrong
        labels, to pick some from whose label is probably right; in the form of --verified.
    trust
        How they are picked: "low-loss" (the default), "low-curvature" or "confident" (cleanlab).
    trusted_count
        How many are picked, the same number of each class; 1000 by default.
    out
        Where to write the corrected checkpoint, in the form of the given one; the correction file goes beside it.
    include
        Correct only layers that match one of these parameter-name globs or kinds, separated by commas.
    exclude
        Leave alone layers that match one of these parameter-name globs or kinds, separated by commas.
    device
        Where to compute; "auto" is a GPU if there is one.
    batch_size
        Samples per batch; "auto" starts at 64 and halves when memory runs out.
    limit
        Use no more than this many of the verified samples (or of those to pick from), drawn by class.
    test
        Samples that neither training nor the correction has seen, to measure the gain on; in the form of --verified.
    proof
        How the gain is proved without --test: "nested" (the default) corrects five times more, each time judged on a
        fifth that it has not seen; "split" corrects with one half of the verified samples and judges on the other;
        "none" writes whatever was chosen.
    report
        Where to write a page (.html) with all that was found, in one file: verdict, curves, confusions, samples set
        right and broken, layers.
    result
        Where to write the same content as JSON, which is what --json prints.
    card
        Where to write a model card (.md) for the Hugging Face hub; needs verifix[hub].
    save_moments
        Where to write the moments of the verified samples, for a later --moments.
    force
        Replace files that exist, and write a correction whose gain is not proved.
    json
        Print the result as JSON on stdout.
    """

    checkpoint: str | None = None
    verified: str | None = None
    out: str
    verified_from: Literal["unseen", "training", "trusted"] | None = None  # type: ignore[assignment]
    trusted: str | None = None
    trust: Literal["low-loss", "low-curvature", "confident"] | None = None
    trusted_count: int | None = None
    include: list[str] | str | None = None  # type: ignore[assignment]
    exclude: list[str] | str | None = None  # type: ignore[assignment]
    limit: int | None = None
    test: str | None = None
    proof: Literal["none", "split", "nested"] | None = None
    report: str | None = None
    result: str | None = None
    card: str | None = None
    save_moments: str | None = None
    force: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Split lists at commas, then check everything."""
        object.__setattr__(self, "include", split_list(self.include))
        object.__setattr__(self, "exclude", split_list(self.exclude))
        self._settle_where_samples_come_from()
        _check_limit(self.limit)
        CorrectOptions.__post_init__(self)
        DataOptions.__post_init__(self)
        ModelOptions.__post_init__(self)
        WeightOptions.__post_init__(self)
        _need_weights(self, self.checkpoint, "--checkpoint")
        self._check_proof()
        if self.picks[1] < self.minimum_samples:
            raise UsageError(
                f"--trusted-count is {self.trusted_count}; with this alpha and these folds it must be "
                f"{self.minimum_samples} or more"
            )

    def _settle_where_samples_come_from(self) -> None:
        if (self.verified is None) == (self.trusted is None):
            raise UsageError("correct needs one of --verified, and --trusted if nothing was verified")
        if self.trusted is None:
            if self.trust is not None or self.trusted_count is not None:
                raise UsageError("--trust and --trusted-count say how to pick from --trusted, which is not given")
            if self.verified_from is None:
                raise UsageError(f"--verified needs --verified-from, one of {', '.join(VERIFIED_FROM)}")
            return
        if self.verified_from not in (None, "trusted"):
            raise UsageError(
                f"--verified-from {self.verified_from} contradicts --trusted, whose labels nobody verified"
            )
        object.__setattr__(self, "verified_from", "trusted")

    def _check_proof(self) -> None:
        if self.test is not None and self.proof in ("nested", "split"):
            raise UsageError(f"--test is a proof of its own, so leave --proof {self.proof} out")
        if self.proves_by in ("nested", "split") and self.verified_from != "unseen":
            why = "the model was trained on" if self.verified_from == "training" else "nobody verified"
            raise UsageError(
                f"samples that {why} prove nothing: give others with --test, or --proof none to write without a proof"
            )

        if self.weights_file is not None and (self.limit, self.trusted) != (None, None):
            raise UsageError(
                "--weights-file has one weight per sample, and --limit and --trusted take some of them only"
            )

    @property
    def data(self) -> str:
        """Where the samples to correct from, or to pick them from, are."""
        return str(self.verified or self.trusted)

    @property
    def shows(self) -> bool:
        """Whether any file is wanted that shows more than the figures."""
        return (self.report, self.result, self.card) != (None, None, None)

    @property
    def proves_by(self) -> str:
        """What the gain is measured by: "test", "nested", "split" or "none"."""
        return "test" if self.test is not None else self.proof or "nested"

    @property
    def picks(self) -> tuple[str, int]:
        """How samples are picked from `trusted`, and how many."""
        return self.trust or TRUST_METHODS[0], TRUSTED_COUNT if self.trusted_count is None else self.trusted_count


@dataclass(frozen=True, kw_only=True)
class ScoreCommand(DataOptions, ModelOptions):
    """Score a checkpoint on labelled samples.

    Attributes
    ----------
    checkpoint
        The weights, in any form that verifix correct takes; for hf:, hf-hub: and local-dir: by default the model's own.
    data
        The samples, in the form of --verified of verifix correct.
    limit
        Use no more than this many samples, drawn by class.
    seed
        Seed of the choice.
    device
        Where to compute; "auto" is a GPU if there is one.
    batch_size
        Samples per batch.
    progress
        Show progress.
    json
        Print the result as JSON on stdout.
    """

    checkpoint: str | None = None
    data: str
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    batch_size: int = 250
    progress: bool = True
    json: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        ModelOptions.__post_init__(self)
        _check_limit(self.limit)
        check_seed(self.seed)
        if self.batch_size < 1:
            raise UsageError(f"batch_size is {self.batch_size}; it must be 1 or more")
        _need_weights(self, self.checkpoint, "verifix score CHECKPOINT")


@dataclass(frozen=True, kw_only=True)
class CompareCommand(WeightOptions, DataOptions, ModelOptions):
    """Compare two checkpoints, or two files of predictions, on labelled samples.

    Attributes
    ----------
    before
        The first: a checkpoint in any form that verifix correct takes; or a file of predictions: .npy, .npz, or .csv,
        .jsonl or .parquet with one column of numbers per class (logits or probabilities), or with one column of
        predicted classes.
    after
        The second, in the same form.
    data
        The samples, in the form of --verified of verifix correct; for files of predictions also a .npy, .npz or table
        of labels alone. Neither model may have learned from them.
    model
        The model of the checkpoints, in the form of --model of verifix correct; not needed for files of predictions.
    seed
        Seed of the bootstrap.
    device
        Where to compute; "auto" is a GPU if there is one.
    batch_size
        Samples per batch.
    progress
        Show progress.
    json
        Print the result as JSON on stdout.
    """

    before: str
    after: str
    data: str
    model: str | None = None  # type: ignore[assignment]
    seed: int = 0
    device: str = "auto"
    batch_size: int = 250
    progress: bool = True
    json: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        DataOptions.__post_init__(self)
        ModelOptions.__post_init__(self)
        if self.batch_size < 1:
            raise UsageError(f"batch_size is {self.batch_size}; it must be 1 or more")
        check_seed(self.seed)
        WeightOptions.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class InspectCommand(DataOptions, ModelOptions):
    """Show what would be corrected, what not and why, and the memory it would take.

    Attributes
    ----------
    checkpoint
        The weights; not needed to see the layers.
    data
        Samples to take one input from, in the form of --verified of verifix correct.
    input_shape
        Instead of data, the shape of one input, such as 3,32,32.
    include
        Only layers that match one of these parameter-name globs or kinds, separated by commas.
    exclude
        No layers that match one of these parameter-name globs or kinds, separated by commas.
    samples
        Verified samples to estimate the memory for.
    folds
        Folds to estimate the memory for.
    json
        Print the result as JSON on stdout.
    """

    checkpoint: str | None = None
    data: str | None = None
    input_shape: list[int] | str | None = None
    include: list[str] | str | None = None
    exclude: list[str] | str | None = None
    samples: int = 1000
    folds: int = 5
    json: bool = False

    def __post_init__(self) -> None:
        """Check that there is something to run the model on."""
        super().__post_init__()
        ModelOptions.__post_init__(self)
        if (self.data is None) == (self.input_shape is None):
            raise UsageError("inspect needs one of --data and --input-shape, to run the model once")
        if self.samples < 1 or self.folds < 1:
            raise UsageError(f"samples is {self.samples} and folds {self.folds}; both must be 1 or more")
        if any(size < 1 or size != int(size) for size in self.shape):
            raise UsageError(f"input_shape is {self.input_shape!r}; give whole numbers, such as 3,32,32")

    @property
    def shape(self) -> list[float]:
        """The input shape as numbers; empty if none was given."""
        return _numbers("input_shape", self.input_shape)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Train a small network on wrong labels, correct it, and show the difference.

    Attributes
    ----------
    name
        "digits": handwritten digits, 30% wrong labels; "spiral": the paper's two spirals.
    out
        Folder for the pictures; by default a fresh one.
    seed
        First seed.
    seeds
        How many seeds to run, counting up from the first.
    force
        Replace pictures that exist.
    json
        Print the result as JSON on stdout.
    """

    name: Literal["digits", "spiral"] = "digits"
    out: str | None = None
    seed: int = 0
    seeds: int = 1
    force: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Check the seeds."""
        if self.seeds < 1 or self.seed < 0 or self.seed + self.seeds > 2**32:
            raise UsageError(f"seed is {self.seed} and seeds {self.seeds}; use seeds from 0 to 4294967295, one or more")


@dataclass(frozen=True, kw_only=True)
class UndoCommand:
    """Restore the original of a corrected checkpoint, and prove it by hash.

    Attributes
    ----------
    checkpoint
        The corrected checkpoint: a file, a folder or an index, as verifix correct has written it.
    out
        Where to write the original, in the same form.
    correction
        The correction file that was written with the checkpoint; by default the one beside it.
    force
        Replace a file that exists.
    json
        Print the result as JSON on stdout.
    """

    checkpoint: str
    out: str
    correction: str | None = None
    force: bool = False
    json: bool = False


def patterns(value: Sequence[str] | None) -> list[str] | None:
    """Return patterns as a list; a bare text, which is a sequence too, stays as it is and is refused later."""
    return value if value is None or isinstance(value, str) else list(value)  # type: ignore[return-value]


def split_list(value: list[str] | str | None) -> list[str] | None:
    """Split a text at its commas; a list or None stays as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _share(place: int, text: str) -> tuple[str | int, float]:
    """Read one share: a number, or a class and a number."""
    name, given, number = text.rpartition("=")
    try:
        return (name.strip() if given else place), float(number)
    except ValueError:
        raise UsageError(f"--class-shares has {text!r}; give numbers such as 0.9,0.1 or cat=0.9,dog=0.1") from None


def check_seed(seed: object) -> None:
    """Check a seed.

    Parameters
    ----------
    seed
        The seed.

    Raises
    ------
    UsageError
        If it is no whole number that fits.
    """
    if not _whole(seed) or not 0 <= seed < 2**32:  # type: ignore[operator]
        raise UsageError(f"seed is {seed!r}; it must be a whole number from 0 to 4294967295")


def _check_limit(limit: object) -> None:
    if limit is not None and (not _whole(limit) or limit < 1):  # type: ignore[operator]
        raise UsageError(f"limit is {limit!r}; it must be a whole number of samples, 1 or more")


def _need_weights(model: ModelOptions, checkpoint: str | None, place: str) -> None:
    if checkpoint is None and not model.brings_weights:
        raise UsageError(
            f"{model.model} is a model without weights; give the trained weights with {place} (only "
            f"{', '.join(BRING_WEIGHTS)} models bring their own)"
        )


def _names_in_file(path: str, flag: str = "--classes") -> list[str] | None:
    """Return the lines of a file of class names or shares, or None if the text is a list of them itself."""
    from pathlib import Path

    if Path(path).is_file():
        try:
            return [line.strip() for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read for {flag} ({error}); write UTF-8, one class per line") from None
    if path.endswith(".txt"):
        raise UsageError(f"{path} does not exist; {flag} takes a list separated by commas, or a file of it")
    return None


def _numbers(name: str, value: list[float] | str | None) -> list[float]:
    try:
        numbers = [float(part) for part in (split_list(value) if isinstance(value, str) else value) or []]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"{name} is {value!r}; give numbers separated by commas, such as 0.491,0.482,0.447")
    return numbers

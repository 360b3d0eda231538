"""Settings. Name, type, default, heading and description of each stand here once, or in the modules that use these.

No torch here: the command line reads the settings for its help.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from verifix.errors import UsageError
from verifix.settings import (
    AS_LIST,
    COMPUTING,
    CORRECTION,
    DATA,
    MAIN,
    MODEL,
    READS,
    READS_DATA,
    Settings,
    one_of,
    require,
    whole,
)

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    import verifix
    from verifix.losses import Score

    Device: TypeAlias = torch.device
    Moments: TypeAlias = Path | verifix.SavedMoments
    Groups: TypeAlias = Any
    Inputs: TypeAlias = Any
else:
    Device = Moments = Groups = Inputs = str  # what the command line gives, which starts without torch


def check_seed(seed: Any) -> None:
    """Refuse what is no whole number of 32 bits."""
    require(whole(seed) and seed < 2**32, "seed", seed, "a whole number from 0 to 4294967295")


def check_outputs(outputs: Any) -> None:
    """Refuse what outputs cannot be."""
    require(one_of(outputs, *OUTPUTS), "outputs", outputs, f"one of {', '.join(map(repr, OUTPUTS))}")


VERIFIED_FROM = ("unseen", "training", "trusted")
"""What samples can be, the best first: new to the model, known to it, or not verified by anybody."""

DRAWN = ("random", "by-class", "suspects", "mixed")
"""How verified samples can be drawn; only the first is a sample of the data as it is."""

TRUST_METHODS = ("low-loss", "low-curvature", "confident")
"""Ways to rank samples by how far their given label is to be trusted; see `verifix.trust`."""

TRUSTED_COUNT = 1000
"""How many samples are trusted unless the user says."""

MOST_SAMPLES = 1_000_000
"""How many samples are read unless the user says; a stream that goes on has no end."""

OUTPUTS = ("auto", "logits", "log-probabilities", "probabilities", "percent")
"""What a model's outputs can be said to be."""

UNITS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
"""Units of time, in seconds."""

SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
"""Units of memory, in bytes."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(Settings):
    """How a model is run over samples."""

    seed: Annotated[int, COMPUTING] = 0
    """Seed of everything random: the folds, the samples of `limit`, the bootstrap."""
    device: Annotated[str | Device, COMPUTING] = "auto"
    """Where to compute. "auto" is the device of the model; on the command line, it is a GPU if there is one."""
    batch_size: Annotated[int | Literal["auto"], COMPUTING] = "auto"
    """Samples per batch. "auto" takes the batch size of the DataLoader, or 64, and halves it when memory runs out;
    score and compare use 250."""
    progress: Annotated[bool, COMPUTING] = True
    """Show progress on stderr."""
    max_samples: Annotated[int, DATA] = MOST_SAMPLES
    """Refuse a set with more samples than this, and a stream that goes on after as many items."""
    outputs: Annotated[Literal["auto", "logits", "log-probabilities", "probabilities", "percent"], MODEL] = "auto"
    """What the model's outputs are, or the numbers in a file of predictions. "auto" finds it out from the values and
    from the model's last operation, and refuses what is not clear. A single output is that of class 1."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        check_seed(self.seed)
        ok = one_of(self.batch_size, "auto") or whole(self.batch_size, 1)
        require(ok, "batch_size", self.batch_size, "a whole number of 1 or more, or 'auto'")
        require(whole(self.max_samples, 1), "max_samples", self.max_samples, "a whole number of samples, 1 or more")
        check_outputs(self.outputs)

    @property
    def predicting_size(self) -> int:
        """Samples per batch where a model only predicts."""
        return 250 if self.batch_size == "auto" else self.batch_size


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions(Settings):
    """How strongly a model is corrected, and by which stages."""

    alpha: Annotated[float | Literal["auto"], CORRECTION] = "auto"
    """Strength of the projection. "auto" chooses among about ten strengths and no change, on the verified samples (at
    least 50, and 2 per fold). A number applies the projection with exactly that strength to every included layer,
    without a choice and even if it does harm; other stages run only if `recipe` names them (at least 2 samples)."""
    recipe: Annotated[str, CORRECTION] = "auto"
    """Stages to run. "auto" tries a few paths of stages, and takes the best one if the verified samples clearly support
    it. "verifix" is the method of the paper, the projection alone. Or give names of stages separated by commas, such as
    project,refit, to run in this order; `verifix.register_stage` adds more."""
    budget: Annotated[str | float | None, CORRECTION] = None
    """Time limit for choosing: seconds, or a text such as 90s, 5min or 1h. A stage whose first fold shows
    that it takes longer than what is left is dropped. The first pass over the samples does not count."""

    def __post_init__(self) -> None:
        """Check the strength and the time."""
        super().__post_init__()
        number = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool) and 0 < self.alpha < math.inf
        require(one_of(self.alpha, "auto") or number, "alpha", self.alpha, "a finite number above 0, or 'auto'")
        require(isinstance(self.recipe, str), "recipe", self.recipe, "'auto', 'verifix' or names of stages")
        require(self.budget_seconds > 0, "budget", self.budget, "a time above 0, such as 5min")

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


@dataclass(frozen=True, kw_only=True)
class LayerOptions(Settings):
    """Which layers are corrected."""

    include: Annotated[Sequence[str] | None, CORRECTION, AS_LIST] = None
    """Correct only layers that match one of these parameter-name globs or layer kinds ("linear", "conv2d", …)."""
    exclude: Annotated[Sequence[str] | None, CORRECTION, AS_LIST] = None
    """Do not correct layers that match one of these parameter-name globs or layer kinds."""

    def __post_init__(self) -> None:
        """Check the patterns."""
        super().__post_init__()
        for name in ("include", "exclude"):
            given = getattr(self, name)
            ok = given is None or (not isinstance(given, str) and all(isinstance(part, str) for part in given))
            require(ok, name, given, "a list of patterns, such as ['head.*', 'conv2d']")
            self.settle(**{name: given if given is None else list(given)})


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(Settings):
    """What the moments may take."""

    memory: Annotated[int | str | None, COMPUTING] = None
    """Most memory for moments and for the work on one layer, besides the model and one batch: bytes, or a text such as
    2GB or 500MB. If more is needed, the layers are split into groups with one pass over the samples each, and moments
    wait in a temporary file (in the folder that TMPDIR names). The result stays the same, and it takes longer."""
    max_rows: Annotated[int | None, CORRECTION] = None
    """Most input rows of a layer (tokens, or positions of a convolution) that its moments are made of, over all
    samples: drawn at random, with the expected error stated. All rows by default."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        _ = self.memory_bytes
        ok = self.max_rows is None or whole(self.max_rows, 1)
        require(ok, "max_rows", self.max_rows, "a whole number of rows, 1 or more")

    @property
    def memory_bytes(self) -> int | None:
        """The memory in bytes; None for no limit."""
        if self.memory is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)", str(self.memory).strip().lower())
        size = float(found[1]) * SIZES.get(found[2], 0) if found and not isinstance(self.memory, bool) else 0
        require(size >= 1, "memory", self.memory, "a number of bytes, or a text such as 2GB or 500MB")
        return int(size)


@dataclass(frozen=True, kw_only=True)
class FoldOptions(Settings):
    """How the verified samples are split."""

    folds: Annotated[int, CORRECTION] = 5
    """Number of folds of the cross-fitting that chooses strengths."""

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        require(whole(self.folds, 2), "folds", self.folds, "a whole number of 2 or more")


@dataclass(frozen=True, kw_only=True)
class GroupOptions(Settings):
    """Which samples are not independent."""

    groups: Annotated[str | Groups | None, DATA] = None
    """Which samples belong together (of one patient or video, or copies with small changes), as for sklearn's
    GroupKFold: a column of the data, an array of .npz, a key of the json of shards, or in Python one text or number per
    sample. A group is never split, and counts as one. Exact copies always share a group."""


@dataclass(frozen=True, kw_only=True)
class UnlabelledOptions(Settings):
    """Inputs beside the verified samples."""

    unlabelled: Annotated[str | Inputs | None, DATA, READS_DATA] = None
    """Inputs whose labels are not known, in any form of the verified samples, with or without labels: labels are
    ignored. In Python also a tensor, a dictionary of tensors or a Dataset of inputs alone; a pair is (inputs, labels).
    Those that equal a verified sample are left out. Stages that need no labels use them."""
    noisy: Annotated[str | Inputs | None, DATA, READS_DATA] = None
    """Samples with labels that nobody verified, such as the training set with its wrong labels, in any form of the
    verified samples. They are used as unlabelled inputs, and their labels only by stages that expect them to be
    wrong."""

    @property
    def beside(self) -> bool:
        """Whether there are any."""
        return self.unlabelled is not None or self.noisy is not None


@dataclass(frozen=True, kw_only=True)
class CollectOptions(RunOptions, LayerOptions):
    """How the moments of verified samples are collected."""

    verified_from: Annotated[Literal["unseen", "training", "trusted"] | None, MAIN] = None
    """Whether the model was trained on the verified samples. "unseen": it was not; prefer such samples. "training": it
    was, so scores on them do not estimate the accuracy on new data. "trusted": nobody verified their labels; `trust` or
    another rule picked the samples. If nothing is said, Python assumes "unseen" to correct; on the command line,
    --verified needs this flag."""
    padding: Annotated[bool, DATA] = True
    """Require a mask of the padding for token ids that contain the model's pad id, and masks that the answers do not
    contradict. Turn it off if the ids need no mask, or if a mask means what its name says in any case."""

    def __post_init__(self) -> None:
        """Check the words."""
        super().__post_init__()
        ok = one_of(self.verified_from, None, *VERIFIED_FROM)
        require(ok, "verified_from", self.verified_from, "'unseen', 'training' or 'trusted'")


@dataclass(frozen=True, kw_only=True)
class ExpectOptions(Settings):
    """What is known of the uncorrected model."""

    expect_accuracy: Annotated[str | float | None, DATA] = None
    """Accuracy in percent that the uncorrected model has in your own pipeline, such as 76.9; or 769/1000, right of
    samples, if it was measured on so many. Stop if the accuracy found here differs by more than sampling error."""

    def __post_init__(self) -> None:
        """Check the accuracy."""
        super().__post_init__()
        _ = self.expected

    @property
    def expected(self) -> tuple[float, int | None] | None:
        """The accuracy, 0 to 1, and the number of samples that it was measured on; None for what is not known."""
        given = self.expect_accuracy
        if given is None:
            return None
        right, _, of = str(given).strip("% ").partition("/")
        try:
            share, count = (float(right) / float(of), int(of)) if of else (float(right) / 100, None)
        except (ValueError, ZeroDivisionError):
            share, count = math.nan, None
        ok = not isinstance(given, bool) and 0 <= share <= 1 and (share > 0.01 or count is not None)
        allowed = "a percentage above 1, such as 76.9, or right/samples, such as 769/1000"
        require(ok, "expect_accuracy", given, allowed)
        return share, count


@dataclass(frozen=True, kw_only=True)
class InputOptions(ExpectOptions):
    """How it is checked that the samples are prepared as in training."""

    check_inputs: Annotated[bool | None, DATA] = None
    """Stop if the samples do not look as in training: accuracy near chance, other statistics before the first
    BatchNorm, or red and blue exchanged. By default, the command line and `verifix.prove` stop, and `verifix.correct`
    only notes it. Turn it off (--force does too) if the samples are right as they are."""

    def __post_init__(self) -> None:
        """Check the word."""
        super().__post_init__()
        ok = self.check_inputs is None or isinstance(self.check_inputs, bool)
        require(ok, "check_inputs", self.check_inputs, "True, False or None")


@dataclass(frozen=True, kw_only=True)
class CorrectOptions(
    GroupOptions, UnlabelledOptions, CollectOptions, FoldOptions, ChoiceOptions, InputOptions, MemoryOptions
):
    """How a model is corrected: what Python and the command line can both give."""

    moments: Annotated[str | Moments | None, CORRECTION, READS] = None
    """Moments of earlier verified samples of the same model, added to those of the new samples: a file, or in Python
    also a loaded SavedMoments."""
    drawn: Annotated[Literal["random", "by-class", "suspects", "mixed"] | None, MAIN] = None
    """How the verified samples were drawn. "random": at random from the data that the model will meet. "by-class": at
    random within each class, but not in the classes' natural shares. "suspects": because their label or the model's
    answer looked wrong. "mixed": some at random, the others for any other reason; a weight of 0 marks these, and they
    only train. With all but the first, the gain on the samples is not that on the data: to prove a gain, say how much
    each sample counts, or give test samples. If nothing is said, Python assumes "random"; on the command line, a proof
    on the verified samples needs this flag, unless they are records of verifix review, which say it."""
    check_labels: Annotated[bool, DATA] = True
    """Stop if the model's predictions fit another order of the labels far better, or if the same input has two labels.
    Turn it off if the labels are correct as they are."""

    def __post_init__(self) -> None:
        """Check the words."""
        super().__post_init__()
        if self.beside and self.max_rows is not None:
            raise UsageError(
                f"max_rows is {self.max_rows}, but drawn rows of unlabelled inputs would not count the same as those "
                "of verified samples; omit it, or give memory"
            )
        require(isinstance(self.check_labels, bool), "check_labels", self.check_labels, "True or False")
        require(one_of(self.drawn, None, *DRAWN), "drawn", self.drawn, f"one of {', '.join(map(repr, DRAWN))}")

    @property
    def origin(self) -> str:
        """What the verified samples are; see `verified_from`."""
        return self.verified_from or VERIFIED_FROM[0]

    def as_dict(self) -> dict[str, Any]:
        """Return the settings that a result depends on, as plain data."""
        # What is in these is told elsewhere, or changes nothing.
        apart = {"progress", "moments", "max_samples", "groups", "memory", "unlabelled", "noisy"}
        plain = {f.name: getattr(self, f.name) for f in fields(CorrectOptions) if f.name not in apart}
        return plain | {"device": str(self.device)}


@dataclass(frozen=True, kw_only=True)
class ForwardArguments(Settings):
    """What only Python can give wherever a model runs."""

    forward: Callable[[nn.Module, Any], Any] | None = None
    """How to call the model: ``(model, inputs) → output``. Needed by models that take more than the inputs of a
    batch."""


@dataclass(frozen=True, kw_only=True)
class GivenArguments(Settings):
    """What only Python can give beside the samples."""

    labels: Any = field(default=None, kw_only=False)
    """Labels ``[n]``, if the samples are given as inputs alone: class indices, or class names."""
    classes: Sequence[str] | None = None
    """Class names in the order of the model's outputs: for labels that are names, and for what is shown. Default: the
    model's own, if it has any."""


@dataclass(frozen=True, kw_only=True)
class CorrectArguments(GivenArguments, ForwardArguments, CorrectOptions):
    """What `verifix.correct` takes: the settings, and what only Python can give."""

    score: Score | None = None
    """The score to choose by: ``(logits [n, k], labels [n]) → [n]`` or a scalar; higher is better. Default:
    accuracy."""
    loss: Score | None = None
    """The loss to choose by: ``(logits, labels) → [n]``; lower is better. Default: cross-entropy at each candidate's
    best temperature."""
    spectra: bool = False
    """Compute the spectrum of every corrected layer for `Correction.spectra`, as the report shows it."""
    stored_as: Mapping[str, torch.dtype] | None = None
    """Dtypes, by parameter name, in which the weights will be stored, if these are narrower than the model's own.
    Corrected weights are rounded to them once, before anything is scored."""

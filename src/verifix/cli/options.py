"""The commands, each a dataclass of its own options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verifix.errors import UsageError
from verifix.io.options import DataOptions, ModelOptions, PredictOptions, WeightOptions, need_weights
from verifix.options import (
    TRUST_METHODS,
    TRUSTED_COUNT,
    VERIFIED_FROM,
    CorrectOptions,
    check_limit,
    check_seed,
    numbers,
    split_list,
)


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
        check_limit(self.limit)
        CorrectOptions.__post_init__(self)
        DataOptions.__post_init__(self)
        ModelOptions.__post_init__(self)
        WeightOptions.__post_init__(self)
        need_weights(self, self.checkpoint, "--checkpoint")
        self._check_proof()

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
        if self.proves_by == "none" and (self.weights_file, self.class_shares) != (None, None):
            raise UsageError(
                "--class-shares and --weights-file say what samples count when the gain is measured, and --proof none "
                "measures none; leave them out, or prove the gain"
            )
        if self.weights_file is not None and self.test is None and (self.limit, self.trusted) != (None, None):
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
class ScoreCommand(PredictOptions, DataOptions, ModelOptions):
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
    json
        Print the result as JSON on stdout.
    """

    checkpoint: str | None = None
    data: str
    limit: int | None = None
    seed: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        DataOptions.__post_init__(self)
        ModelOptions.__post_init__(self)
        check_limit(self.limit)
        check_seed(self.seed)
        PredictOptions.__post_init__(self)
        need_weights(self, self.checkpoint, "verifix score CHECKPOINT")


@dataclass(frozen=True, kw_only=True)
class CompareCommand(WeightOptions, PredictOptions, DataOptions, ModelOptions):
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
    json
        Print the result as JSON on stdout.
    """

    before: str
    after: str
    data: str
    model: str | None = None  # type: ignore[assignment]
    seed: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        DataOptions.__post_init__(self)
        ModelOptions.__post_init__(self)
        PredictOptions.__post_init__(self)
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
        return numbers("input_shape", self.input_shape)  # type: ignore[arg-type]


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

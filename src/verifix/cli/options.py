"""The commands: each is the settings that it takes, and says what they must be together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from verifix.cli.base_options import Command, WritingCommand
from verifix.cli.verifying_options import VERIFYING
from verifix.errors import UsageError
from verifix.evaluation.draw import check_drawn
from verifix.io.data.records import header_of
from verifix.io.options import (
    CheckpointOptions,
    DataOptions,
    LimitOptions,
    ModelOptions,
    SampleOptions,
    WeightOptions,
    numbers,
)
from verifix.options import (
    DRAWN,
    TRUST_METHODS,
    TRUSTED_COUNT,
    VERIFIED_FROM,
    CorrectOptions,
    ExpectOptions,
    FoldOptions,
    GroupOptions,
    InputOptions,
    LayerOptions,
    MemoryOptions,
    RunOptions,
)
from verifix.settings import AS_TEXT, DATA, MAIN, OUTPUT, PROOF, READS, READS_DATA, SWITCH, WRITES, require


@dataclass(frozen=True, kw_only=True)
class SourceOptions(LimitOptions):
    """Which samples a checkpoint is corrected from."""

    verified: Annotated[str | None, MAIN, READS_DATA] = None
    """The verified samples: a folder with one subfolder of images per class, or with metadata.csv; a table (.csv,
    .tsv, .jsonl, .parquet) of file names, images or texts with labels; a folder of datasets.save_to_disk
    (FOLDER:SPLIT); .tar shards (shard-{000..003}.tar); a .npz file with inputs "x" and labels "y"; webvision:DIR,
    mini-webvision:DIR, clothing1m:DIR:LIST, cifar10n:DIR:LABELS, cifar100n:DIR:LABELS; or the records of verifix
    review (.jsonl) on samples of any of these."""
    trusted: Annotated[str | None, DATA, READS_DATA] = None
    """If nothing was verified: labelled samples to pick from, such as the training set with its wrong labels, in any
    form of --verified. The samples whose labels are most probably correct are picked."""
    trust: Annotated[Literal["low-loss", "low-curvature", "confident"] | None, DATA] = None
    """How to pick them: "low-loss" (the default), "low-curvature" or "confident" (cleanlab)."""
    trusted_count: Annotated[int | None, DATA] = None
    """How many samples are picked, the same number from each class; 1000 by default."""

    def __post_init__(self) -> None:
        """Check that there is one source of samples."""
        super().__post_init__()
        if (self.verified is None) == (self.trusted is None):
            raise UsageError("correct needs --verified, or --trusted if nothing was verified")
        if self.trusted is None and (self.trust, self.trusted_count) != (None, None):
            raise UsageError("--trust and --trusted-count say how to pick from --trusted, which is not given")

    @property
    def data(self) -> str:
        """Where the samples to correct from, or to pick them from, are."""
        return str(self.verified or self.trusted)

    @property
    def picks(self) -> tuple[str, int]:
        """How samples are picked from `trusted`, and how many."""
        return self.trust or TRUST_METHODS[0], TRUSTED_COUNT if self.trusted_count is None else self.trusted_count


@dataclass(frozen=True, kw_only=True)
class ProofOptions(WeightOptions):
    """How the gain is measured."""

    test: Annotated[str | None, PROOF, READS_DATA] = None
    """Samples to measure the gain on, used neither in training nor for the correction, in any form of --verified."""
    proof: Annotated[Literal["none", "split", "nested"] | None, PROOF] = None
    """How to prove the gain without --test. "nested" (the default) makes five more corrections, each judged on a fifth
    of the samples that it has not seen. "split" corrects with one half of the verified samples and judges on the other.
    "none" writes the chosen correction without a proof."""


@dataclass(frozen=True, kw_only=True)
class ResultOptions(WritingCommand):
    """What is written."""

    out: Annotated[str, MAIN, WRITES]
    """Where to write the corrected checkpoint, in the format of the given one. The correction file is written beside
    it."""
    report: Annotated[str | None, OUTPUT, WRITES] = None
    """Where to write the report, one .html file: verdict, curves, confusions, samples set right and broken, layers."""
    result: Annotated[str | None, OUTPUT, WRITES] = None
    """Where to write the result as JSON, the same that --json prints."""
    card: Annotated[str | None, OUTPUT, WRITES] = None
    """Where to write a model card (.md) for the Hugging Face Hub. Needs verifix[hub]."""
    push_to_hub: Annotated[str | None, OUTPUT] = None
    """Upload the corrected checkpoint with its correction file and model card to this repository (ORG/NAME) of the
    Hugging Face Hub, once they are written. A new repository is private. Needs verifix[hub], and hf auth login."""
    save_moments: Annotated[str | None, OUTPUT, WRITES] = None
    """Where to write the moments of the verified samples, for --moments of a later run."""
    dry_run: Annotated[bool, OUTPUT, SWITCH] = False
    """Read and check everything, say what would be done and about how long it takes, and write nothing. It fits each
    stage in one fold, to measure it."""
    verbose: Annotated[bool, OUTPUT, SWITCH] = False
    """Print every path, strength, layer and class, and not only the verdict and one line per stage."""


@dataclass(frozen=True, kw_only=True)
class CorrectCommand(ResultOptions, ProofOptions, CorrectOptions, DataOptions, SourceOptions, CheckpointOptions):
    """Correct a checkpoint from a verified set.

    Example: verifix correct --model py:net.py:build --checkpoint net.safetensors --verified verified/
    --verified-from unseen --drawn random --out fixed.safetensors --report report.html
    """

    needs: ClassVar[tuple[str, ...]] = ("model", "out")
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check what the settings must be together."""
        super().__post_init__()
        self.need_weights("--checkpoint")
        self._settle_origin()
        self._check_proof()

    def _settle_origin(self) -> None:
        if self.trusted is not None:
            if self.verified_from not in (None, "trusted"):
                raise UsageError(
                    f"--verified-from {self.verified_from} contradicts --trusted, whose labels nobody verified"
                )
            if self.drawn is not None:
                raise UsageError("--drawn says how verified samples were drawn, but nobody verified those of --trusted")
            self.settle(verified_from="trusted")
            if self.expect_accuracy is not None and self.test is None:
                raise UsageError(
                    "--expect-accuracy says nothing on samples that --trusted picks by their labels, on which a model "
                    "is right more often; give new samples with --test, or omit it"
                )
        elif self.verified_from is None:
            raise UsageError(f"--verified needs --verified-from, one of {', '.join(VERIFIED_FROM)}")
        if self._says_how_drawn:
            if self.drawn not in (None, "mixed"):
                raise UsageError(
                    f"--drawn is {self.drawn}, but {self.verified} says itself how its samples were drawn; omit it"
                )
            if self.weighted and self.test is None:
                raise UsageError(
                    f"{self.verified} says itself how much its samples count; omit --class-shares and --weights-file, "
                    "or give test samples with --test"
                )
            self.settle(drawn="mixed")

    def _check_proof(self) -> None:
        if self.test is not None and self.proof in ("nested", "split"):
            raise UsageError(f"--test proves the gain already; omit --proof {self.proof}")
        if self.proves_by in ("nested", "split"):
            self._check_proof_on_verified()
        if self.proves_by == "none" and self.weighted:
            raise UsageError(
                "--class-shares and --weights-file weight the samples on which the gain is measured, but --proof none "
                "measures no gain; omit them, or prove the gain"
            )
        if self.weights_file is not None and self.test is None and (self.limit, self.trusted) != (None, None):
            raise UsageError(
                "--weights-file has one weight per sample, but --limit and --trusted use only some of the samples"
            )

    def _check_proof_on_verified(self) -> None:
        if self.verified_from != "unseen":
            why = "the model was trained on" if self.verified_from == "training" else "nobody verified"
            raise UsageError(
                f"samples that {why} prove nothing: give others with --test, or --proof none to write without a proof"
            )
        if self.drawn is None:
            raise UsageError(
                f"--proof {self.proves_by} needs --drawn, one of {', '.join(DRAWN)}: how the verified samples were "
                "drawn; or give test samples with --test, or --proof none to write without a proof"
            )
        weighted = self._says_how_drawn or self.weights_file is not None
        check_drawn(self.drawn, weighted=weighted, shares=self.class_shares is not None)

    @property
    def _says_how_drawn(self) -> bool:
        """Whether the verified samples are records that say which of them were drawn at random."""
        header = header_of(self.verified or "")
        return header is not None and header.probability is not None

    @property
    def shows(self) -> bool:
        """Whether any file is wanted that shows more than the figures."""
        return (self.report, self.result, self.card) != (None, None, None)

    @property
    def stops(self) -> bool:
        """Whether to stop where samples do not look as in training."""
        return not self.force if self.check_inputs is None else self.check_inputs

    @property
    def weighted(self) -> bool:
        """Whether the samples that the gain is measured on count more or less."""
        return (self.class_shares, self.weights_file) != (None, None)

    @property
    def proves_by(self) -> str:
        """What the gain is measured by: "test", "nested", "split" or "none"."""
        return "test" if self.test is not None else self.proof or "nested"


@dataclass(frozen=True, kw_only=True)
class ScoreCommand(Command, RunOptions, ExpectOptions, LimitOptions, SampleOptions, CheckpointOptions):
    """Score a checkpoint on labelled samples.

    Example: verifix score net.safetensors --model py:net.py:build --data test/
    """

    needs: ClassVar[tuple[str, ...]] = ("model", "data")
    shared: ClassVar[bool] = True

    scores: Annotated[str | None, OUTPUT, WRITES] = None
    """A new folder for the predictions of all samples: one Parquet file per process. What a killed run has computed is
    kept in it until then, and the same command goes on from there."""

    def __post_init__(self) -> None:
        """Check that there are weights."""
        super().__post_init__()
        self.need_weights("verifix score CHECKPOINT")


@dataclass(frozen=True, kw_only=True)
class CompareCommand(Command, WeightOptions, GroupOptions, RunOptions, InputOptions, SampleOptions, ModelOptions):
    """Compare two checkpoints, or two files of predictions, on labelled samples.

    Example: verifix compare net.safetensors fixed.safetensors --model py:net.py:build --data test/
    """

    needs: ClassVar[tuple[str, ...]] = ("before", "after", "data")

    before: Annotated[str, MAIN, READS] = field(kw_only=False)
    """The first: a checkpoint in any form that verifix correct takes, or a file of predictions: .npy, .npz, or .csv,
    .tsv, .jsonl or .parquet with one column of numbers per class (logits or probabilities) or one column of predicted
    classes."""
    after: Annotated[str, MAIN, READS] = field(kw_only=False)
    """The second, in the same form. Neither model may have been trained on the samples."""


@dataclass(frozen=True, kw_only=True)
class InspectCommand(Command, FoldOptions, LayerOptions, MemoryOptions, SampleOptions, CheckpointOptions):
    """Show what would be corrected, what would be skipped and why, and the memory needed.

    Example: verifix inspect --model torchvision:resnet18 --input-shape 3,224,224
    """

    needs: ClassVar[tuple[str, ...]] = ("model",)

    input_shape: Annotated[Sequence[int] | str | None, MAIN, AS_TEXT] = None
    """Shape of one input, such as 3,32,32, instead of --data."""
    samples: Annotated[int, OUTPUT] = 1000
    """Number of verified samples to estimate the memory for."""

    def __post_init__(self) -> None:
        """Check that there is something to run the model on."""
        super().__post_init__()
        if bool(self.data) == (self.input_shape is not None):
            raise UsageError("inspect needs one of --data and --input-shape, to run the model once")
        require(self.samples >= 1, "samples", self.samples, "1 or more")
        if any(size < 1 or size != int(size) for size in self.shape):
            raise UsageError(f"input_shape is {self.input_shape!r}; give whole numbers, such as 3,32,32")

    @property
    def shape(self) -> list[float]:
        """The input shape as numbers; empty if none was given."""
        return numbers("input_shape", self.input_shape)


@dataclass(frozen=True, kw_only=True)
class DemoCommand(WritingCommand):
    """Train a small network on wrong labels, correct it, and show the difference.

    Example: verifix demo spiral --seeds 3
    """

    name: Annotated[Literal["digits", "spiral"], MAIN] = field(default="digits", kw_only=False)
    """Which one: "digits" (handwritten digits, 30% wrong labels) or "spiral" (the two spirals of the paper)."""
    out: Annotated[str | None, OUTPUT, WRITES] = None
    """Folder for the report and the pictures. Default: a new one."""
    seed: Annotated[int, MAIN] = 0
    """First seed."""
    seeds: Annotated[int, MAIN] = 1
    """Number of seeds to run, counting up from the first."""

    def __post_init__(self) -> None:
        """Check the seeds."""
        super().__post_init__()
        if self.seeds < 1 or self.seed < 0 or self.seed + self.seeds > 2**32:
            raise UsageError(f"seed is {self.seed} and seeds {self.seeds}; use seeds from 0 to 4294967295, one or more")


@dataclass(frozen=True, kw_only=True)
class UndoCommand(WritingCommand):
    """Restore the original of a corrected checkpoint, and verify it by hash.

    Example: verifix undo fixed.safetensors --out restored.safetensors
    """

    needs: ClassVar[tuple[str, ...]] = ("checkpoint", "out")

    checkpoint: Annotated[str, MAIN, READS] = field(kw_only=False)
    """The corrected checkpoint: a file, a folder or an index, as verifix correct wrote it."""
    out: Annotated[str, MAIN, WRITES]
    """Where to write the original, in the same format."""
    correction: Annotated[str | None, MAIN, READS] = None
    """The correction file that was written with the checkpoint. Default: the one beside it."""


COMMANDS: dict[str, type[Command]] = {
    "demo": DemoCommand,
    "correct": CorrectCommand,
    **VERIFYING,
    "score": ScoreCommand,
    "compare": CompareCommand,
    "inspect": InspectCommand,
    "undo": UndoCommand,
}
"""The commands, by name."""

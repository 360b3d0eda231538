"""The commands around the verified samples: which to verify, a page to do it on, and exchange with other tools."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from verifix.cli.base_options import Command, WritingCommand
from verifix.errors import UsageError
from verifix.io.options import CheckpointOptions, DataOptions, PoolOptions, SampleOptions
from verifix.options import ChoiceOptions, CollectOptions
from verifix.selection.options import SelectOptions
from verifix.settings import DATA, MAIN, NEEDED, READS, READS_DATA, WRITES, require, whole


@dataclass(frozen=True, kw_only=True)
class SelectCommand(WritingCommand, SelectOptions, SampleOptions, CheckpointOptions):
    """Select the samples to verify next, for verifix review.

    Example: verifix select net.safetensors --model py:net.py:build --data photos/ --count 300 --out queue.jsonl
    """

    needs: ClassVar[tuple[str, ...]] = ("model", "data", "out")
    shared: ClassVar[bool] = True

    out: Annotated[str, MAIN, WRITES]
    """Where to write the queue, a .jsonl file."""
    labels: Annotated[bool, DATA] = True
    """Read the given labels. Turn it off if the samples have none."""

    def __post_init__(self) -> None:
        """Check that there are weights, and labels where they are needed."""
        super().__post_init__()
        self.need_weights("verifix select CHECKPOINT")
        if not self.labels and self.by in ("balanced", "suspect"):
            raise UsageError(f"--strategy {self.by} looks at given labels, which --no-labels says are not there")


@dataclass(frozen=True, kw_only=True)
class ReviewCommand(Command, ChoiceOptions, CollectOptions, DataOptions, CheckpointOptions):
    """Verify samples by keyboard, on a page in the browser that only this machine can open.

    With --model, a correction is made in the background after every 50 labels, and the page shows what it gains.

    Example: verifix review queue.jsonl
    """

    needs: ClassVar[tuple[str, ...]] = ("queue",)

    queue: Annotated[str, MAIN, READS] = field(kw_only=False)
    """The samples to verify, as verifix select wrote them. Needs verifix[review]."""
    checkpoint: Annotated[str | None, MAIN, READS] = None
    """With --model: the trained weights, in any form that verifix correct takes."""
    out: Annotated[str | None, MAIN, WRITES] = None
    """The file of records (.jsonl), which is continued if it exists. Every decision is on the disk before the page says
    that it is saved. Default: verified.jsonl beside the queue."""
    port: Annotated[int, MAIN] = 8765
    """Port of the page on 127.0.0.1; 0 for any that is free."""

    def __post_init__(self) -> None:
        """Check the port, and that a model can be run in the background."""
        super().__post_init__()
        require(whole(self.port) and self.port < 2**16, "port", self.port, "a whole number from 0 to 65535")
        if self.model:
            self.need_weights("--checkpoint")
            if self.verified_from != "unseen":
                raise UsageError(
                    "--model shows the gain on samples that the model was not trained on; say so with --verified-from "
                    "unseen, or omit --model"
                )


@dataclass(frozen=True, kw_only=True)
class ImportCommand(WritingCommand, DataOptions):
    """Read labels from another tool, as verified records; or label issues, as a queue for verifix review.

    Example: verifix import project.json --format label-studio --queue queue.jsonl --out verified.jsonl
    """

    needs: ClassVar[tuple[str, ...]] = ("source", "format", "out")

    source: Annotated[str, MAIN, READS] = field(kw_only=False)
    """What to read: a file, or a folder of datasets.save_to_disk."""
    format: Annotated[Literal["cleanlab", "label-studio", "fiftyone", "huggingface", "datasets", "manifest"], MAIN]
    """What it is. "cleanlab": a mask or ranked indices (.npy), or a table of label issues, of CleanLearning or Datalab;
    becomes a queue. "label-studio": tasks with annotations (.json). "fiftyone": labels.json. "huggingface": metadata of
    an image folder (.jsonl, .csv, .parquet). "datasets": a folder of save_to_disk. "manifest": a table with id,
    file_name or text, and verified_label or label."""
    data: Annotated[str, MAIN, NEEDED, READS_DATA] = ""
    """The data set that the labels are for, in any form that --verified of verifix correct takes."""
    queue: Annotated[str | None, MAIN, READS] = None
    """A queue instead of --data: the data set is that of the queue, and samples of its random part still prove a
    gain."""
    out: Annotated[str, MAIN, WRITES]
    """Where to write the records or the queue, a .jsonl file."""
    annotator: Annotated[str | None, DATA] = None
    """Who decided, where the source does not say it. Default: the name of the tool."""

    def __post_init__(self) -> None:
        """Check that the data set is named once."""
        super().__post_init__()
        if bool(self.data) == (self.queue is not None):
            raise UsageError("import needs one of --data and --queue, which say for which data set the labels are")


@dataclass(frozen=True, kw_only=True)
class ExportCommand(WritingCommand, PoolOptions):
    """Write verified labels for the next training, or for another tool.

    Example: verifix export verified.jsonl --format cleaned --out cleaned.csv
    """

    needs: ClassVar[tuple[str, ...]] = ("records", "format", "out")

    records: Annotated[str, MAIN, READS] = field(kw_only=False)
    """Verified records; for label-studio also a queue."""
    format: Annotated[
        Literal["cleaned", "manifest", "cleanlab", "label-studio", "fiftyone", "huggingface", "datasets"], MAIN
    ]
    """What to write. "cleaned": all samples, with the verified label where there is one (.csv, .jsonl, .parquet).
    "manifest": the samples that were looked at, with status. "cleanlab": label issues, as a mask (.npy) or a table
    (.csv, .parquet). "label-studio": tasks (.json). "fiftyone": labels.json. "huggingface": metadata of an image folder
    (.jsonl, .csv). "datasets": a folder of save_to_disk."""
    out: Annotated[str, MAIN, WRITES]
    """Where to write it."""


VERIFYING: dict[str, type[Command]] = {
    "select": SelectCommand,
    "review": ReviewCommand,
    "import": ImportCommand,
    "export": ExportCommand,
}
"""These commands, by name."""

"""`verifix correct --dry-run`: what would be done, and about how long it would take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from verifix.cli.commands.places import written_by
from verifix.cli.options import CorrectCommand
from verifix.errors import first_of
from verifix.evaluation.provable import OUTER_FOLDS
from verifix.io.checkpoints.undo_record import correction_path
from verifix.model.call import own_call
from verifix.model.samples import Samples
from verifix.options import CorrectArguments
from verifix.preflight import begin
from verifix.progress import duration
from verifix.proof import seconds_of_proof
from verifix.recipe.crossfit import Rules
from verifix.recipe.forecast import forecast
from verifix.report.formatting import plural


@dataclass(frozen=True)
class DryRun:
    """What a correction would do.

    Attributes
    ----------
    samples, classes
        Verified samples, and outputs of the model.
    paths
        The paths of stages that would be tried, with the seconds that the last stage of each takes.
    folds
        Folds that choose; 0 if nothing would be chosen.
    layers
        Parameters that would be corrected.
    proof
        How the gain would be measured.
    seconds, proof_seconds
        About what the correction and its proof would take.
    would_write
        Files, in the order of the settings.
    preprocessing
        How samples become inputs.
    notes
        What was noticed about samples and model.
    """

    samples: int
    classes: int
    paths: Mapping[str, float]
    folds: int
    layers: int
    proof: str
    seconds: float
    proof_seconds: float
    would_write: tuple[str, ...]
    preprocessing: str
    notes: tuple[str, ...]

    def text(self) -> str:
        """Say it in a few lines."""
        longest = [path for path in self.paths if not any(other.startswith(f"{path} → ") for other in self.paths)]
        what = f"{plural(len(self.paths), 'path')} of stages ({first_of(longest, 6)}) in {self.folds} folds"
        lines = [
            "Dry run: everything was read and checked, and nothing is written.",
            f"{self.samples} verified samples, {self.classes} classes; {self.layers} layers would be corrected.",
            f"Correction: {what if self.paths else 'with the given strength'}, about {duration(self.seconds)}.",
            f"Proof: {self.proof}, about {duration(self.proof_seconds)}.",
            f"Preprocessing of the samples: {self.preprocessing or 'none'}.",
            *self.notes,
            f"Would write {', '.join(self.would_write)}.",
        ]
        return "\n".join(lines)


def dry_run(
    model: nn.Module, verified: Samples, settings: Mapping[str, Any], command: CorrectCommand, notes: tuple[str, ...]
) -> tuple[int, DryRun, str]:
    """Check all that a correction checks before it chooses, and measure the first fit of each stage.

    Parameters
    ----------
    model, verified
        As `verifix.correct` takes them.
    settings
        Its settings.
    command
        The command.
    notes
        What was noticed on reading.

    Returns
    -------
    code : int
        0.
    result : DryRun
        What would be done.
    text : str
        The same for reading.
    """
    options, began = replace(CorrectArguments(**settings), progress=False), time.perf_counter()
    with (
        own_call(options.seed),
        begin(model, verified, options, folds=options.folds) as start,
    ):
        read = time.perf_counter() - began
        stages = forecast(start.plan, start.whole, Rules(options, options.score, options.loss))
        classes = start.whole.run.collected.logits.shape[1]
        layers = len({layer.parameter for layer in start.whole.layers})
    choosing, kind = sum(stages.values()), command.proves_by
    proof = {"nested": seconds_of_proof(read, choosing, options.folds), "split": read}.get(kind, 0.0)
    others = [str(path) for path in written_by(command) if path != Path(command.out)]
    found = DryRun(
        samples=len(verified),
        classes=max(classes, 2),
        paths={" → ".join(path): round(seconds, 1) for path, seconds in stages.items()},
        folds=options.folds if stages else 0,
        layers=layers,
        proof=_proof(kind),
        seconds=round(read + choosing, 1),
        proof_seconds=round(proof, 1),
        would_write=(command.out, str(correction_path(command.out)), *others),
        preprocessing=verified.source.prepared,
        notes=(*notes, *start.provenance["notes"]),
    )
    return 0, found, found.text()


def _proof(kind: str) -> str:
    return {
        "nested": f"{OUTER_FOLDS} more corrections, each judged on a fifth of the samples",
        "split": "a correction with one half of the samples, judged on the other",
        "test": "on the test samples",
    }.get(kind, "none")

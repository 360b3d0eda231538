"""`verifix inspect`: what a correction would touch."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from verifix.capture.memory_plan import Limits
from verifix.cli.commands.common import first_sample, open_model
from verifix.cli.options import InspectCommand
from verifix.errors import UsageError, printable
from verifix.inspection import Survey, inspect
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.data.open import open_data
from verifix.io.data.preprocessing import prepare

COVERED = 0.9
"""Below this share of the multiplied weights, `inspect` warns."""


@dataclass(frozen=True)
class Inspection:
    """What a correction would touch.

    Attributes
    ----------
    corrected_share
        Share of the multiplied weights that would be corrected, 0 to 1.
    parameters
        What becomes of each parameter of two or more dimensions.
    memory_bytes
        What a correction holds besides the model, with so many samples and folds.
    passes
        For each pass over the samples, the parameters whose moments it collects.
    file_bytes
        What waits in a temporary file.
    samples, folds
        As they were given.
    warning
        That much would not be corrected; None if little would not.
    """

    corrected_share: float
    parameters: list[dict[str, Any]]
    memory_bytes: int
    passes: list[list[str]]
    file_bytes: int
    samples: int
    folds: int
    warning: str | None


def run_inspect(command: InspectCommand) -> tuple[int, Inspection, str]:
    """Show what a correction would touch; see `InspectCommand`."""
    checkpoint = None if command.checkpoint is None else read_checkpoint(command.checkpoint, command.weights)
    # transformers builds models without values as well, so that those are surveyed that do not fit into memory.
    without_values = checkpoint is None and str(command.model).startswith("hf:")
    with torch.device("meta") if without_values else nullcontext():
        model = open_model(command, checkpoint)
    preparation = prepare(model, command.model, command)
    if not command.data:
        shape = list(map(int, command.shape))
        inputs = torch.zeros(1, *shape) if preparation.tokenize is None else _ids(shape)
    else:
        first = first_sample(open_data(command.data, command, preparation))
        inputs = next(first.batches([0], 1)).inputs
    survey = inspect(model, inputs, include=command.include, exclude=command.exclude)
    limits = Limits(command.memory_bytes, command.max_rows)
    plan, warning = survey.plan(command.samples, command.folds, limits), _warning(survey)
    result = Inspection(
        **survey.as_dict(),
        memory_bytes=plan.at_once + plan.weights,
        passes=[list(dict.fromkeys(layer.parameter for layer in group)) for group in plan.groups],
        file_bytes=plan.in_file,
        samples=command.samples,
        folds=command.folds,
        warning=warning,
    )
    lines = [_inspect_line(entry) for entry in result.parameters]
    lines.append(_share_line(survey))
    lines.append(
        f"{len(survey.layers)} layers would be corrected, with {command.samples} samples and {command.folds} folds. "
        f"{plan.line}"
    )
    if plan.passes > 1:
        lines += [f"pass {i}: {names[0]} to {names[-1]}" for i, names in enumerate(result.passes, 1)]
    lines += [f"Warning: {warning}."] if warning else []
    return (0 if survey.layers else 4), result, "\n".join(lines)


def _warning(survey: Survey) -> str | None:
    if survey.share >= COVERED:
        return None
    return f"only {survey.share:.1%} of the multiplied weights would be corrected; see above why the others are not"


def _share_line(survey: Survey) -> str:
    """Say what becomes of all parameters of two or more dimensions, in shares of what they have in common."""
    sizes = survey.sizes
    multiplied = sizes["corrected"] + sizes["skipped"]
    parts = [f"{sizes[what] / max(multiplied, 1):.2%} {what}" for what in ("corrected", "skipped")]
    words = {"not_multiplied": "looked up, added or moved", "unused": "unused"}
    others = [f"{sizes[what]} {word}" for what, word in words.items() if sizes[what]]
    return f"Of {multiplied} multiplied weights: {', '.join(parts)}." + (
        f" Besides, {', '.join(others)}." if others else ""
    )


def _ids(shape: list[int]) -> dict[str, torch.Tensor]:
    """Return a text of so many tokens, for a model of texts."""
    if len(shape) != 1:
        raise UsageError(f"input_shape is {shape}; for a text model it is the number of tokens, such as 16")
    return {"input_ids": torch.ones(1, *shape, dtype=torch.long), "attention_mask": torch.ones(1, *shape).long()}


def _inspect_line(entry: dict[str, Any]) -> str:
    if entry["status"] == "corrected":
        what = f"would be corrected, {entry['kind']}, {entry['rows_per_sample']:.0f} rows per sample"
    else:
        what = ", ".join(filter(None, (entry["status"], entry["reason"])))
    return printable(f"{entry['parameter']}: {what}", one_line=True)

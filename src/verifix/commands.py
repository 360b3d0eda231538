"""What each command does: read, call the library, write, print."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from verifix.algorithm import correct
from verifix.capture import borrowed
from verifix.correction import TRAINING_NOTE, Correction
from verifix.files import check_output
from verifix.io.checkpoints import Checkpoint, correction_path, read_checkpoint
from verifix.io.datasets import open_data
from verifix.io.models import build_model
from verifix.options import CorrectCommand, DemoCommand, InspectCommand, ScoreCommand, split_list
from verifix.progress import progress_bar
from verifix.samples import Samples, check_labels, read_samples
from verifix.scoring import correct_or_not, cross_entropy, device_named, predict
from verifix.survey import collect_moments, inspect


def run(command: Any) -> int:
    """Run a command.

    Parameters
    ----------
    command
        Its settings.

    Returns
    -------
    int
        The exit code.
    """
    if isinstance(command, CorrectCommand):
        return run_correct(command)
    if isinstance(command, ScoreCommand):
        return run_score(command)
    if isinstance(command, InspectCommand):
        return run_inspect(command)
    return run_demo(command)


def run_correct(command: CorrectCommand) -> int:
    """Correct a checkpoint and write it, if a correction won; see `CorrectCommand`."""
    start = time.perf_counter()
    checkpoint = read_checkpoint(command.checkpoint)
    checkpoint.refuse_corrected()
    checkpoint.check_out(command.out, force=command.force)
    if command.save_moments is not None:
        check_output(command.save_moments, force=command.force)
    model = _model(command.model, command.num_classes, checkpoint).to(_device(command.device))
    verified = open_data(command.verified, command)
    test = None if command.test is None else read_samples(open_data(command.test, command), 250, command.progress)
    correction = correct(
        model,
        verified,
        alpha=command.alpha,
        recipe=command.recipe,
        include=command.include,
        exclude=command.exclude,
        folds=command.folds,
        seed=command.seed,
        batch_size=command.batch_size,
        verified_from=command.verified_from,
        moments=command.moments,
        progress=command.progress,
    )
    result = correction.as_dict() | {"changed": correction.changed, "out": None, "correction_file": None}
    if test is not None:
        result["test"] = _measure(model, correction, test, command)
    if command.verified_from == "training":
        result["warning"] = TRAINING_NOTE
    if command.save_moments is not None:
        collected = collect_moments(
            model,
            verified,
            include=command.include,
            exclude=command.exclude,
            batch_size=command.batch_size,
            progress=command.progress,
        )
        collected.save(command.save_moments, force=command.force)
    if correction.changed:
        result |= _write(correction, checkpoint, command)
    result["seconds"] = round(time.perf_counter() - start, 2)
    _print(result, _correct_text(correction, result), command.json)
    return 0 if correction.changed else 3


def _measure(model: nn.Module, correction: Correction, test: Samples, command: CorrectCommand) -> dict[str, Any]:
    before = _accuracy(model, test, command.progress, "test, before")["accuracy"]
    after = _accuracy(correction.model, test, command.progress, "test, after")["accuracy"]
    return {"samples": len(test), "before": before, "after": after, "gain": after - before}


def _write(correction: Correction, checkpoint: Checkpoint, command: CorrectCommand) -> dict[str, str]:
    beside = correction.save(correction_path(command.out), force=command.force)
    provenance = dict(correction.provenance) | {"strengths": correction.strengths, "correction_file": beside.name}
    out = checkpoint.save(command.out, correction.corrected, provenance, force=command.force)
    return {"out": str(out), "correction_file": str(beside)}


def _correct_text(correction: Correction, result: dict[str, Any]) -> str:
    lines = [correction.summary()]
    if "test" in result:
        test = result["test"]
        lines.append(
            f"On {test['samples']} test samples: {test['before']:.2f}% right before, {test['after']:.2f}% after "
            f"({test['gain']:+.2f})."
        )
    written = (
        f"Wrote {result['out']} and {result['correction_file']}."
        if result["out"]
        else "No change: nothing was written."
    )
    return "\n".join([*lines, f"{written} {result['seconds']:.0f} s."])


def run_score(command: ScoreCommand) -> int:
    """Score a checkpoint; see `ScoreCommand`."""
    model = _model(command.model, command.num_classes, read_checkpoint(command.checkpoint)).to(_device(command.device))
    samples = read_samples(open_data(command.data, command), command.batch_size, command.progress)
    result = _accuracy(model, samples, command.progress, "scoring")
    text = (
        f"{result['accuracy']:.2f}% of {result['samples']} samples right, cross-entropy {result['cross_entropy']:.4f}"
    )
    _print(result, text, command.json)
    return 0


def run_inspect(command: InspectCommand) -> int:
    """Show what a correction would touch; see `InspectCommand`."""
    checkpoint = None if command.checkpoint is None else read_checkpoint(command.checkpoint)
    model = _model(command.model, command.num_classes, checkpoint)
    if command.data is None:
        inputs = torch.zeros(1, *map(int, command.shape))
    else:
        inputs = next(read_samples(_First(open_data(command.data, command))).batches([0], 1)).inputs
    survey = inspect(model, inputs, include=split_list(command.include), exclude=split_list(command.exclude))
    memory = survey.memory(command.samples, command.folds)
    result = survey.as_dict() | {"memory_bytes": memory, "samples": command.samples, "folds": command.folds}
    lines = [
        f"{entry['parameter']}: {entry['status']}, "
        + (
            entry["reason"] or f"{entry['kind']}, {entry['rows_per_sample']:.0f} rows per sample"
            if entry["kind"] or entry["reason"]
            else "never used"
        )
        for entry in result["parameters"]
    ]
    lines.append(
        f"{len(survey.layers)} layers would be corrected; about {memory / 2**20:.0f} MiB besides the model, with "
        f"{command.samples} samples and {command.folds} folds."
    )
    _print(result, "\n".join(lines), command.json)
    return 0 if survey.layers else 4


class _First(Dataset[Any]):
    """The first sample of a dataset."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def run_demo(command: DemoCommand) -> int:
    """Run a demonstration; see `DemoCommand`."""
    from verifix import demo

    result, text = demo.run(command.name, command.seed, command.seeds, command.out, progress=not command.json)
    _print(result, text, command.json)
    return 0


def _model(name: str, num_classes: int | None, checkpoint: Checkpoint | None) -> nn.Module:
    model = build_model(name, num_classes)
    if checkpoint is not None:
        checkpoint.load_into(model)
    return model.eval()


def _device(name: str) -> torch.device:
    """Return the device wanted; "auto" is a GPU if there is one."""
    return device_named(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _accuracy(model: nn.Module, samples: Samples, show: bool, title: str) -> dict[str, Any]:
    device = next(model.parameters()).device
    size = samples.batch_size or 250
    parts = []
    with borrowed(model), progress_bar(title, len(samples), show) as bar:
        for start in range(0, len(samples), size):
            indices = range(start, min(start + size, len(samples)))
            parts.append(predict(model, samples, indices, size, device))
            bar.update(len(indices))
    logits = torch.cat(parts)
    check_labels(samples.labels, logits.shape[1])
    return {
        "samples": len(samples),
        "accuracy": 100 * float(correct_or_not(logits, samples.labels).mean()),
        "cross_entropy": float(cross_entropy(logits, samples.labels).mean()),
    }


def _print(result: dict[str, Any], text: str, as_json: bool) -> None:
    sys.stdout.write((json.dumps(result, indent=2) if as_json else text) + "\n")

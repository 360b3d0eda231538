"""`verifix compare`: whether one model is better than another, by how much, and how sure that is."""

from __future__ import annotations

from typing import Any

from verifix.cli.commands.common import check_names, device_wanted, logits_of, open_model, weights_of
from verifix.cli.options import CompareCommand
from verifix.errors import UsageError
from verifix.evaluation.comparison import compare
from verifix.evaluation.predictions import as_labels
from verifix.io.checkpoints.checkpoint import read_checkpoint
from verifix.io.data.open import open_data
from verifix.io.data.prediction_files import is_predictions, read_labels, read_predictions
from verifix.io.data.preprocessing import prepare
from verifix.model.samples import Samples, read_samples


def run_compare(command: CompareCommand) -> tuple[int, dict[str, Any], str]:
    """Compare two checkpoints or files of predictions; see `CompareCommand`."""
    answers, given, about = _answers(command)
    labels = as_labels(given)
    names = about["class_names"]
    weights = weights_of(command, labels, names, range(len(labels)))
    comparison = compare(answers[0], answers[1], labels, weights=weights, seed=command.seed)
    compared: dict[str, Any] = {
        "before": command.before,
        "after": command.after,
        "data": command.data,
        "model": command.model or None,
    }
    compared |= {"class_shares": command.shares, "weights_file": command.weights_file, "seed": command.seed}
    result = comparison.as_dict() | {"compared": compared | about}
    lines = [comparison.summary(names), *about["notes"]]
    if about["preprocessing"]:
        lines.append(f"Samples are prepared so: {about['preprocessing']}.")
    return 0, result, "\n".join(lines)


def _answers(command: CompareCommand) -> tuple[list[Any], Any, dict[str, Any]]:
    """Return what both answered, the labels, and what is to be known about them."""
    paths = (command.before, command.after)
    if all(map(is_predictions, paths)):
        about = {"class_names": command.class_names, "preprocessing": None, "notes": []}
        return [read_predictions(path, command) for path in paths], read_labels(command.data, command), about
    return _with_models(command)


def _with_models(command: CompareCommand) -> tuple[list[Any], Any, dict[str, Any]]:
    """Run each checkpoint on the samples, one after the other; a file of predictions is read."""
    if not command.model:
        path = next(path for path in (command.before, command.after) if not is_predictions(path))
        raise UsageError(f"{path} is a checkpoint by its name; give its model with --model, or a file of predictions")
    answers: list[Any] = []
    notes: list[str] = []
    samples: Samples | None = None
    for what, path in (("before", command.before), ("after", command.after)):
        if is_predictions(path):
            answers.append(read_predictions(path, command))
            continue
        checkpoint = read_checkpoint(path, command.weights)
        model = open_model(command.model, command.num_classes, checkpoint).to(device_wanted(command.device))
        preparation = prepare(model, command.model, command)
        if samples is None:
            source = open_data(command.data, command, preparation)
            check_names(model, source, preparation)
            samples = read_samples(source, command.predicting_size, command.progress)
        answers.append(logits_of(model, samples, command.progress, f"answers {what}"))
        notes += [f"{path}: {note}" for note in checkpoint.notes(model)]
    names = None if preparation.class_names is None else list(preparation.class_names)
    about = {"class_names": names, "preprocessing": preparation.description, "notes": notes}
    return answers, samples.labels, about  # type: ignore[union-attr]  # one of the two was a checkpoint

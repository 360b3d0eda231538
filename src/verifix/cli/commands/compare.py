"""`verifix compare`: whether one model is better than another, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from verifix.capture.input_statistics import watching_first_norm
from verifix.cli.commands.common import check_names, device_wanted, logits_of, open_model, weights_of
from verifix.cli.options import CompareCommand
from verifix.errors import UsageError
from verifix.evaluation.accuracy import accuracy_of, remark_on_chance, remark_on_expected
from verifix.evaluation.comparison import Comparison, compare
from verifix.evaluation.input_check import settled
from verifix.evaluation.predictions import Answers, answers_of, as_answers, as_labels
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.data.open import open_data
from verifix.io.data.prediction_files import is_predictions, read_labelled, read_predictions
from verifix.io.data.preprocessing import prepare
from verifix.model.samples import Samples, read_samples
from verifix.progress import notes_kept


@dataclass(frozen=True)
class Compared:
    """What was compared, and how.

    Attributes
    ----------
    before, after, data, model, class_shares, weights_file, seed
        As they were given.
    class_names
        In the order of the outputs; None if they are not known.
    preprocessing
        How samples were prepared; None if only predictions were read.
    notes
        What was noticed about the data and the checkpoints.
    """

    before: str
    after: str
    data: str
    model: str | None
    class_shares: Mapping[Any, float] | None
    weights_file: str | None
    seed: int
    class_names: list[str] | None
    preprocessing: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonOf(Comparison):
    """A comparison, and what it is one of.

    Attributes
    ----------
    compared
        What was compared.
    """

    compared: Compared


@dataclass(frozen=True)
class _Answers:
    """What both answered, the labels, what was compared, which samples are copies, and what the first model saw."""

    before: Answers
    after: Answers
    labels: Any
    compared: Compared
    groups: Any
    inputs: str | None = None


def run_compare(command: CompareCommand) -> tuple[int, ComparisonOf, str]:
    """Compare two checkpoints or files of predictions; see `CompareCommand`."""
    answers = _answers(command)
    labels, compared = as_labels(answers.labels), answers.compared
    weights = weights_of(command, labels, compared.class_names, range(len(labels)))
    remarks = _check_inputs(answers, labels, weights, command)
    compared = replace(compared, notes=(*compared.notes, *remarks))
    comparison = compare(
        answers.before, answers.after, labels, weights=weights, groups=answers.groups, seed=command.seed
    )
    lines = [comparison.summary(compared.class_names), *compared.notes]
    if compared.preprocessing:
        lines.append(f"Preprocessing of the samples: {compared.preprocessing}.")
    names = {"class_names": compared.class_names and tuple(compared.class_names)}
    return 0, ComparisonOf(**vars(comparison) | names, compared=compared), "\n".join(lines)


def _check_inputs(answers: _Answers, labels: Any, weights: Any, command: CompareCommand) -> list[str]:
    """Stop where the first model does not know the samples as they are given: the second one would be no better."""
    predicted, truth = torch.from_numpy(answers.before.predicted), torch.from_numpy(labels)
    doubts = []
    if answers.inputs is not None:
        doubts = [answers.inputs, remark_on_chance(predicted, truth, answers.before.classes, "given")]
    unexpected = remark_on_expected(accuracy_of(predicted, truth, weights), command.expected, "given")
    prepared = answers.compared.preprocessing or "none, as these are predictions"
    check = command.check_inputs is not False
    return settled(doubts, unexpected, prepared, check, "given", "pass --no-check-inputs")


def _answers(command: CompareCommand) -> _Answers:
    """Return what both answered, the labels, and what is to be known about them."""
    paths = (command.before, command.after)
    if all(map(is_predictions, paths)):
        with notes_kept() as noted:
            values, groups = read_labelled(command.data, command)
            labels = as_labels(values)
        before, after = (_in_file(path, command, len(labels)) for path in paths)
        return _Answers(before, after, labels, _compared(command, command.class_names, notes=noted), groups)
    return _with_models(command)


def _in_file(path: str, command: CompareCommand, count: int) -> Answers:
    return as_answers(read_predictions(path, command), path, count, command.outputs)


def _compared(
    command: CompareCommand, names: list[str] | None, preprocessing: str | None = None, notes: Sequence[str] = ()
) -> Compared:
    given = (command.before, command.after, command.data, command.model or None, command.shares, command.weights_file)
    return Compared(*given, command.seed, names, preprocessing, tuple(notes))


def _with_models(command: CompareCommand) -> _Answers:
    """Run each checkpoint on the samples, one after the other; a file of predictions is read."""
    if not command.model:
        path = next(path for path in (command.before, command.after) if not is_predictions(path))
        raise UsageError(f"{path} is named like a checkpoint; give its model with --model, or a file of predictions")
    answers: dict[str, Answers] = {}
    files: dict[str, str] = {}
    notes: list[str] = []
    samples: Samples | None = None
    inputs: str | None = None
    for what, path in (("before", command.before), ("after", command.after)):
        if is_predictions(path):
            files[what] = path
            continue
        checkpoint = read_checkpoint(path, command.weights)
        model = open_model(command, checkpoint).to(device_wanted(command.device))
        preparation = prepare(model, command.model, command)
        if samples is None:
            with notes_kept() as noted:
                source = open_data(command.data, command, preparation)
            notes += noted
            check_names(model, source, preparation)
            with notes_kept() as noted:
                samples = read_samples(source, command.predicting_size, command.progress, most=command.max_samples)
            notes += noted
        with watching_first_norm(model) as seen:
            logits, outputs = logits_of(model, samples, command, f"answers {what}")
        if what == "before":
            inputs = seen.remark()
        answers[what] = answers_of(logits)
        notes += [f"{path}: {note}" for note in (*checkpoint.notes(model), outputs) if note]
    names = None if preparation.class_names is None else list(preparation.class_names)
    labels = samples.labels  # type: ignore[union-attr]  # one of the two was a checkpoint
    compared = _compared(command, names, source.prepared, notes)
    answers |= {what: _in_file(path, command, len(labels)) for what, path in files.items()}
    groups = samples.reaching(model).groups  # type: ignore[union-attr]
    return _Answers(answers["before"], answers["after"], labels, compared, groups, inputs)

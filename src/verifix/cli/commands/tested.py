"""The test samples of `verifix correct`, and what is checked of the samples that a gain is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from verifix.capture.input_statistics import watching_first_norm
from verifix.capture.saved_moments import SavedMoments
from verifix.cli.options import CorrectCommand
from verifix.evaluation.accuracy import accuracy_of, remark_on_chance, remark_on_expected
from verifix.evaluation.duplicates import without_leaks
from verifix.evaluation.input_check import settled
from verifix.evaluation.label_order import check_mapping
from verifix.io.data.open import open_data
from verifix.io.data.preparation import Preparation
from verifix.losses import predicted_classes
from verifix.model.outputs import understood
from verifix.model.samples import Samples, check_labels, read_samples
from verifix.model.tensors import device_of
from verifix.progress import note
from verifix.proof import predicted


def read_test(model: nn.Module, path: str, command: CorrectCommand, preparation: Preparation) -> Samples:
    """Read the test samples, and look at them before the long work begins: a wrong label map would judge it wrongly."""
    test = read_samples(open_data(path, command, preparation), 250, command.progress, most=command.max_samples)
    test, _ = understood(model, test, device_of(model), command.outputs)
    with watching_first_norm(model) as seen:
        logits = predicted(model, test)
    check_labels(test.labels, logits.shape[1], test.where)
    if command.check_labels:
        check_mapping(logits, test.labels, "test", preparation.class_names)
    classes, expected = predicted_classes(logits), None if command.weighted else command.expected
    unexpected = remark_on_expected(accuracy_of(classes, test.labels), expected, "test")
    doubts = [seen.remark(), remark_on_chance(classes, test.labels, max(logits.shape[1], 2), "test")]
    for remark in settled(doubts, unexpected, test.source.prepared, command.stops, "test"):
        note(f"test samples: {remark.removesuffix('.')}")
    return test


def check_weighted(
    model: nn.Module, samples: Samples, indices: Sequence[int], weights: Any, what: str, command: CorrectCommand
) -> list[str]:
    """Compare the accuracy on weighted samples with the expected one, before the long work begins; return remarks."""
    if weights is None or command.expected is None:
        return []
    chosen = list(indices)
    samples, _ = understood(model, samples, device_of(model), command.outputs)
    classes = predicted_classes(predicted(model, samples, chosen))
    found = accuracy_of(classes, samples.labels[chosen], weights[chosen])
    unexpected = remark_on_expected(found, command.expected, f"weighted {what}")
    return settled([], unexpected, samples.source.prepared, command.stops, what)


def kept_of(test: Samples, verified: Samples, earlier: SavedMoments | None) -> tuple[list[int], list[str]]:
    """Leave test samples out that are verified as well, and say so."""
    kept = without_leaks(test, [verified], frozenset() if earlier is None else earlier.digests)
    if len(kept) == len(test):
        return kept, []
    of = " or of a group of theirs" if test.declared else ""
    text = (
        f"{len(test) - len(kept)} of the {len(test)} test samples are among those that the correction is made from"
        f"{of}, and were left out of the test."
    )
    note(text)
    return kept, [text]

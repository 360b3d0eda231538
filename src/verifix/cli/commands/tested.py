"""The samples of `verifix correct` beside the verified ones: test samples, and inputs whose labels are not known."""

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
from verifix.model.answers import predicted
from verifix.model.outputs import understood
from verifix.model.samples import Samples, check_labels, read_samples
from verifix.model.tensors import device_of
from verifix.model.unlabelled import left_of, named, without_labels
from verifix.progress import note


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


def read_beside(
    model: nn.Module, others: Sequence[Samples], command: CorrectCommand, preparation: Preparation
) -> dict[str, Samples]:
    """Read inputs whose labels are not known, but for those on which a gain may be measured.

    Parameters
    ----------
    model
        The model.
    others
        The verified samples, of which a half may be held out to prove the gain, and the test samples.
    command, preparation
        What to read, and how.

    Returns
    -------
    dict
        `unlabelled` and `noisy`, as `verifix.correct` takes them, as far as they are given and something is left.
    """
    found: dict[str, Samples] = {}
    used = [samples.reaching(model) for samples in others]
    for what, path in (("unlabelled", command.unlabelled), ("noisy", command.noisy)):
        if path is None:
            continue
        with named(what):
            source = open_data(path, command, preparation, labelled=what == "noisy")
            source = source if what == "noisy" else without_labels(source)
            samples = read_samples(source, command.batch_size, command.progress, most=command.max_samples)
        remarks: list[str] = []
        left = left_of(
            samples.reaching(model), used, frozenset(), f"{what} samples are verified or test samples", remarks
        )
        for remark in remarks:
            note(remark.removesuffix("."))
        if left is not None:
            found[what] = left
    return found

"""Stop, or go on with a note, where samples do not look as in training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from verifix.capture.input_statistics import ADVICE
from verifix.errors import DataError, UsageError
from verifix.evaluation.accuracy import accuracy_of, remark_on_chance, remark_on_expected
from verifix.losses import predicted_classes
from verifix.options import CorrectOptions

WAY_ON = "pass --force or --no-check-inputs (check_inputs=False)"


def judged(logits: Tensor, labels: Tensor, seen: Sequence[str], prepared: str, options: CorrectOptions) -> list[str]:
    """Judge the verified samples by the accuracy of the uncorrected model, and stop where that is to be; see `settled`.

    Parameters
    ----------
    logits
        Of the uncorrected model, ``[n, outputs]``.
    labels
        int64 ``[n]``.
    seen
        What was remarked on their inputs.
    prepared
        The preprocessing in force.
    options
        The settings; `weights` may be among them.

    Returns
    -------
    list of str
        The remarks, where it goes on.

    Raises
    ------
    UsageError
        If an accuracy is expected of samples that were picked by their labels.
    """
    if options.origin == "trusted" and options.expect_accuracy is not None:
        raise UsageError(
            "expect_accuracy is for samples that the model meets, but verified_from is 'trusted': samples that were "
            "picked by their labels are right more often; give --test, or omit expect_accuracy"
        )
    predicted, weights = predicted_classes(logits), getattr(options, "weights", None)
    told, expected, doubts = [], options.expected, list(seen)
    if options.drawn not in ("suspects", "mixed"):  # on which a model is wrong
        what = "trusted" if options.origin == "trusted" else "verified"
        doubts.append(remark_on_chance(predicted, labels, max(logits.shape[1], 2), what))
    if expected is not None and options.drawn not in (None, "random") and weights is None:
        told.append(f"expect_accuracy was not compared on the verified samples, because drawn is {options.drawn!r}.")
        expected = None
    unexpected = remark_on_expected(accuracy_of(predicted, labels, weights), expected)
    return told + settled(doubts, unexpected, prepared, options.check_inputs)


def settled(
    doubts: Sequence[str],
    unexpected: str,
    prepared: str,
    check: bool | None,
    what: str = "verified",
    way_on: str = WAY_ON,
) -> list[str]:
    """Stop if samples do not look as in training and inputs are to be checked.

    Parameters
    ----------
    doubts, unexpected
        Remarks on the samples, and on an accuracy that is not the expected one; empty ones count nothing.
    prepared
        The preprocessing in force; empty if the user prepared the samples.
    check
        Whether inputs are to be checked; None for an expected accuracy alone.
    what
        Which samples.
    way_on
        How to go on all the same, if verifix prepared the samples.

    Returns
    -------
    list of str
        The remarks, where it goes on.

    Raises
    ------
    DataError
        With the remarks, the preprocessing in force, and what to do.
    """
    told = [remark for remark in (unexpected, *doubts) if remark]
    if told and check is not False and (check or unexpected):
        raise DataError(f"{' '.join(remark.removesuffix(ADVICE) for remark in told)} {remedy(prepared, what, way_on)}")
    return told


def remedy(prepared: str, what: str = "verified", way_on: str = WAY_ON) -> str:
    """Return what to do about samples that do not look as in training, as the end of an error message.

    Parameters
    ----------
    prepared
        The preprocessing in force; empty if the user prepared the samples.
    what, way_on
        Which samples, and how to go on all the same.

    Returns
    -------
    str
        Without a full stop.
    """
    if not prepared:
        return (
            f"Prepare the {what} samples as in training (size, crop, mean and std, pixel range, order of colours), or "
            "pass check_inputs=False if they are right as they are"
        )
    return (
        f"Preprocessing in force: {prepared}. Give that of training (--size, --crop-pct, --interpolation, --mean, "
        f"--std, --in-chans), or {way_on} if it is right as it is"
    )

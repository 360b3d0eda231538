"""Stop, or go on with a note, where samples do not look as in training."""

from __future__ import annotations

from collections.abc import Sequence

from verifix.capture.input_statistics import ADVICE
from verifix.errors import DataError

WAY_ON = "pass --force or --no-check-inputs (check_inputs=False)"


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

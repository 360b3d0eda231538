"""Copies of samples: with contradicting labels, or in both the verified and the test set."""

from __future__ import annotations

from collections.abc import Sequence

from verifix.errors import DataError
from verifix.model.samples import Samples, apart_from

# Copies of samples


def check_contradictions(samples: Samples) -> int:
    """Refuse two samples with the same input and different labels.

    Parameters
    ----------
    samples
        The verified samples.

    Returns
    -------
    int
        How many samples are copies of an earlier one.

    Raises
    ------
    DataError
        Naming the first two.
    """
    first: dict[bytes, int] = {}
    for i, digest in enumerate(samples.fingerprints):
        earlier = first.setdefault(digest, i)
        if samples.labels[earlier] != samples.labels[i]:
            raise DataError(
                f"{samples.place(earlier)} and {samples.place(i)} are the same input but have the labels "
                f"{int(samples.labels[earlier])} and {int(samples.labels[i])}; correct one of them, leave both out, or "
                "pass --no-check-labels (check_labels=False)"
            )
    return len(samples) - len(first)


def without_leaks(test: Samples, used: Sequence[Samples], digests: frozenset[bytes] = frozenset()) -> list[int]:
    """Find the samples of a test set that the correction has not used, nor any other of their group.

    Parameters
    ----------
    test
        The test samples.
    used
        Samples that the correction is made from.
    digests
        SHA-256 of the inputs of further ones; see `Samples.digests`.

    Returns
    -------
    list of int
        Indices of the test samples that are not among them, by pixels, by input or by group.

    Raises
    ------
    DataError
        If none is left.
    """
    kept = apart_from(test, used, digests)
    if not kept:
        raise DataError(
            f"all {len(test)} test samples are among those that the correction is made from, or of their groups; give "
            "--test samples that neither training nor the correction uses"
        )
    return kept

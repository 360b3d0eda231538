"""How to pick samples whose labels are probably right."""

from __future__ import annotations

from verifix.errors import UsageError
from verifix.options.checks import whole

TRUST_METHODS = ("low-loss", "low-curvature", "confident")
"""Ways to rank samples by how far their given label is to be trusted; see `verifix.trust`."""

TRUSTED_COUNT = 1000
"""How many samples are trusted unless the user says."""


def check_trust(method: str, count: object) -> None:
    """Check the settings of `verifix.trust` that can be checked without data.

    Parameters
    ----------
    method
        How to rank.
    count
        How many samples to pick.

    Raises
    ------
    UsageError
        If the method is unknown, or the count is no whole number of 2 or more.
    """
    if method not in TRUST_METHODS:
        raise UsageError(f"method is {method!r}; it must be one of {', '.join(map(repr, TRUST_METHODS))}")
    if not whole(count) or count < 2:  # type: ignore[operator]
        raise UsageError(f"count is {count!r}; it must be a whole number of 2 or more")

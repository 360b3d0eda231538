"""Progress with an estimate, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(title: str, total: int, show: bool, unit: str = "sample") -> Iterator[tqdm[None]]:
    """Show a bar while the context lasts.

    Parameters
    ----------
    title
        What is being done.
    total
        How many units there are.
    show
        Whether to show anything.
    unit
        What is counted.

    Yields
    ------
    tqdm
        To be moved on with ``update(n)``.
    """
    with tqdm(desc=title, total=total, unit=unit, disable=not show, leave=False, dynamic_ncols=True) as bar:
        yield bar

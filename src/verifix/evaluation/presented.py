"""Results that show themselves in a notebook, draw themselves, and write a report.

A result is made long before anything that shows it, and knows nothing of that: `upward` loads it when it is asked for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any


def upward(module: str) -> Any:
    """Load a module that builds on results, for a method of theirs; the only way from a result to it."""
    return importlib.import_module(module)


class Presented:
    """A result that can be shown."""

    def _repr_html_(self) -> str:
        """Return the result for a notebook: what came out, a table and a chart, every value escaped."""
        return str(upward("verifix.report.notebook").html(self))

    def plot(self, ax: Any = None) -> Any:
        """Draw the result.

        Parameters
        ----------
        ax
            Axes of matplotlib to draw on. By default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes.
        """
        return upward("verifix.report.plots").plot(self, ax)

    def to_frame(self) -> Any:
        """Return the figures behind the result as a table.

        Returns
        -------
        pandas.DataFrame
            Of a correction, one row for each path and each strength that was tried. Of a proof, one row per sample. Of
            a comparison or a score, one row per class.

        Raises
        ------
        UsageError
            If pandas is not installed.
        """
        return upward("verifix.report.frames").frame(self)

    def report(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the report: one HTML file that needs nothing else.

        Parameters
        ----------
        path
            Where to.
        force
            Replace a file that exists.

        Returns
        -------
        Path
            The path.

        Raises
        ------
        UsageError
            If the file exists, or a proof does not know its correction; see `Correction.prove`.
        """
        written: Path = upward("verifix.report.notebook").report(self, path, force=force)
        return written

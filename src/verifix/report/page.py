"""The report: one HTML file that needs nothing else, runs no script and asks for nothing."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from verifix.report import correction_section as course
from verifix.report import proof_section as proof
from verifix.report.files import as_result, write_text
from verifix.report.formatting import NOTHING, printable
from verifix.report.result import Result

SECTIONS = {
    "verdict": "Verdict",
    "before-after": "Before and after",
    "strength": "Strength",
    "stages": "Stages",
    "classes": "Classes",
    "confusion": "Confusion",
    "reliability": "Reliability",
    "samples": "Samples",
    "layers": "Layers",
    "spectra": "Spectra",
    "skipped": "Skipped",
    "cost": "Time and memory",
    "origin": "Origin",
}
"""The sections of the report, by their anchor."""


def render(result: Result | Mapping[str, Any]) -> str:
    """Turn a result into a report.

    Parameters
    ----------
    result
        The result, or the content of `result.json`; whatever may be missing and is, is left out, and the report says
        so.

    Returns
    -------
    str
        A whole HTML file; the same content gives the same text.

    Raises
    ------
    UsageError
        If the result is of another format, or a part of it is missing or of another type.
    """
    result = as_result(result)
    template = _environment().get_template("report.html.jinja")
    page: str = template.render(
        sections=SECTIONS,
        style=Markup(Path(__file__).with_name("style.css").read_text(encoding="utf-8")),  # noqa: S704  # our own file
        opening=proof.opening(result),
        measured=proof.before_after(result),
        curve=course.curve(result),
        paths=course.paths(result),
        stages=course.stages(result),
        classes=proof.classes(result),
        confusion=proof.confusion(result),
        reliability=proof.reliability(result),
        examples=proof.examples(result),
        layers=course.layers(result),
        spectra=course.spectra(result),
        skipped=course.skipped(result),
        cost=course.cost(result),
        origin=course.origin(result),
        version=result.schema,
    )
    return page


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    """Return what may stand in a page for any value that a template writes."""
    if isinstance(value, Markup):
        return value
    return NOTHING if value is None else printable(value)


def write_report(path: str | Path, result: Result | Mapping[str, Any], force: bool = False) -> Path:
    """Write the report of a result.

    Parameters
    ----------
    path
        Where to.
    result
        The result, or the content of `result.json`.
    force
        Replace a file that exists.

    Returns
    -------
    Path
        The path.
    """
    return write_text(path, render(result), force)

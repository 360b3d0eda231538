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
from verifix.report.next_steps import next_steps
from verifix.report.result import Result

PROOF = {
    "before-after": "Before and after",
    "classes": "Classes",
    "confusion": "Confusion",
    "samples": "Samples",
    "confidence": "Confidence",
}
"""The sections that need a proof, by their anchor; without one, a single line stands for all."""

STRENGTH = {"strength": "Strength"}
"""The section that needs a projection whose strength was chosen."""


def sections(result: Result) -> dict[str, str]:
    """Return the sections of the report of a result, in order: the anchor of each, and its title."""
    proof = PROOF if result.comparison is not None else {"before-after": PROOF["before-after"]}
    strength = STRENGTH if course.curve(result) is not None else {}
    choice = {"stages": "Stages", "layers": "Layers", "run": "This run"}
    return {"verdict": "Verdict", "next": "What to do next"} | proof | strength | choice


def render(result: Result | Mapping[str, Any]) -> str:
    """Turn a result into a report.

    Parameters
    ----------
    result
        The result, or the content of `result.json`; whatever may be missing and is, is left out.

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
        sections=sections(result),
        style=Markup(Path(__file__).with_name("style.css").read_text(encoding="utf-8")),  # noqa: S704  # our own file
        title=course.title(result),
        opening=proof.opening(result),
        steps=next_steps(result),
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

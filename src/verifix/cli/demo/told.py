"""The report of a demonstration: the same as that of `verifix correct --report`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from verifix.cli.commands.record import examples, task_of, versions
from verifix.correction import Correction
from verifix.io.data.preparation import Preparation
from verifix.model.samples import read_samples
from verifix.proof import measured
from verifix.report import result_of, write_report

REPORT = "report.html"
"""Name of the report."""


def tell_of(
    name: str,
    model: nn.Module,
    correction: Correction,
    unseen: tuple[Tensor, Tensor],
    folder: Path,
    picture: Callable[[int], str | None] | None = None,
) -> str:
    """Measure a correction on samples that nothing else used, and write its report.

    Parameters
    ----------
    name
        The demonstration.
    model, correction
        The uncorrected model, and its correction.
    unseen
        Inputs ``[n, ...]`` and labels ``[n]``.
    folder
        Where to.
    picture
        What to show of a sample of `unseen`, by its index: a data URL; None to show none.

    Returns
    -------
    str
        The name of the report.
    """
    samples = read_samples(unseen)
    proof = measured("test", model, correction, samples, range(len(samples)))
    result = replace(
        result_of(correction, proof),
        model=f"the network of verifix demo {name}",
        task=task_of(samples),
        examples=examples(proof, samples, Preparation(None), picture),
        versions=versions(),
    )
    write_report(folder / REPORT, result, force=True)
    return REPORT

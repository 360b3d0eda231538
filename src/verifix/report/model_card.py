"""A model card for the Hugging Face Hub: what was corrected, the figures, the limits, and how to undo it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from verifix.io.optional_imports import library
from verifix.recipe.decision import spelled
from verifix.report.files import as_result, write_text
from verifix.report.formatting import percent, printable, shortened
from verifix.report.next_steps import undo_command
from verifix.report.result import Result
from verifix.report.verdict import caution, measured_on, preprocessing, verdict

LIBRARIES = {"hf": "transformers", "timm": "timm", "hf-hub": "timm", "local-dir": "timm"}
"""The Hub's name of the library of a model, by what stands in front of its name."""


def model_card(
    result: Result | Mapping[str, Any],
    *,
    name: str | None = None,
    task: str | None = None,
    dataset: str | None = None,
    license: str | None = None,  # noqa: A002  # the Hub's own word
    base_model: str | None = None,
) -> str:
    """Turn a result into a model card.

    Parameters
    ----------
    result
        The result, or the content of `result.json`.
    name
        What the corrected model is called; by default, after its file.
    task
        The Hub's name of the task, such as "image-classification"; by default, that of the result.
    dataset
        What the samples are called that the figures were measured on.
    license
        The Hub's name of the licence of the weights, which is that of the model that was corrected.
    base_model
        The model on the Hub that was corrected; by default, what the model was given as, if that names one.

    Returns
    -------
    str
        Markdown under a head of YAML, for README.md.

    Raises
    ------
    UsageError
        If huggingface_hub is not installed, or the result is of another format.
    """
    hub = library("huggingface_hub", "huggingface_hub", "hub")
    result = as_result(result)
    name, task = name or Path(result.out or "corrected-model").stem, task or result.task
    scheme, _, origin = (result.model or "").partition(":")
    given = {"license": license, "base_model": base_model or (origin if scheme == "hf-hub" else None)}
    data = hub.ModelCardData(
        model_name=name,
        library_name=LIBRARIES.get(scheme, "pytorch"),
        pipeline_tag=task,
        tags=["verifix", "label-noise", "post-training-correction", *_architecture(result)],
        eval_results=_evaluations(hub, result, task, dataset) or None,
        **{key: value for key, value in given.items() if value is not None},
    )
    head = data.to_yaml(line_break="\n")
    return str(hub.ModelCard(f"---\n{head}\n---\n\n{_body(name, result)}").content)


def _architecture(result: Result) -> list[str]:
    """Return the architecture as a tag: bert for BertForSequenceClassification; none for a container of torch."""
    name = re.sub("For[A-Za-z]*Classification$", "", result.architecture or "").lower()
    return [name] if name not in ("", "sequential") else []


def _evaluations(hub: Any, result: Result, task: str | None, dataset: str | None) -> list[Any]:
    """Return what the Hub shows as results; nothing where the figures are no estimate for new data."""
    on_test = result.proof is not None and result.proof.kind == "test"
    if result.comparison is None or (caution(result) is not None and not on_test):
        return []
    if result.comparison.doubt is not None:
        return []
    after = result.comparison.after
    measures = (
        ("accuracy", "Accuracy, %", after.accuracy),
        ("balanced_accuracy", "Balanced accuracy, %", after.balanced_accuracy),
        ("cross_entropy", "Cross-entropy", after.cross_entropy),
    )
    about = {
        "task_type": task or "other",
        "dataset_type": "verified-samples",
        "dataset_name": dataset or ("test samples" if on_test else "verified samples"),
    }
    return [
        hub.EvalResult(metric_type=key, metric_name=title, metric_value=round(value, 4), **about)
        for key, title, value in measures
        if value is not None
    ]


def _body(name: str, result: Result) -> str:
    parts = [f"# {escaped(name)}", _what(result), "## Figures", _figures(result), "## Limits", _limits(result)]
    return "\n\n".join([*parts, "## How to undo it", _undo(result), "## How it was made", _made(result)]) + "\n"


def _what(result: Result) -> str:
    used = [f"{stage} ({spelled(strength)})" for stage, strength in result.strengths.items() if strength is not None]
    changed = sum(layer.status == "corrected" for layer in result.layers)
    return (
        "This classifier had learned from wrong labels. It was corrected with "
        "[verifix](https://arxiv.org/abs/2403.08618) from a small set of samples, without retraining from scratch. "
        f"Stages that were used: {escaped(', '.join(used) or 'none')}. Layers that were corrected: {changed}."
    )


def _figures(result: Result) -> str:
    lines, found = [escaped(verdict(result)), "", escaped(preprocessing(result))], result.comparison
    if found is not None:
        rows = (
            ("accuracy", found.before.accuracy, found.after.accuracy),
            ("balanced accuracy", found.before.balanced_accuracy, found.after.balanced_accuracy),
        )
        lines += ["", f"Measured {measured_on(result)}.", "", "| | before | after |", "| --- | --- | --- |"]
        lines += [
            f"| {title} | {percent(before, found.digits)} | {percent(after, found.digits)} |"
            for title, before, after in rows
        ]
        lines += ["", f"Fixed: {found.fixed} samples. Broken: {found.broken}."]
        lines += ["", f"Gain: {found.points} points."]
        lines += ["", *found.independence()] if found.independence() else []
    return "\n".join(lines)


def _limits(result: Result) -> str:
    limits = [
        "The figures apply only to samples like those they were measured on.",
        "Classes with few verified samples may have become worse, and no figure would show it.",
        "Training data and permitted uses are those of the original model.",
    ]
    warning, absent = caution(result), result.provenance.classes_without_samples
    if absent:
        limits.insert(
            0, f"No sample had the label {', '.join(map(str, absent))}: such classes may have been forgotten."
        )
    return "\n".join(f"- {escaped(line)}" for line in ([warning] if warning else []) + limits)


def _undo(result: Result) -> str:
    if not result.correction_file:
        return "No correction file is part of this result."
    name = Path(result.correction_file).name
    here = replace(result, out=Path(result.out).name if result.out else None)  # beside the card
    command = undo_command(here)
    restores = ""
    if command is not None:
        restores = f"{code(command)} restores the original checkpoint beside it and verifies it by hash. "
    return (
        f"The correction file {code(name)} holds the original weights. {restores}In Python:\n\n"
        f"    verifix.Correction.load({' '.join(repr(printable(name)).split())}).undo_(model)  # bit for bit"
    )


def _made(result: Result) -> str:
    about = result.provenance
    seed = about.settings.get("seed") if result.seed is None else result.seed
    rows = [
        *result.libraries.items(),
        ("SHA-256 of the original weights", about.model_sha256),
        ("SHA-256 of the samples", about.samples_sha256),
        ("seed", seed),
    ]
    rows += [("command", result.command)] if result.command else []
    return "\n".join(
        f"- {escaped(title)}: {code('not known' if value is None else str(value))}" for title, value in rows
    )


def escaped(text: str) -> str:
    """Return a text in one line, in which nothing is markup of Markdown or HTML."""
    line = " ".join(printable(shortened(text, 2000)).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&!$])", r"\\\1", line)


def code(text: str) -> str:
    """Return a text in one line as code, fenced by more backticks than it holds."""
    line = " ".join(printable(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    edge = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{edge}{line}{edge}{fence}"


def write_card(path: str | Path, result: Result | Mapping[str, Any], force: bool = False, **about: Any) -> Path:
    """Write the model card of a result.

    Parameters
    ----------
    path
        Where to; on the Hub it is README.md beside the weights.
    result
        The result, or the content of `result.json`.
    force
        Replace a file that exists.
    **about
        What else `model_card` takes.

    Returns
    -------
    Path
        The path.
    """
    return write_text(path, model_card(result, **about), force)

"""A model card for the Hugging Face Hub: what was corrected, the figures, the limits, and how to undo it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verifix.errors import UsageError
from verifix.report.formatting import (
    caution,
    listed,
    part,
    percent,
    printable,
    shortened,
    signed,
    strength,
    unseen,
    verdict,
)
from verifix.report.result import plain, write_text


def model_card(
    result: Mapping[str, Any],
    *,
    name: str | None = None,
    task: str = "image-classification",
    dataset: str | None = None,
    license: str | None = None,  # noqa: A002  # the Hub's own word
    base_model: str | None = None,
) -> str:
    """Turn a result into a model card.

    Parameters
    ----------
    result
        The content of `result.json`.
    name
        What the corrected model is called; by default, after its file.
    task
        The Hub's name of the task, such as "image-classification" or "text-classification".
    dataset
        What the samples are called that the figures were measured on.
    license
        The Hub's name of the licence of the weights, which is that of the model that was corrected.
    base_model
        The model on the Hub that was corrected.

    Returns
    -------
    str
        Markdown under a head of YAML, for README.md.

    Raises
    ------
    UsageError
        If huggingface_hub is not installed, or the result is of another format.
    """
    hub = _hub()
    result = plain(result)
    name = name or Path(str(result.get("out") or "corrected-model")).stem
    given = {"license": license, "base_model": base_model}
    data = hub.ModelCardData(
        model_name=name,
        library_name="pytorch",
        pipeline_tag=task,
        tags=["verifix", "label-noise", "post-training-correction"],
        eval_results=_evaluations(hub, result, task, dataset) or None,
        **{key: value for key, value in given.items() if value is not None},
    )
    head = data.to_yaml(line_break="\n")
    return str(hub.ModelCard(f"---\n{head}\n---\n\n{_body(name, result)}").content)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UsageError("a model card needs huggingface_hub; run: pip install 'verifix[hub]'") from None
    return huggingface_hub


def _evaluations(hub: Any, result: Mapping[str, Any], task: str, dataset: str | None) -> list[Any]:
    """Return what the Hub shows as results; nothing where the figures are no estimate for new data."""
    found, proof = part(result, "proof", "comparison"), part(result, "proof")
    doubtful = caution(result) is not None and proof.get("kind") != "test"
    if not found or doubtful:
        return []
    measures = {
        "accuracy": "Accuracy, %",
        "balanced_accuracy": "Balanced accuracy, %",
        "cross_entropy": "Cross-entropy",
    }
    about = {
        "task_type": task,
        "dataset_type": "verified-samples",
        "dataset_name": dataset or {"test": "test samples"}.get(str(proof.get("kind")), "verified samples"),
    }
    after = part(found, "after")
    return [
        hub.EvalResult(metric_type=key, metric_name=title, metric_value=round(after[key], 4), **about)
        for key, title in measures.items()
        if after.get(key) is not None
    ]


def _body(name: str, result: Mapping[str, Any]) -> str:
    parts = [f"# {escaped(name)}", _what(result), "## Figures", _figures(result), "## Limits", _limits(result)]
    return "\n\n".join([*parts, "## How to undo it", _undo(result), "## How it was made", _made(result)]) + "\n"


def _what(result: Mapping[str, Any]) -> str:
    kept = [f"{stage} ({strength(value)})" for stage, value in part(result, "strengths").items() if value is not None]
    changed = sum(layer.get("status") == "corrected" for layer in listed(result, "layers"))
    return (
        "A trained classifier that had learned from wrong labels, corrected with "
        "[verifix](https://arxiv.org/abs/2403.08618) from a small set of samples, without training it again from the "
        f"start. Stages that were kept: {escaped(', '.join(kept) or 'none')}. Layers that were corrected: {changed}."
    )


def _figures(result: Mapping[str, Any]) -> str:
    found = part(result, "proof", "comparison")
    lines = [escaped(verdict(result))]
    if found:
        lines += ["", f"Measured {unseen(result)}.", "", "| | before | after |", "| --- | --- | --- |"]
        before, after = part(found, "before"), part(found, "after")
        rows = {"accuracy": "right", "balanced_accuracy": "right, mean over classes"}
        lines += [
            f"| {title} | {percent(before.get(key))} | {percent(after.get(key))} |" for key, title in rows.items()
        ]
        lines += ["", f"Set right: {found.get('fixed')} samples. Broken: {found.get('broken')}."]
        gain = part(found, "gain")
        lines += ["", f"Gain: {signed(gain.get('estimate'))} points."]
    return "\n".join(lines)


def _limits(result: Mapping[str, Any]) -> str:
    limits = [
        "The figures hold for samples like those they were measured on, and for no others.",
        "Classes of which few samples were verified may have become worse without a figure that shows it.",
        "What the model was trained on, and for what it may be used, is that of the model that was corrected.",
    ]
    warning = caution(result)
    absent = part(result, "provenance").get("classes_without_samples") or []
    if absent:
        limits.insert(
            0, f"No sample had the label {', '.join(map(str, absent))}: such classes may have been forgotten."
        )
    return "\n".join(f"- {escaped(line)}" for line in ([warning] if warning else []) + limits)


def _undo(result: Mapping[str, Any]) -> str:
    file = result.get("correction_file")
    if not file:
        return "No correction file is part of this result."
    return (
        f"The correction file {code(Path(str(file)).name)} holds the original weights. `verifix undo FIXED --out "
        "ORIGINAL` restores the original checkpoint and proves it by hash; in Python:\n\n"
        "```python\nimport verifix\n\n"
        'verifix.Correction.load("correction.safetensors").undo_(model)  # the file above; bit for bit\n```'
    )


def _made(result: Mapping[str, Any]) -> str:
    about = part(result, "provenance")
    versions = {name: about[name] for name in ("verifix", "torch") if about.get(name)} | part(result, "versions")
    rows = [(title, str(version)) for title, version in versions.items()]
    rows += [("SHA-256 of the original weights", str(about.get("model_sha256") or "not known"))]
    rows += [("SHA-256 of the samples", str(about.get("samples_sha256") or "not known"))]
    rows += [("seed", str(result.get("seed", about.get("seed", "not known"))))]
    rows += [("command", str(result["command"]))] if result.get("command") else []
    return "\n".join(f"- {escaped(title)}: {code(value)}" for title, value in rows)


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


def write_card(path: str | Path, result: Mapping[str, Any], force: bool = False, **about: Any) -> Path:
    """Write the model card of a result.

    Parameters
    ----------
    path
        Where to; on the Hub it is README.md beside the weights.
    result
        The content of `result.json`.
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

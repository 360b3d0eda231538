"""What each command does: read, call the library, write, print."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from verifix.algorithm import correct
from verifix.borrow import borrowed, device_of
from verifix.correction import Correction
from verifix.errors import DataError, UsageError
from verifix.forms import unwrapped
from verifix.io.checkpoints import Checkpoint, correction_path, read_checkpoint
from verifix.io.datasets import open_data
from verifix.io.models import build_model, own_checkpoint
from verifix.io.preprocessing import Preparation, prepare
from verifix.options import CorrectCommand, DemoCommand, InspectCommand, ScoreCommand, split_list
from verifix.progress import progress_bar
from verifix.samples import Samples, Source, check_labels, read_samples
from verifix.scoring import correct_or_not, cross_entropy, device_named, predict
from verifix.select import Trusted, trust
from verifix.survey import Survey, collect_moments, inspect

COVERED = 0.9
"""Below this share of the multiplied weights, `inspect` warns."""


def run(command: Any) -> int:
    """Run a command; whatever the user's own code prints goes to stderr.

    Parameters
    ----------
    command
        Its settings.

    Returns
    -------
    int
        The exit code.
    """
    runners: dict[type, Callable[[Any], tuple[int, dict[str, Any], str]]] = {
        CorrectCommand: run_correct,
        ScoreCommand: run_score,
        InspectCommand: run_inspect,
        DemoCommand: run_demo,
    }
    with contextlib.redirect_stdout(sys.stderr):
        code, result, text = runners[type(command)](command)
    sys.stdout.write((json.dumps(result, indent=2) if command.json else text) + "\n")
    return code


def run_correct(command: CorrectCommand) -> tuple[int, dict[str, Any], str]:
    """Correct a checkpoint and write it, if a correction won; see `CorrectCommand`."""
    start = time.perf_counter()
    checkpoint = _checkpoint(command)
    checkpoint.refuse_corrected()
    _check_files(command, checkpoint)
    model = _model(command.model, command.num_classes, checkpoint).to(_device(command.device))
    preparation = prepare(model, command.model, command)
    verified = open_data(str(command.verified or command.trusted), command, preparation)
    _check_names(model, verified, preparation)
    test = None if command.test is None else _read_test(model, command.test, command, preparation)
    trusted = None if command.trusted is None else _trust(model, verified, command)
    verified = verified if trusted is None else trusted.source
    correction = correct(
        model,
        verified,
        alpha=command.alpha,
        recipe=command.recipe,
        budget=command.budget,
        include=command.include,
        exclude=command.exclude,
        folds=command.folds,
        seed=command.seed,
        batch_size=command.batch_size,
        verified_from=command.verified_from,  # type: ignore[arg-type]  # not None in a command that checked itself
        moments=command.moments,
        padding=command.padding,
        affine=command.affine,
        suspects=None if command.suspects is None else open_data(command.suspects, command, preparation),
        contrast=command.contrast,
        stored_as=checkpoint.dtypes(model),
        progress=command.progress,
    )
    result = correction.as_dict() | {"changed": correction.changed, "out": None, "correction_file": None}
    result["preprocessing"] = preparation.description
    result |= _about_weights(model, correction, checkpoint)
    if test is not None:
        result["test"] = _measure(model, correction, test, command)
    if trusted is not None:
        result["trusted"] = trusted.as_dict()
    if correction.caution:
        result["warning"] = correction.caution
    if correction.changed:
        result |= _write(model, correction, checkpoint, command)
    if command.save_moments is not None:
        result["moments_file"] = str(_save_moments(model, verified, command, command.save_moments))
    result["seconds"] = round(time.perf_counter() - start, 2)
    return (0 if correction.changed else 3), result, _correct_text(correction, trusted, result)


def _check_files(command: CorrectCommand, checkpoint: Checkpoint) -> None:
    """Refuse outputs that cannot be written, or that are inputs, before any work is done."""
    out = Path(command.out)
    others = [correction_path(out), *([Path(command.save_moments)] if command.save_moments else [])]
    inputs: list[str | Path | None] = [
        checkpoint.path,
        command.verified,
        command.trusted,
        command.test,
        command.moments,
        command.suspects,
    ]
    checkpoint.check_outputs(out, others, [path for path in inputs if path is not None], force=command.force)


def _about_weights(model: nn.Module, correction: Correction, checkpoint: Checkpoint) -> dict[str, Any]:
    """Say which weights of the checkpoint were used, and what its dtypes keep of the correction."""
    held = checkpoint.dtypes(model)
    dtypes = sorted({str(held[name]).removeprefix("torch.") for name in correction.corrected})
    return {
        "weights": checkpoint.kind(model),
        "weights_dtypes": dtypes,
        "unchanged_by_rounding": correction.unchanged_by_rounding,
        "notes": checkpoint.notes(model),
    }


def _read_test(model: nn.Module, path: str, command: CorrectCommand, preparation: Preparation) -> Samples:
    """Read the test samples, and try the model on two of them before the long work begins."""
    test = read_samples(open_data(path, command, preparation), 250, command.progress)
    device = device_of(model)
    with borrowed(model):
        logits = predict(model, test, range(min(2, len(test))), 2, device)
    check_labels(test.labels, logits.shape[1])
    return test


def _trust(model: nn.Module, source: Source, command: CorrectCommand) -> Trusted:
    """Pick samples whose label is probably right."""
    method, count = command.picks
    return trust(
        model,
        source,
        method=method,
        count=count,
        batch_size=command.batch_size,
        seed=command.seed,
        progress=command.progress,
    )


def _save_moments(model: nn.Module, verified: Source, command: CorrectCommand, path: str) -> Path:
    collected = collect_moments(
        model,
        verified,
        include=command.include,
        exclude=command.exclude,
        batch_size=command.batch_size,
        padding=command.padding,
        progress=command.progress,
    )
    return collected.save(path, force=command.force)


def _measure(model: nn.Module, correction: Correction, test: Samples, command: CorrectCommand) -> dict[str, Any]:
    before = _accuracy(model, test, command.progress, "test, before")["accuracy"]
    after = _accuracy(correction.model, test, command.progress, "test, after")["accuracy"]
    return {"samples": len(test), "before": before, "after": after, "gain": after - before}


def _write(model: nn.Module, correction: Correction, checkpoint: Checkpoint, command: CorrectCommand) -> dict[str, str]:
    """Write the correction file and the checkpoint: both, or neither."""
    beside, existed = correction_path(command.out), correction_path(command.out).exists()
    correction.save(beside, force=command.force)
    provenance = dict(correction.provenance) | {
        "strengths": correction.strengths,
        "correction_file": beside.name,
        "weights": checkpoint.kind(model),
    }
    try:
        out = checkpoint.save(
            command.out, checkpoint.spread(model, correction.corrected), provenance, force=command.force
        )
    except BaseException:
        if not existed:
            beside.unlink()
        raise
    return {"out": str(out), "correction_file": str(beside)}


def _correct_text(correction: Correction, picked: Trusted | None, result: dict[str, Any]) -> str:
    trusted = [] if picked is None else [picked.summary()]
    lines = [*trusted, correction.summary(), *result["notes"], f"Samples are prepared so: {result['preprocessing']}."]
    half = [name for name in result["weights_dtypes"] if name in ("bfloat16", "float16")]
    if half:
        share = f"{result['unchanged_by_rounding']:.1%}"
        lines.append(f"Rounding to {' and '.join(half)} left {share} of the corrected layers' entries as they were.")
    if "test" in result:
        test = result["test"]
        lines.append(
            f"On {test['samples']} test samples: {test['before']:.2f}% right before, {test['after']:.2f}% after "
            f"({test['gain']:+.2f})."
        )
    if "moments_file" in result:
        lines.append(f"Wrote the moments to {result['moments_file']}.")
    files = f"Wrote {result['out']} and {result['correction_file']}."
    lines.append(f"{files if result['out'] else 'No change: no checkpoint was written.'} {result['seconds']:.0f} s.")
    return "\n".join(lines)


def run_score(command: ScoreCommand) -> tuple[int, dict[str, Any], str]:
    """Score a checkpoint; see `ScoreCommand`."""
    checkpoint = _checkpoint(command)
    model = _model(command.model, command.num_classes, checkpoint).to(_device(command.device))
    preparation = prepare(model, command.model, command)
    source = open_data(command.data, command, preparation)
    _check_names(model, source, preparation)
    samples = read_samples(source, command.batch_size, command.progress)
    result = _accuracy(model, samples, command.progress, "scoring")
    result |= {"weights": checkpoint.kind(model), "notes": checkpoint.notes(model)}
    result["preprocessing"] = preparation.description
    text = (
        f"{result['accuracy']:.2f}% of {result['samples']} samples right, cross-entropy {result['cross_entropy']:.4f}"
    )
    text = "\n".join([*result["notes"], f"Samples are prepared so: {result['preprocessing']}.", text])
    return 0, result, text


def run_inspect(command: InspectCommand) -> tuple[int, dict[str, Any], str]:
    """Show what a correction would touch; see `InspectCommand`."""
    checkpoint = None if command.checkpoint is None else read_checkpoint(command.checkpoint, command.weights)
    model = _model(command.model, command.num_classes, checkpoint)
    preparation = prepare(model, command.model, command)
    if command.data is None:
        shape = list(map(int, command.shape))
        inputs = torch.zeros(1, *shape) if preparation.tokenize is None else _ids(shape)
    else:
        first = _first(open_data(command.data, command, preparation))
        inputs = next(first.batches([0], 1)).inputs
    survey = inspect(model, inputs, include=split_list(command.include), exclude=split_list(command.exclude))
    memory = survey.memory(command.samples, command.folds)
    result = survey.as_dict() | {"memory_bytes": memory, "samples": command.samples, "folds": command.folds}
    lines = [_inspect_line(entry) for entry in result["parameters"]]
    lines.append(_share_line(survey))
    lines.append(
        f"{len(survey.layers)} layers would be corrected; about {memory / 2**20:.0f} MiB besides the model, with "
        f"{command.samples} samples and {command.folds} folds."
    )
    if survey.share < COVERED:
        result["warning"] = (
            f"only {survey.share:.1%} of the multiplied weights would be corrected; see above why the others are not"
        )
        lines.append(f"Warning: {result['warning']}.")
    return (0 if survey.layers else 4), result, "\n".join(lines)


def _share_line(survey: Survey) -> str:
    """Say what becomes of all parameters of two or more dimensions, in shares of what they have in common."""
    sizes = survey.sizes
    multiplied = sizes["corrected"] + sizes["skipped"]
    parts = [f"{sizes[what] / max(multiplied, 1):.2%} {what}" for what in ("corrected", "skipped")]
    words = {"not_multiplied": "looked up, added or moved about", "unused": "unused"}
    others = [f"{sizes[what]} {word}" for what, word in words.items() if sizes[what]]
    return f"Of {multiplied} multiplied weights: {', '.join(parts)}." + (
        f" Besides, {', '.join(others)}." if others else ""
    )


def _ids(shape: list[int]) -> dict[str, torch.Tensor]:
    """Return a text of so many tokens, for a model of texts."""
    if len(shape) != 1:
        raise UsageError(f"input_shape is {shape}; for a model of texts it is the number of tokens, such as 16")
    return {"input_ids": torch.ones(1, *shape, dtype=torch.long), "attention_mask": torch.ones(1, *shape).long()}


def _inspect_line(entry: dict[str, Any]) -> str:
    if entry["status"] == "corrected":
        what = f"would be corrected, {entry['kind']}, {entry['rows_per_sample']:.0f} rows per sample"
    else:
        what = ", ".join(filter(None, (entry["status"], entry["reason"])))
    return f"{entry['parameter']}: {what}"


def _first(source: Source) -> Samples:
    """Return the first sample alone."""
    one = Subset(source.dataset, range(min(1, len(source.dataset))))  # type: ignore[arg-type]
    return read_samples(replace(source, dataset=one))


def _check_names(model: nn.Module, source: Source, preparation: Preparation) -> None:
    """Refuse class names that are more or fewer than the outputs of the model: labels would shift without a word."""
    if preparation.class_names is None:
        return
    with borrowed(model):
        outputs = predict(model, _first(source), [0], 1, device_of(model)).shape[1]
    names = preparation.class_names
    if len(names) != max(outputs, 2):
        raise DataError(
            f"there are {len(names)} class names ({', '.join(names[:5])}{', …' * (len(names) > 5)}) and the model has "
            f"{outputs} output{'s' * (outputs > 1)}; give --classes with one name for each"
        )


def run_demo(command: DemoCommand) -> tuple[int, dict[str, Any], str]:
    """Run a demonstration; see `DemoCommand`."""
    from verifix import demo

    result, text = demo.run(command.name, command.seed, command.seeds, command.out, force=command.force)
    return 0, result, text


def _checkpoint(command: CorrectCommand | ScoreCommand) -> Checkpoint:
    return read_checkpoint(command.checkpoint or own_checkpoint(command.model), command.weights)


def _model(name: str, num_classes: int | None, checkpoint: Checkpoint | None) -> nn.Module:
    model: nn.Module = unwrapped(build_model(name, num_classes))
    if checkpoint is not None:
        checkpoint.load_into(model)
    return model.eval()


def _device(name: str) -> torch.device:
    """Return the device wanted; "auto" is a GPU if there is one."""
    return device_named(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _accuracy(model: nn.Module, samples: Samples, show: bool, title: str) -> dict[str, Any]:
    device = device_of(model)
    size = samples.batch_size or 250
    parts = []
    with borrowed(model), progress_bar(title, len(samples), show) as bar:
        for start in range(0, len(samples), size):
            indices = range(start, min(start + size, len(samples)))
            parts.append(predict(model, samples, indices, size, device))
            bar.update(len(indices))
    logits = torch.cat(parts)
    check_labels(samples.labels, logits.shape[1])
    return {
        "samples": len(samples),
        "accuracy": 100 * float(correct_or_not(logits, samples.labels).mean()),
        "cross_entropy": float(cross_entropy(logits, samples.labels).mean()),
    }

"""`verifix correct`: read, correct, measure, write."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from verifix.algorithm import correct
from verifix.borrow import borrowed, device_of
from verifix.collect import SavedMoments
from verifix.commands.common import accuracy, check_names, device_wanted, open_checkpoint, open_model
from verifix.correction import Correction
from verifix.guards import check_mapping, without_leaks
from verifix.io.checkpoints import Checkpoint, correction_path
from verifix.io.datasets import open_data
from verifix.io.limit import limited
from verifix.io.notes import note
from verifix.io.preprocessing import Preparation, prepare
from verifix.options import CorrectCommand
from verifix.samples import Samples, Source, check_labels, read_samples
from verifix.scoring import predict
from verifix.select import Trusted, trust
from verifix.survey import collect_moments


def run_correct(command: CorrectCommand) -> tuple[int, dict[str, Any], str]:
    """Correct a checkpoint and write it, if a correction won; see `CorrectCommand`."""
    start = time.perf_counter()
    checkpoint = open_checkpoint(command)
    checkpoint.refuse_corrected()
    _check_files(command, checkpoint)
    model = open_model(command.model, command.num_classes, checkpoint).to(device_wanted(command.device))
    preparation = prepare(model, command.model, command)
    earlier = _earlier(command, preparation)
    source = open_data(str(command.verified or command.trusted), command, preparation)
    source = limited(source, command.limit, command.seed)
    check_names(model, source, preparation)
    test = None if command.test is None else _read_test(model, command.test, command, preparation)
    trusted = None if command.trusted is None else _trust(model, source, command)
    verified = read_samples(source if trusted is None else trusted.source, command.batch_size, command.progress)
    test, notes = (None, []) if test is None else _without_leaks(test, verified, earlier)
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
        moments=earlier,
        padding=command.padding,
        affine=command.affine,
        suspects=None if command.suspects is None else open_data(command.suspects, command, preparation),
        contrast=command.contrast,
        check_labels=command.check_labels,
        stored_as=checkpoint.dtypes(model),
        progress=command.progress,
    )
    result = correction.as_dict() | {"changed": correction.changed, "out": None, "correction_file": None}
    result["preprocessing"] = preparation.description
    result |= _about_weights(model, correction, checkpoint)
    result["notes"] += [*notes, *correction.notes]
    for remark in correction.notes:
        note(remark)
    if test is not None:
        result["test"] = _measure(model, correction, test, command)
    if trusted is not None:
        result["trusted"] = trusted.as_dict()
    if correction.caution:
        result["warning"] = correction.caution
    if correction.changed:
        result |= _write(model, correction, checkpoint, command)
    if command.save_moments is not None:
        result["moments_file"] = str(_save_moments(model, verified, command, preparation.steps))
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
    """Read the test samples, and look at them before the long work begins: a wrong label map would judge it wrongly."""
    test = read_samples(open_data(path, command, preparation), 250, command.progress)
    with borrowed(model):
        logits = predict(model, test, range(len(test)), 250, device_of(model))
    check_labels(test.labels, logits.shape[1], test.where)
    if command.check_labels:
        check_mapping(logits, test.labels, "test", preparation.class_names)
    return test


def _earlier(command: CorrectCommand, preparation: Preparation) -> SavedMoments | None:
    """Read the moments of earlier samples, which must have been prepared as those of now."""
    if command.moments is None:
        return None
    earlier = SavedMoments.load(command.moments)
    earlier.check_preparation(preparation.steps)
    return earlier


def _without_leaks(test: Samples, verified: Samples, earlier: SavedMoments | None) -> tuple[Samples, list[str]]:
    """Leave test samples out that are verified as well, and say so."""
    left = without_leaks(test, [verified], frozenset() if earlier is None else earlier.digests)
    if len(left) == len(test):
        return test, []
    text = (
        f"{len(test) - len(left)} of the {len(test)} test samples are among those that the correction is made from, "
        "and were left out of the test."
    )
    note(text)
    return left, [text]


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


def _save_moments(model: nn.Module, verified: Samples, command: CorrectCommand, steps: str) -> Path:
    collected = collect_moments(
        model,
        verified,
        include=command.include,
        exclude=command.exclude,
        batch_size=command.batch_size,
        padding=command.padding,
        progress=command.progress,
    )
    told = replace(collected, preparation=steps, verified_from=command.verified_from)
    return told.save(str(command.save_moments), force=command.force)


def _measure(model: nn.Module, correction: Correction, test: Samples, command: CorrectCommand) -> dict[str, Any]:
    before = accuracy(model, test, command.progress, "test, before")["accuracy"]
    after = accuracy(correction.model, test, command.progress, "test, after")["accuracy"]
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
    notes = [remark for remark in result["notes"] if remark not in correction.notes]  # these are in the summary
    lines = [*trusted, correction.summary(), *notes, f"Samples are prepared so: {result['preprocessing']}."]
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

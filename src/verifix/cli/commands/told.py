"""What `verifix correct` prints: the verdict, what was done, what to do next, and what was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from verifix.correction import Correction
from verifix.evaluation.advice import more_samples, other_recipe, rare_classes
from verifix.evaluation.draw import drawn_note
from verifix.proof import Proof, estimated_seconds
from verifix.recipe.stages import projection_among
from verifix.report import Result
from verifix.report.verdict import preprocessing
from verifix.report.verdict import verdict as verdict_on
from verifix.selection.trusted import Trusted


def correct_text(
    correction: Correction,
    proof: Proof | None,
    picked: Trusted | None,
    result: Result,
    labels: Tensor,
    *,
    verbose: bool,
) -> str:
    """Return what a correction came to.

    Parameters
    ----------
    correction, proof
        The correction, and its proof if there is one.
    picked
        How the samples were picked; None for verified ones.
    result
        All of it, with what was written.
    labels
        Of the samples that the correction was made from, int64 ``[n]``.
    verbose
        Whether to print every path, strength, layer and class.

    Returns
    -------
    str
        The verdict in the first line, and what was written in the last one.
    """
    verdict, done = _verdict(proof, result, verbose=verbose), correction.summary(verbose=verbose)
    lines = [*verdict, preprocessing(result), done] if verdict else [done, preprocessing(result)]
    lines += [] if picked is None else [picked.summary()]
    lines += [remark for remark in result.notes or () if remark not in correction.notes]  # these are in the summary
    half = [name for name in result.weights_dtypes or () if name in ("bfloat16", "float16")]
    if half:
        share = f"{correction.unchanged_by_rounding:.1%}"
        lines.append(f"Rounding to {' and '.join(half)} left {share} of the corrected layers' entries as they were.")
    if result.out is None and picked is None:
        lines += [f"Next: {' '.join(_next(correction, proof, labels))}"]
    if result.moments_file is not None:
        lines.append(f"Wrote the moments to {result.moments_file}.")
    files = f"Wrote {result.out} and {result.correction_file}."
    lines.append(f"{files if result.out else _why_not_written(correction)} {result.seconds:.0f} s.")
    return "\n".join(lines)


def _verdict(proof: Proof | None, result: Result, *, verbose: bool) -> list[str]:
    if proof is None:
        return []
    if verbose:
        return [proof.summary()]
    drawn = drawn_note(proof.drawn, weighted=proof.comparison.weighted)
    return [verdict_on(result), *(f"  {line}" for line in (*proof.comparison.brief(), drawn) if line)]


def _next(correction: Correction, proof: Proof | None, labels: Tensor) -> Iterator[str]:
    """Yield what may help where nothing was written."""
    comparison = None if proof is None else proof.comparison
    if comparison is not None and comparison.verdict == "harmful":
        yield "Keep the model as it is: the corrected one is worse."
    else:
        yield more_samples(comparison, correction.paths, len(labels))
    absent = correction.provenance.get("classes_without_samples") or []
    classes = max(int(labels.max()), *absent, len(correction.class_names or ()) - 1) + 1
    yield from filter(None, [rare_classes(labels, classes, correction.class_names)])
    yield other_recipe(str(correction.provenance["recipe"]), _projection_seconds(correction))


def _projection_seconds(correction: Correction) -> float | None:
    """Return what the projection alone takes with its proof, from what it took here; None if that is not known."""
    made, stage = correction.made, projection_among(correction.choices)
    spent = [path.seconds for path in correction.paths if path.stages == (stage,) and path.seconds is not None]
    if made is None or not spent:
        return None
    rest = made.seconds - sum(path.seconds or 0.0 for path in correction.paths)
    alone = [path for path in correction.paths if path.stages == (stage,)]
    seconds = max(rest, 0.0) + spent[0]
    return seconds + estimated_seconds(replace(correction, paths=tuple(alone)), seconds, made.settings.folds)


def _why_not_written(correction: Correction) -> str:
    if not correction.changed:
        return "No change: no checkpoint was written."
    return "The gain is not proven, so no checkpoint was written. --force or --proof none writes it anyway."

"""What `verifix correct` prints: the verdict, what was done, what to do next, and what was written."""

from __future__ import annotations

from verifix.correction import Correction
from verifix.evaluation.draw import drawn_note
from verifix.proof import Proof
from verifix.report import Result
from verifix.report.next_steps import advice
from verifix.report.verdict import preprocessing
from verifix.report.verdict import verdict as verdict_on
from verifix.selection.trusted import Trusted


def correct_text(
    correction: Correction,
    proof: Proof | None,
    picked: Trusted | None,
    result: Result,
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
    if next_steps := advice(result):
        lines.append(f"Next: {' '.join(next_steps)}")
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


def _why_not_written(correction: Correction) -> str:
    if not correction.changed:
        return "No change: no checkpoint was written."
    return "The gain is not proven, so no checkpoint was written. --force or --proof none writes it anyway."

"""What to do after a correction: a sentence and, where there is one, the command to type."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from verifix.report.formatting import count
from verifix.report.proof_section import class_name
from verifix.report.result import Result

Step = tuple[str, str | None]
"""What to do, and the command for it."""

FEW = 3
"""Classes that are named of those with the fewest samples."""


def next_steps(result: Result) -> list[Step]:
    """Return what to do next, the most important first.

    Parameters
    ----------
    result
        The result.

    Returns
    -------
    list of (str, str or None)
        Sentences, and commands that can be typed as they are, but for words in capitals.
    """
    steps = [*_use(result), *_prove(result), *_more(result), *_write(result)]
    return [*steps, *_undo(result), *_in_python(result)]


def undo_command(result: Result) -> str | None:
    """Return the command that restores the original checkpoint beside the corrected one; None if none was written."""
    if result.out is None or result.correction_file is None:
        return None
    out = PurePath(result.out)
    return shlex.join(["verifix", "undo", result.out, "--out", str(out.with_name(f"{out.stem}-original{out.suffix}"))])


def _use(result: Result) -> list[Step]:
    if result.verdict == "harmful":
        return [("Do not use this correction: the corrected model is worse.", None)]
    if result.out is None or result.verdict != "improved":
        return []
    return [
        (f"Use {result.out} in place of the original: it has the same format.", None),
        ("Check it on other samples that you trust.", _compare(result)),
    ]


def _compare(result: Result) -> str | None:
    checkpoint = (result.files or {}).get("checkpoint")
    if checkpoint is None or not checkpoint.path or not result.model:
        return None
    return shlex.join(
        ["verifix", "compare", checkpoint.path, str(result.out), "--model", result.model, "--data", "OTHER_SAMPLES"]
    )


def _prove(result: Result) -> list[Step]:
    if result.comparison is not None or not result.changed:
        return []
    return [
        ("Prove the gain: give samples that neither the training nor the correction has used, with --test DATA.", None)
    ]


def _more(result: Result) -> list[Step]:
    """Say how many more samples would decide, and of which classes there are fewest."""
    found = result.comparison
    if result.verdict == "harmful" or (found is None and result.changed) or result.verdict == "improved":
        return []
    steps = [] if found is None else [" ".join(found.needed())]
    if found is not None:
        rarest = sorted(found.per_class, key=lambda row: row.samples)[:FEW]
        named = ", ".join(f"{class_name(result.class_names, r.label)} ({count(r.samples)})" for r in rarest)
        steps.append(f"Verify more samples first of the classes that have fewest: {named}." if named else "")
    else:
        steps.append("Verify more samples and run it again: with more of them a smaller gain can be seen.")
    return [(step, None) for step in steps if step]


def _write(result: Result) -> list[Step]:
    if result.out or not result.command or not result.changed or result.verdict in ("improved", "harmful"):
        return []
    return [("No corrected checkpoint was written. The same command with --force writes it anyway.", None)]


def _undo(result: Result) -> list[Step]:
    command = undo_command(result)
    return [] if command is None else [("Go back to the original, which is restored and verified by hash:", command)]


def _in_python(result: Result) -> list[Step]:
    if result.command or not result.changed:
        return []
    return [
        ("correction.model is the corrected copy. Keep both versions of its weights:", 'correction.save("FILE")'),
        ("Go back to the original weights:", 'verifix.Correction.load("FILE").undo_(model)'),
    ]

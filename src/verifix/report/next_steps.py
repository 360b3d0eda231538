"""What to do after a correction: a sentence and, where there is one, the command to type."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from verifix.evaluation.advice import more_samples, other_recipe, rare_classes
from verifix.proof import seconds_of_proof
from verifix.recipe.stages import projection_among
from verifix.report.result import Result

Step = tuple[str, str | None]
"""What to do, and the command for it."""


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
    steps = [*_use(result), *_prove(result), *((line, None) for line in advice(result)), *_write(result)]
    return [*steps, *_undo(result), *_in_python(result)]


def undo_command(result: Result) -> str | None:
    """Return the command that restores the original checkpoint beside the corrected one; None if none was written."""
    if result.out is None or result.correction_file is None:
        return None
    out = PurePath(result.out)
    return shlex.join(["verifix", "undo", result.out, "--out", str(out.with_name(f"{out.stem}-original{out.suffix}"))])


def _use(result: Result) -> list[Step]:
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


def advice(result: Result) -> list[str]:
    """Say what may help where no gain is proven, in sentences: more samples, of which classes, another recipe.

    Parameters
    ----------
    result
        The result.

    Returns
    -------
    list of str
        Nothing where a gain is proven, nobody verified the samples, or there is a change and no proof of it.
    """
    found = result.comparison
    if result.picked or result.verdict == "improved" or (found is None and result.changed):
        return []
    harmful = "Do not use this correction: the corrected model is worse."
    more = harmful if result.verdict == "harmful" else more_samples(found, result.paths, result.provenance.samples)
    settings = result.provenance.settings
    other = other_recipe(str(settings["recipe"]), _projection_seconds(result)) if "recipe" in settings else ""
    return [line for line in (more, rare_classes(_counts(result), result.class_names), other) if line]


def _counts(result: Result) -> list[int]:
    """Return how many verified samples each class has, those included that were held back to prove the gain."""
    counts = list(result.provenance.class_samples or ())
    if counts and result.proof is not None and result.proof.kind == "split" and result.comparison is not None:
        for row in result.comparison.per_class:
            counts[row.label] += row.samples
    return counts


def _projection_seconds(result: Result) -> float | None:
    """Return what the projection alone takes with its proof, from what it took here; None if that is not known."""
    stage, folds = projection_among(result.choices), result.provenance.settings.get("folds")
    spent = [path.seconds for path in result.paths if path.stages == (stage,) and path.seconds is not None]
    if not spent or result.seconds is None or not isinstance(folds, int):
        return None
    others = sum(path.seconds or 0.0 for path in result.paths) + ((result.proof and result.proof.seconds) or 0.0)
    once = max(result.seconds - others, 0.0)
    return once + spent[0] + seconds_of_proof(once, spent[0], folds)


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

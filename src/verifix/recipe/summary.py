"""A correction in a few lines of text: what came out first, then one line per stage; everything else if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from verifix.errors import first_of, printable
from verifix.model.class_names import named
from verifix.recipe.decision import Choice, spelled
from verifix.recipe.outcome import LayerReport, path_lines, stage_lines
from verifix.recipe.paths import Path

TRAINING_NOTE = (
    "The verified samples were used in training, so the network remembers them with their wrong labels: these scores "
    "do not estimate accuracy on new data. Use samples that neither training nor the correction has seen (--test)."
)

UNSAID_NOTE = (
    "It was not said whether the model was trained on these samples. If it was, it remembers them with their wrong "
    "labels, and the scores do not hold for new data. Say verified_from='unseen', 'training' or 'trusted'."
)

TRUSTED_NOTE = (
    "Nothing was verified: these samples were picked{by}, and some of their labels are wrong. Scores on them do not "
    "estimate a gain, and no gain is claimed. Measure it on verified samples that neither training nor the correction "
    "has seen (--test)."
)
TRUSTED_NO_CHANGE = (
    " The model agrees with the labels of picked samples, so no change mostly wins: give alpha as a number."
)


class Told(Protocol):
    """What a summary is of: a `Correction`."""

    @property
    def provenance(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def choices(self) -> Mapping[str, Choice]: ...  # noqa: D102
    @property
    def paths(self) -> Sequence[Path]: ...  # noqa: D102
    @property
    def layers(self) -> Sequence[LayerReport]: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102
    @property
    def notes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def class_names(self) -> Sequence[str] | None: ...  # noqa: D102


def unverified(told: Told) -> bool:
    """Tell whether the samples were only picked because their label is probably right."""
    return bool(told.provenance.get("verified_from") == "trusted")


def unsaid(told: Told) -> bool:
    """Tell whether scores were computed on samples of which nobody said where they come from."""
    return told.provenance.get("verified_from") is None and any(choice.points for choice in told.choices.values())


def caution_of(told: Told) -> str:
    """Say what the scores are not, because of where the samples come from; nothing for verified unseen ones."""
    if unverified(told):
        method = told.provenance.get("picked_by")
        expected = not _kept(told) and told.provenance.get("alpha") == "auto"
        return TRUSTED_NOTE.format(by=f" by {method}" if method else "") + TRUSTED_NO_CHANGE * expected
    if unsaid(told):
        return UNSAID_NOTE
    return TRAINING_NOTE if told.provenance.get("verified_from") == "training" else ""


def summary_of(told: Told, *, verbose: bool) -> str:
    """Return what was done and why, for reading; see `Correction.summary`."""
    below = [*filter(None, [caution_of(told)]), *_details(told, verbose=verbose)]
    return "\n".join([headline(told), *(f"  {line}" for line in below)])


def headline(told: Told) -> str:
    """Say in one line what came out."""
    samples = f"{told.provenance['samples']} {'unverified' if unverified(told) else 'verified'} samples"
    on = f"{samples} ({told.provenance['verified_from'] or 'not said from where'})"
    kept = _kept(told)
    if not kept:
        why = told.reason.removeprefix("no change").lstrip(": ")
        return f"No change, from {on}{f': {why}' if why else ''}."
    if not any(choice.points for choice in kept.values()):
        return f"Corrected by {_stages(kept)} from {on}: the strength was given, and nothing was measured."
    before, after = _scores(told)
    return f"Corrected by {_stages(kept)} from {on}: score {before} before, {after} after, cross-fitted."


def _kept(told: Told) -> dict[str, Choice]:
    return {stage: choice for stage, choice in told.choices.items() if choice.strength is not None}


def _stages(kept: Mapping[str, Choice]) -> str:
    return " → ".join(f"{stage} {spelled(choice.strength)}" for stage, choice in kept.items())


def _scores(told: Told) -> tuple[str, str]:
    """Return the scores of no change and of the best path."""
    tried = [path.point for path in told.paths if path.point is not None]
    best = min(tried, key=lambda point: point.loss)
    return f"{tried[0].score:.4f}", f"{best.score:.4f}"


def _details(told: Told, *, verbose: bool) -> Iterator[str]:
    about, kind = told.provenance, "unverified" if unverified(told) else "verified"
    if verbose:
        yield f"verifix {about['verifix']}, recipe {about['recipe']}"
        yield from path_lines(told.paths, told.reason)
    for stage, choice in told.choices.items():
        yield from stage_lines(stage, choice) if verbose else [stage_line(stage, choice, told.reason)]
    if not verbose:
        yield from left_out(told.paths)
    yield from (layer.line for layer in told.layers) if verbose else layers_line(told.layers)
    if absent := about.get("classes_without_samples"):
        few = first_of((label if told.class_names is None else named(label, told.class_names) for label in absent), 10)
        yield (
            f"No {kind} sample has the label {few}: the correction may forget such classes, and no score here would "
            "show it."
        )
    yield from (f"Note: {note}" for note in told.notes)
    if any(choice.points for choice in told.choices.values()) and not unverified(told):
        yield "These scores chose the strengths and overstate the gain; measure it on other samples."


def left_out(paths: Sequence[Path]) -> list[str]:
    """Say how many paths were not tried to their end, and why the first was not; nothing if all were."""
    reasons = [path.reason for path in paths if path.point is None and path.reason.startswith("not tried")]
    if not reasons:
        return []
    why = reasons[0].removeprefix("not tried: ")
    return [f"{len(reasons)} of {len(paths) - 1} paths were not tried to their end: {why}"]


def stage_line(stage: str, choice: Choice, decision: str = "") -> str:
    """Return what a stage chose and why, in one line; not again what was decided on the whole path."""
    given = f" (α = {spelled(choice.strength)})" if choice.strength is not None and not choice.points else ""
    return f"{stage}: {choice.reason.removesuffix(f': {decision}') if decision else choice.reason}{given}"


def layers_line(layers: Sequence[LayerReport]) -> list[str]:
    """Return how many layers became what, and which changed most; nothing if there are none."""
    counts = {status: sum(row.status == status for row in layers) for status in ("corrected", "kept", "skipped")}
    told = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    changed = [row for row in layers if row.relative_change is not None]
    if not told or not changed:
        return [f"layers: {told}"] if told else []
    most = max(changed, key=lambda row: row.relative_change or 0.0)
    name = printable(most.parameter, one_line=True)
    return [f"layers: {told}; {name} changed most, by {most.relative_change:.1%}"]

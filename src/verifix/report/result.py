"""Everything that is known about a correction, as one typed object; `result.json` and the report are made from it.

What the library computes stands here as the library has it (`Choice`, `LayerReport`, `Comparison`); this module adds
what else a result holds. The types and docstrings of these classes are the JSON schema; see `verifix.report.schema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import msgspec

from verifix.correction import Correction
from verifix.evaluation.comparison import Comparison, Count, Verdict
from verifix.proof import Fold, Proof
from verifix.recipe.candidates import Strength
from verifix.recipe.decision import Choice
from verifix.recipe.outcome import LayerReport
from verifix.recipe.paths import Path as TriedPath
from verifix.recipe.summary import unsaid

SCHEMA = "verifix-result-1"
"""Version of the format; docs/report.md says what a change of it means."""


@dataclass(frozen=True)
class Provenance:
    """Versions, SHA-256 of weights and samples, and every setting.

    Attributes
    ----------
    verifix, torch
        Versions.
    model_sha256
        Of the weights before the correction, as tensors.
    samples
        How many samples the correction was made from.
    samples_sha256
        Of the samples and labels, as tensors.
    verified_from
        Where the samples come from; null if nobody said it.
    classes_without_samples
        Outputs that are the label of no sample.
    class_samples
        How many samples have each output as their label.
    settings
        The settings of the correction, by name; they stand beside the other keys.
    """

    verifix: str | None = None
    torch: str | None = None
    model_sha256: str | None = None
    samples: Count | None = None
    samples_sha256: str | None = None
    verified_from: Literal["unseen", "training", "trusted", None] = None
    classes_without_samples: tuple[int, ...] | None = None
    class_samples: tuple[Count, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as `Correction.provenance` has it, with the settings beside the other keys."""
        own = held(self)
        settings = own.pop("settings")
        return {**own, **settings}


@dataclass(frozen=True)
class ProofRecord:
    """What a proof says, and how it was made.

    Attributes
    ----------
    kind
        How it was made; "none" if there is no proof.
    samples
        Samples that it was made on.
    estimated, seconds
        What it was expected to take, and what it took.
    note
        What it rests on.
    comparison
        Before against after; null without a proof.
    folds
        Outer folds of a nested proof.
    """

    kind: Literal["nested", "split", "test", "none"] = "none"
    samples: Count | None = 0
    estimated: float | None = None
    seconds: float | None = None
    note: str | None = None
    comparison: Comparison | None = None
    folds: tuple[Fold, ...] | None = None


@dataclass(frozen=True)
class HeldOutScores:
    """Accuracy on the samples of --test.

    Attributes
    ----------
    samples
        How many.
    before, after
        Percent right.
    gain
        Points.
    """

    samples: Count
    before: float
    after: float
    gain: float


@dataclass(frozen=True)
class TrustedRecord:
    """How the samples were picked, if nobody verified them.

    Attributes
    ----------
    method
        How samples were ranked.
    count
        How many were picked.
    per_class, shortfall
        How many of each class were picked, and how many are missing.
    """

    method: str
    count: Count
    per_class: Mapping[str, int]
    shortfall: Mapping[str, int]


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of a layer's activation space.

    Attributes
    ----------
    eigenvalues
        Descending; they sum to 1.
    alpha
        The strength of the projection; null if it left the layer alone.
    """

    eigenvalues: tuple[float, ...]
    alpha: float | None = None


@dataclass(frozen=True)
class Example:
    """A sample that was set right or broken.

    Attributes
    ----------
    label, before, after
        Its label, and the class that was predicted before and after.
    outcome
        "fixed" if it is right now, "broken" if it was.
    index
        Its place among the samples of the proof.
    name
        Its file or row.
    confidence_before, confidence_after
        Probability of the predicted class, 0 to 1.
    text
        The sample, if it is a text.
    image
        The sample, if it is a picture: data:image/…;base64,…
    """

    label: int
    before: int
    after: int
    outcome: Literal["fixed", "broken"]
    index: int | None = None
    name: str | None = None
    confidence_before: float | None = None
    confidence_after: float | None = None
    text: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class FileRead:
    """A file that was read.

    Attributes
    ----------
    path
        As it was given.
    sha256
        Of its content; null for a folder.
    """

    path: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Result:
    """What a correction was made from, how it was chosen, what it changed, and what the proof says.

    Further keys may be there; a number that is not known or not finite is null.

    Attributes
    ----------
    schema
        Name and version of this format.
    provenance
        What the correction was made from.
    strengths
        The strength of each stage, in the order in which they ran; null where no change won.
    choices
        For each stage of the best path, the strength, why, and what it was chosen from.
    layers
        One for each parameter of two or more dimensions.
    changed
        Whether any weight would change.
    paths
        The paths of stages that were tried, no change first, with their scores on held-out verified samples.
    reason
        Why the best of them was taken, or not.
    model
        What was corrected, as ``--model`` names it.
    architecture
        The class of the model.
    task
        What it does, as the Hugging Face Hub calls it: "image-classification", "text-classification".
    created
        When, in UTC: 2026-12-01T09:39:00+00:00.
    verdict
        What the proof says, at a one-sided p below the threshold; null if it can say nothing.
    preprocessing
        How samples became inputs; null if whoever gave them did it. The verdict applies to inputs of this kind.
    proof
        How much better, and how sure.
    test
        Scores on the samples of --test.
    unverified
        True if nobody verified the samples.
    trusted
        How they were picked then.
    warning
        What the scores are not, because of where the samples come from.
    spectra
        Eigenvalues of the activation space, by parameter.
    class_names
        In the order of the outputs.
    examples
        Samples set right and broken, worst first.
    out
        The corrected checkpoint; null if none was written.
    correction_file
        The file that undoes the correction.
    moments_file
        The moments that were saved.
    weights
        Which weights of the checkpoint were used.
    weights_dtypes
        The dtypes in which corrected weights are stored.
    unchanged_by_rounding
        Share, 0 to 1, of the corrected entries that are what they were.
    notes
        What was noticed about samples and weights.
    files
        What was read, by role.
    command
        What to type to repeat it.
    seed
        Of folds and bootstrap.
    versions
        Of Python and libraries.
    seconds
        What all of it took.
    memory_bytes
        The most that was in use.
    """

    schema: Annotated[str, msgspec.Meta(extra_json_schema={"const": SCHEMA})]
    provenance: Provenance
    strengths: Mapping[str, Strength | None]
    choices: Mapping[str, Choice]
    layers: tuple[LayerReport, ...]
    changed: bool
    paths: tuple[TriedPath, ...] = ()
    reason: str = ""
    model: str | None = None
    architecture: str | None = None
    task: str | None = None
    created: str | None = None
    verdict: Verdict | None = None
    preprocessing: str | None = None
    proof: ProofRecord | None = None
    test: HeldOutScores | None = None
    unverified: bool = False
    trusted: TrustedRecord | None = None
    warning: str | None = None
    spectra: Mapping[str, Spectrum] | None = None
    class_names: tuple[str, ...] | None = None
    examples: tuple[Example, ...] | None = None
    out: str | None = None
    correction_file: str | None = None
    moments_file: str | None = None
    weights: str | None = None
    weights_dtypes: tuple[str, ...] | None = None
    unchanged_by_rounding: float | None = None
    notes: tuple[str, ...] | None = None
    files: Mapping[str, FileRead | None] | None = None
    command: str | None = None
    seed: int | None = None
    versions: Mapping[str, str] | None = None
    seconds: float | None = None
    memory_bytes: int | None = None

    @property
    def comparison(self) -> Comparison | None:
        """Before against after; None without a proof."""
        return None if self.proof is None else self.proof.comparison

    @property
    def picked(self) -> bool:
        """Whether nobody verified the samples that the correction was made from."""
        return self.unverified or self.provenance.verified_from == "trusted"

    @property
    def libraries(self) -> dict[str, str]:
        """The versions that are known, those of verifix and torch first."""
        own = {"verifix": self.provenance.verifix, "torch": self.provenance.torch}
        return {name: version for name, version in own.items() if version} | dict(self.versions or {})


def result_of(correction: Correction, proof: Proof | None = None) -> Result:
    """Return what a correction and its proof say; `dataclasses.replace` adds what else is known.

    Parameters
    ----------
    correction
        The correction.
    proof
        Its proof, if there is one.

    Returns
    -------
    Result
        For `write_report`, `write_result` and `write_card` of `verifix.report`.
    """
    choices = correction.as_dict()["choices"]  # with the note on what their scores are
    return Result(
        schema=SCHEMA,
        provenance=msgspec.convert(gathered(correction.provenance), Provenance),
        strengths=correction.strengths,
        choices={stage: Choice.from_dict(choice) for stage, choice in choices.items()},
        layers=correction.layers,
        changed=correction.changed,
        paths=correction.paths,
        reason=correction.reason,
        architecture=None if correction.made is None else type(correction.model).__name__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        verdict=None if proof is None else proof.comparison.verdict,
        proof=ProofRecord() if proof is None else _record_of(proof),
        test=None if proof is None or proof.kind != "test" else _scores_of(proof),
        unverified=correction.unverified,
        warning=None if proof is not None and unsaid(correction) else correction.caution or None,
        unchanged_by_rounding=correction.unchanged_by_rounding,
        notes=correction.notes,
        class_names=correction.class_names,
    )


def held(part: Any) -> dict[str, Any]:
    """Return the attributes of a dataclass in the order of its class, whose parts stay what they are."""
    return {f.name: getattr(part, f.name) for f in fields(part)}


def gathered(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Put the settings, which stand beside the other keys in a file, under a key of their own; see `Provenance`."""
    own = {f.name: provenance[f.name] for f in fields(Provenance) if f.name in provenance}
    return own | {"settings": {name: value for name, value in provenance.items() if name not in own}}


def _record_of(proof: Proof) -> ProofRecord:
    return ProofRecord(
        proof.kind, len(proof.labels), proof.estimated, proof.seconds, proof.note, proof.comparison, proof.folds
    )


def _scores_of(proof: Proof) -> HeldOutScores:
    before, after = proof.comparison.before.accuracy, proof.comparison.after.accuracy
    return HeldOutScores(len(proof.labels), before, after, after - before)

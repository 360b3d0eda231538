"""Proof: the gain of a correction on samples that no stage and no strength of it has seen."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from verifix.correction import Correction
from verifix.errors import CheckpointError, UsageError
from verifix.evaluation.comparison import Comparison, compare
from verifix.evaluation.draw import check_drawn, drawn_note, judged
from verifix.evaluation.near_copies import remark_between_folds, remark_on_near_copies
from verifix.evaluation.presented import Presented
from verifix.evaluation.provable import OUTER_FOLDS, check_provable, check_said
from verifix.losses import correct_or_not
from verifix.model import ranks
from verifix.model.answers import predicted
from verifix.model.call import own_call
from verifix.model.folds import split_folds
from verifix.model.given import given_samples
from verifix.model.outputs import understood
from verifix.model.samples import Samples, read_samples, together
from verifix.model.tensors import device_of, model_digest
from verifix.model.wrappers import unwrapped
from verifix.options import CorrectArguments
from verifix.preflight import begin
from verifix.progress import Work, duration, one_bar, progress_bar, tell, untold
from verifix.recipe.candidates import Strength
from verifix.recipe.context import Context
from verifix.recipe.crossfit import Rules
from verifix.recipe.forecast import seconds_of
from verifix.recipe.nested import nested
from verifix.recipe.plan import Plan
from verifix.recipe.search import Course
from verifix.settings import takes

Kind = Literal["nested", "split", "test"]

NOTES: dict[Kind, str] = {
    "nested": (
        "Nested cross-fitting: every sample was predicted by a correction made without it, from four fifths of the "
        "samples, with its own moments, strengths and stages. The interval is of the gain of this procedure, from four "
        "fifths of the samples, and not of the correction that is made from all."
    ),
    "split": "Measured on the half of the verified samples that the correction never saw.",
    "test": "Measured on test samples that neither training nor the correction has seen.",
}
"""What each kind of proof rests on; the last is up to whoever gave the samples."""


@dataclass(frozen=True)
class Fold:
    """One outer fold of a nested proof.

    Attributes
    ----------
    strengths
        What was chosen without it, by stage; None where no change won.
    samples
        Samples in it.
    before, after
        Percent of them that are right, without and with the correction.
    """

    strengths: Mapping[str, Strength | None]
    samples: int
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Proof(Presented):
    """What a correction gains on samples that it has not seen.

    Attributes
    ----------
    kind
        "nested", "split" or "test".
    comparison
        Before against after, with the verdict.
    indices
        Which samples were used, counted as they were given.
    before, after
        Logits ``[n, outputs]`` of these samples.
    labels
        int64 ``[n]``.
    folds
        The outer folds of a nested proof; else empty.
    estimated, seconds
        What it was expected to take, and what it took; None if that is not known.
    drawn
        How the samples were drawn; None if nobody said. Test samples are taken as a random sample.
    class_names
        In the order of the outputs; None if they are not known.
    correction
        The correction that it is a proof of, if it was made by `Correction.prove`.
    """

    kind: Kind
    comparison: Comparison
    indices: tuple[int, ...]
    before: Tensor
    after: Tensor
    labels: Tensor
    folds: tuple[Fold, ...] = ()
    estimated: float | None = None
    seconds: float | None = None
    drawn: str | None = "random"
    class_names: tuple[str, ...] | None = None
    correction: Correction | None = field(default=None, repr=False)

    @property
    def verdict(self) -> str:
        """One of "improved", "not proven" and "harmful"."""
        return self.comparison.verdict

    @property
    def note(self) -> str:
        """What it rests on."""
        return f"{NOTES[self.kind]} {drawn_note(self.drawn, weighted=self.comparison.weighted)}".rstrip()

    def summary(self) -> str:
        """Return the verdict, the figures and what they rest on, for reading."""
        return f"{self.comparison.summary(self.class_names)}\n{self.note}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the logits as plain data."""
        return {
            "kind": self.kind,
            "samples": len(self.labels),
            "note": self.note,
            "estimated": self.estimated,
            "seconds": self.seconds,
            "comparison": self.comparison.as_dict(),
            "folds": [asdict(fold) for fold in self.folds],
        }


@dataclass(frozen=True, kw_only=True)
class ProveArguments(CorrectArguments):
    """What `verifix.prove` takes: the arguments of `verifix.correct`, and how much each sample counts."""

    weights: Any = None
    """One weight per sample ``[n]``, in the order of the samples, if they are not a random sample of the data that the
    model will meet; see `verifix.class_weights`."""


@takes(ProveArguments)
def prove(model: nn.Module, verified: Any, settings: ProveArguments) -> Proof:
    """Estimate the gain of a correction by nested cross-fitting inside the verified samples.

    The verified samples are split into five folds. For each fold, a correction is made from the other four, with its
    own moments, strengths and stages, and predicts the samples of the fold. Its strengths are chosen by cross-fitting
    over these four folds. The predictions of all folds are compared with those of the uncorrected model.

    Parameters
    ----------
    model
        The uncorrected model; it is not changed.
    verified
        The samples, in any form that `verifix.correct` takes.
    settings
        The settings that `verifix.correct` was given, and `weights`; each is a keyword argument.

    Returns
    -------
    Proof
        The comparison, its verdict, and what was chosen in each fold.

    Raises
    ------
    UsageError
        If `verified_from` is not given. If the model was trained on the samples, or nobody verified them: then they
        prove nothing. If they are no random sample, and nothing says how much each counts.
    DataError
        If there are too few samples.

    Notes
    -----
    `folds` has no effect, and `budget` applies to each of the five corrections. The estimate is the gain of the
    procedure with four fifths of the samples. Nested cross-validation: Varma and Simon, BMC Bioinformatics 7:91
    (2006).

    Examples
    --------
    >>> import torch, verifix
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> inputs, labels = torch.randn(60, 4), torch.arange(60) % 2
    >>> proof = verifix.prove(model, inputs, labels, verified_from="unseen", alpha=100.0, progress=False)
    >>> len(proof.folds)
    5
    """
    began = time.perf_counter()
    if settings.check_inputs is None:  # a verdict on samples that the model cannot read would be worth nothing
        settings = replace(settings, check_inputs=True)
    check_said(settings)
    verified, names = given_samples(model, verified, settings.labels, settings.classes)
    settings = replace(settings, labels=None)  # the samples have them now
    with own_call(settings.seed), one_bar("proof", settings.progress) as work:
        reading = settings.batch_size, settings.progress, settings.forward, settings.max_samples, settings.groups
        samples = read_samples(verified, *reading)
        check_provable(len(samples), "nested", settings)
        check_drawn(settings.drawn, weighted=settings.weights is not None)
        counted = judged(settings.drawn, settings.weights, range(len(samples)), len(samples))
        with begin(model, samples, settings, folds=OUTER_FOLDS) as start:
            rules = Rules(settings, settings.score, settings.loss)
            _foresee(start.plan, work)
            with untold():  # lines of five corrections in turn would tell nobody anything
                courses = nested(start.plan, start.whole, rules, settings.progress)
            pairs = ranks.spread(partial(_judged, start.whole), courses, [1] * len(courses))
            groups, doubt = start.samples.groups, remark_between_folds(start.whole)
    order = torch.tensor([i for course in courses for i in course.whole.outside]).argsort()
    before, after = (torch.cat(parts)[order] for parts in zip(*pairs, strict=True))
    folds = [_fold(course, before, after, samples.labels, counted) for course in courses]
    before, after, labels = before[counted], after[counted], samples.labels[counted]
    weights = settings.weights if len(counted) == len(samples) else np.asarray(settings.weights)[counted]
    how: Any = {"weights": weights, "groups": groups[counted], "seed": settings.seed, "outputs": "logits"}
    comparison = compare(before, after, labels, **how).doubted(doubt)
    seconds = time.perf_counter() - began
    made = (comparison, tuple(counted), before, after, labels, tuple(folds))
    return Proof("nested", *made, seconds=seconds, drawn=settings.drawn, class_names=names)


def prove_again(correction: Correction, **changes: Any) -> Proof:
    """Prove a correction with the samples and the settings that it was made with; see `Correction.prove`."""
    made = correction.made
    if made is None:
        raise UsageError(
            "a correction that was loaded from a file does not know its samples; call verifix.prove with the model and "
            "the samples"
        )
    if not correction.changed:
        raise UsageError("no change won, so there is no gain to prove; verify more samples, or try another recipe")
    if model_digest(unwrapped(made.model)) != correction.provenance["model_sha256"]:
        raise CheckpointError(
            "the model has other weights than those that were corrected; give it these again (undo_), then prove"
        )
    own = {f.name: getattr(made.settings, f.name) for f in fields(made.settings)}
    said = {name: value for name, value in changes.items() if value is not None}
    with one_bar("proof", own["progress"]) as work:
        work.times.update(seconds_of(correction.paths, made.settings.folds))
        proof = prove(made.model, made.samples, **own | said)
    expected = estimated_seconds(correction, made.seconds, made.settings.folds)
    return replace(proof, estimated=expected, correction=correction)


def measured(
    kind: Kind,
    model: nn.Module,
    correction: Correction,
    samples: Samples,
    indices: Sequence[int],
    weights: Any = None,
    *,
    used: Samples | None = None,
    seed: int = 0,
    show: bool = False,
    drawn: str | None = "random",
) -> Proof:
    """Measure a correction on samples that it has not seen.

    Parameters
    ----------
    kind
        "split" or "test".
    model
        The uncorrected model; it is not changed.
    correction
        The correction, with its model.
    samples, indices
        Samples, and which of them to use.
    weights
        One weight per sample ``[n]``, those that are not used included; None if all count the same.
    used
        The samples that the correction was made from, to find near-copies of them; None to look for none.
    seed
        Seed of the bootstrap.
    show
        Whether to show progress.
    drawn
        How the samples were drawn.

    Returns
    -------
    Proof
        The comparison and its verdict.
    """
    start, labels = time.perf_counter(), samples.labels[list(indices)]
    samples, _ = understood(model, samples, device_of(model), correction.provenance["outputs"])
    with progress_bar(kind, 2 * len(indices), show) as bar:
        before = predicted(model, samples, indices, bar.update)
        after = predicted(correction.model, samples, indices, bar.update) if correction.changed else before
    chosen = None if weights is None else np.asarray(weights)[list(indices)]
    held = samples.reaching(model).subset(indices)
    comparison = compare(before, after, labels, weights=chosen, groups=held.groups, seed=seed, outputs="logits")
    comparison = comparison.doubted(None if used is None else _doubt(model, held, before, used))
    seconds = time.perf_counter() - start
    made = (comparison, tuple(indices), before, after, labels)
    return Proof(kind, *made, seconds=seconds, drawn=drawn, class_names=correction.class_names, correction=correction)


def _doubt(model: nn.Module, held: Samples, logits: Tensor, used: Samples) -> str | None:
    """Say that samples do not seem to be independent, of each other or of those that the correction was made from."""

    def answers() -> Tensor:
        known, _ = understood(model, used, device_of(model), held.outputs or "auto")
        return torch.cat([predicted(model, known), logits])

    sides = [0] * len(used) + list(range(1, len(held) + 1))
    return remark_on_near_copies(together(used.reaching(model), held), sides, answers)


def halves(samples: Samples, seed: int) -> tuple[list[int], list[int]]:
    """Split samples in two, balanced by label and each group on one side: one to correct, one to prove.

    The larger one corrects, so that as many samples as `check_provable` asks for are always enough.

    Parameters
    ----------
    samples
        The verified samples.
    seed
        Seed of the split.

    Returns
    -------
    tuple
        Sorted indices of those that correct, and of those that prove.
    """
    proving, correcting = sorted(split_folds(samples, 2, seed), key=len)
    return [int(i) for i in correcting], [int(i) for i in proving]


def estimated_seconds(correction: Correction, seconds: float, folds: int) -> float:
    """Estimate what a nested proof will take, from a correction of all samples.

    Parameters
    ----------
    correction
        The correction.
    seconds
        What it took.
    folds
        Its folds.

    Returns
    -------
    float
        Seconds: one pass over the samples, and choosing, whose fits are each from three fifths of the samples. There
        are ten of them if all folds choose alike, and twenty if no two do; the middle is taken.
    """
    choosing = sum(path.seconds or 0.0 for path in correction.paths)
    return seconds_of_proof(max(seconds - choosing, 0.0), choosing, folds)


def seconds_of_proof(once: float, choosing: float, folds: int) -> float:
    """Estimate what a nested proof takes, from what a correction takes once and while it chooses in its folds."""
    pairs = math.comb(OUTER_FOLDS, 2)
    share = (OUTER_FOLDS - 2) / OUTER_FOLDS / ((folds - 1) / folds)
    return once + choosing * 1.5 * pairs * share / folds


def _foresee(plan: Plan, work: Work) -> None:
    """Say about how long a proof takes, if its correction has just been made; else that shows on the way."""
    ahead = [seconds_of_proof(0.0, OUTER_FOLDS * work.times.get(path, 0.0), OUTER_FOLDS) for path in plan.walk]
    about = f", about {duration(sum(ahead))}" if work.times else ""
    tell(f"proof: {OUTER_FOLDS} corrections, each judged on samples it has not seen{about}", work.shown)
    work.foresee(ahead if work.times else [1.0] * len(ahead), known=bool(work.times))


def _judged(untouched: Context, course: Course) -> tuple[Tensor, Tensor]:
    """Return what is predicted for an outer fold before and after, in the same batches: no change, the same logits."""
    held_out = course.whole.outside
    before = untouched.predict(held_out, {})
    return before, course.whole.predict(held_out, {}) if course.whole.update else before


def _fold(course: Course, before: Tensor, after: Tensor, labels: Tensor, counted: Sequence[int]) -> Fold:
    """Return what one fold has shown of its samples that are judged."""
    own = sorted(set(course.whole.outside) & set(counted))
    right = [100 * float(correct_or_not(logits[own], labels[own]).mean()) if own else 0.0 for logits in (before, after)]
    return Fold(course.strengths, len(own), *right)

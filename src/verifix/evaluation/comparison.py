"""Whether one model is better than another on the same labelled samples, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from verifix.errors import DataError
from verifix.evaluation.metrics import Bin, Measures, confusion, mean, measure, reliability
from verifix.evaluation.power import samples_needed
from verifix.evaluation.predictions import Answers, Array, as_answers, as_labels, as_weights, class_count
from verifix.evaluation.presented import Presented
from verifix.evaluation.significance import (
    THRESHOLD,
    Interval,
    Outcomes,
    by_group,
    gain_interval,
    p_values,
    strata_of,
)
from verifix.model.class_names import named as _name
from verifix.model.groups import as_groups, joined
from verifix.model.outputs import Meaning
from verifix.options import check_outputs, check_seed

Verdict = Literal["improved", "not proven", "harmful"]

Count = Annotated[int, msgspec.Meta(ge=0)]
"""A number of things, which a stored result cannot hold below zero."""

SECOND_LOOK = (
    "A verdict on old and new samples together is a second look, which chance passes more often: to keep the level, "
    "judge the new samples alone, or ask for p < 0.0125 at both looks."
)
"""What "more samples would decide" does not say; docs/proof.md has what was measured."""


class ClassChange(msgspec.Struct, frozen=True):
    """What changed in one class.

    Attributes
    ----------
    label
        The class; ``class`` in plain data, a word that Python keeps for itself.
    samples
        How many have this label.
    before, after
        Percent right; None if there are none, or none that counts.
    fixed, broken
        Answers that became right, and wrong.
    """

    label: int = msgspec.field(name="class")
    samples: int
    before: float | None
    after: float | None
    fixed: int
    broken: int


@dataclass(frozen=True)
class Comparison(Presented):
    """Two models on the same samples.

    Attributes
    ----------
    samples, classes
        Number of samples, and of classes.
    weighted
        Whether the samples have different weights.
    before, after
        Figures of each model.
    gain
        Points of accuracy, with the bootstrap interval.
    fixed, broken
        Wrong answers that became right, and right ones that became wrong.
    changed
        Answers that differ.
    p_better, p_worse
        One-sided p-values of "no better" and of "no worse".
    threshold
        The threshold of both p-values.
    verdict
        "improved" if `p_better` is below the threshold and there is no `doubt`, "harmful" if `p_worse` is below it,
        else "not proven".
    samples_needed
        Number of verified samples that would decide with a power of 80%, if the observed gain is real; None if the
        verdict is clear already, or there is no gain. With groups, in groups of the same mean size.
    per_class
        What changed in each class.
    confusion_before, confusion_after
        Counts ``[label][predicted]``; None above 100 classes.
    reliability_before, reliability_after
        Bins of confidence; None if only predicted classes are known.
    outputs
        What the numbers of either were read as.
    groups
        Number of independent groups that interval, p-values and `samples_needed` count; None if every sample is one.
    doubt
        Why a gain below the threshold is not called "improved"; None if nothing stands against it.
    class_names
        In the order of the outputs; None if they are not known.
    """

    samples: Count
    classes: Count
    weighted: bool
    before: Measures
    after: Measures
    gain: Interval
    fixed: int
    broken: int
    changed: int
    p_better: float
    p_worse: float
    threshold: float
    verdict: Verdict
    samples_needed: int | None
    per_class: tuple[ClassChange, ...]
    confusion_before: list[list[int]] | None
    confusion_after: list[list[int]] | None
    reliability_before: tuple[Bin, ...] | None
    reliability_after: tuple[Bin, ...] | None
    outputs: tuple[Meaning, Meaning] = field(default=("logits", "logits"), kw_only=True)
    groups: Count | None = field(default=None, kw_only=True)
    doubt: str | None = field(default=None, kw_only=True)
    class_names: tuple[str, ...] | None = field(default=None, kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as plain data, fit for JSON."""
        return dict(msgspec.json.decode(msgspec.json.encode(self)))

    def doubted(self, doubt: str | None) -> Comparison:
        """Return the same, with what stands against the verdict "improved"; nothing changes if that is None."""
        if doubt is None:
            return self
        return replace(self, doubt=doubt, verdict="not proven" if self.verdict == "improved" else self.verdict)

    def sentence(self, where: str | None = None) -> str:
        """Say the verdict in one sentence.

        Parameters
        ----------
        where
            What the samples are, from "on" to the end of the sentence; by default, how many there are.

        Returns
        -------
        str
            The sentence: the summary, the report and the model card have no other.
        """
        before, after = (f"{side.accuracy:.{self.digits}f}%" for side in (self.before, self.after))
        low, high = (signed(x, self.digits) for x in (self.gain.low, self.gain.high))
        gain = f"{self.points}, {self.gain.level:.0%} interval {low} to {high}"
        where = where or f"on {self.samples:,} samples"
        return f"{self.verdict.capitalize()}: {before} correct before, {after} after ({gain}) {where}."

    @property
    def digits(self) -> int:
        """How many digits of a percentage mean anything; one sample of 1,000 is 0.1 points."""
        return 1 if self.samples <= 1000 else 2

    @property
    def points(self) -> str:
        """The gain as it is written out, which is the difference of the two accuracies as they are written out."""
        written = round(self.after.accuracy, self.digits) - round(self.before.accuracy, self.digits)
        exact = self.gain.estimate
        return signed(written if abs(written - exact) < 1.01 * 10**-self.digits else exact, self.digits)

    def summary(self, names: Sequence[str] | None = None) -> str:
        """Say what changed, in a few lines.

        Parameters
        ----------
        names
            Names of the classes, if they are known; by default its own.

        Returns
        -------
        str
            The verdict first.
        """
        names = self.class_names if names is None else names
        lines = [
            self.sentence(),
            *self.independence(),
            *self.needed(),
            self._flips(),
            *self._measures(),
            *self._classes(names),
            *self._outputs(),
        ]
        return "\n".join(lines)

    def needed(self) -> list[str]:
        """Say how many more samples would decide; nothing if that is not known, or decided."""
        if self.samples_needed is None:
            return []
        more, groups = self.samples_needed - self.samples, ""
        if self.groups is not None:
            groups = f", in about {rounded(math.ceil(more * self.groups / self.samples))} more groups,"
        return [
            f"About {rounded(more)} more verified samples{groups} would decide, if the observed difference is real "
            f"(80% power). {SECOND_LOOK}"
        ]

    def brief(self) -> list[str]:
        """Say what the verdict rests on, without the figures of each class."""
        return [*self.independence(), self._flips()]

    def independence(self) -> list[str]:
        """Say what is to be known about samples that are not independent; nothing if all are."""
        told = [] if self.doubt is None else [self.doubt]
        if self.groups is not None:
            told.append(
                f"The {self.samples:,} samples are {self.groups:,} independent groups (copies, or one declared group); "
                "interval and p count groups."
            )
        return told

    def _flips(self) -> str:
        weighted = " The percentages and p are weighted, the counts are not." if self.weighted else ""
        return (
            f"{self.changed} answers differ: {self.fixed} fixed, {self.broken} broken (one-sided p of no better "
            f"{_p(self.p_better)}, of no worse {_p(self.p_worse)}; the verdict needs p < {self.threshold}).{weighted}"
        )

    def _measures(self) -> list[str]:
        a, b = self.before, self.after
        d = self.digits
        lines = [
            f"Accuracy {a.accuracy:.{d}f}% before, {b.accuracy:.{d}f}% after.",
            f"Balanced accuracy {a.balanced_accuracy:.{d}f}% before, {b.balanced_accuracy:.{d}f}% after.",
        ]
        for what, x, y in (
            ("Cross-entropy", a.cross_entropy, b.cross_entropy),
            ("Calibration error", a.calibration_error, b.calibration_error),
        ):
            if x is not None or y is not None:
                lines.append(f"{what} {_number(x)} before, {_number(y)} after.")
        return lines

    def _outputs(self) -> list[str]:
        pairs = zip(("before", "after"), self.outputs, strict=True)
        return [f"The numbers of {what} are read as {meaning}." for what, meaning in pairs if meaning != "logits"]

    def _classes(self, names: Sequence[str] | None) -> list[str]:
        rows = [row for row in self.per_class if row.samples]
        lines = [_class_line(row, names) for row in rows if row.fixed or row.broken]
        same = len(rows) - len(lines)
        absent = [_name(row.label, names) for row in self.per_class if not row.samples]
        if same:
            lines.append(f"{same} of {len(rows)} classes: no answer became right or wrong.")
        if absent:
            lines.append(
                f"No sample of {', '.join(absent[:10])}{', …' * (len(absent) > 10)}, so nothing is known about it."
            )
        return lines


def compare(
    before: Any,
    after: Any,
    labels: Any,
    *,
    weights: Any = None,
    groups: Any = None,
    seed: int = 0,
    outputs: Literal["auto", "logits", "log-probabilities", "probabilities", "percent"] = "auto",
) -> Comparison:
    """Compare what two models answered, with class indices ``[n]`` as labels; see `verifix.evaluation.compare`."""
    check_seed(seed)
    check_outputs(outputs)
    y = as_labels(labels)
    a, b = (as_answers(x, what, len(y), outputs) for x, what in ((before, "before"), (after, "after")))
    classes, w = class_count(a, b, y), as_weights(weights, len(y))
    right_a, right_b = a.predicted == y, b.predicted == y
    each = Outcomes(right_b.astype(np.int64) - right_a, w, strata_of(y, w))
    outcomes, units = _independent(each, groups)
    better, worse = p_values(outcomes, seed)
    verdict = _verdict(better, worse)
    needed = samples_needed(outcomes) if verdict == "not proven" else None
    return Comparison(
        samples=len(y),
        classes=classes,
        weighted=w is not None,
        before=measure(a, y, w),
        after=measure(b, y, w),
        gain=gain_interval(outcomes, seed),
        fixed=each.fixed,
        broken=each.broken,
        changed=int((a.predicted != b.predicted).sum()),
        p_better=better,
        p_worse=worse,
        threshold=THRESHOLD,
        verdict=verdict,
        samples_needed=needed if needed is None or units is None else math.ceil(needed * len(y) / units),
        per_class=_per_class(a, b, y, w, classes),
        confusion_before=confusion(a, y, classes),
        confusion_after=confusion(b, y, classes),
        reliability_before=reliability(a, y, w),
        reliability_after=reliability(b, y, w),
        outputs=(a.meaning, b.meaning),
        groups=units,
    )


def _independent(outcomes: Outcomes, groups: Any) -> tuple[Outcomes, int | None]:
    """Return the outcomes of what is independent, and how many groups that is; None if it is every sample."""
    if groups is None:
        return outcomes, None
    count = len(outcomes.differences)
    numbers = joined(as_groups(groups, count))
    units = int(numbers.max()) + 1
    if units < 2:
        raise DataError(f"all {count} samples are of one group; a comparison needs at least 2 independent ones")
    return (outcomes, None) if units == count else (by_group(outcomes, numbers), units)


def _verdict(better: float, worse: float) -> Verdict:
    if better < THRESHOLD:
        return "improved"
    return "harmful" if worse < THRESHOLD else "not proven"


def _per_class(a: Answers, b: Answers, y: Array, w: Array | None, classes: int) -> tuple[ClassChange, ...]:
    rows = []
    for label in range(classes):
        own = np.flatnonzero(y == label)
        right_a, right_b = a.predicted[own] == label, b.predicted[own] == label
        weights = None if w is None else w[own]
        counts = len(own) > 0 and (weights is None or weights.sum() > 0)
        before, after = (100 * mean(right, weights) if counts else None for right in (right_a, right_b))
        fixed, broken = int((right_b & ~right_a).sum()), int((right_a & ~right_b).sum())
        rows.append(ClassChange(label, len(own), before, after, fixed, broken))
    return tuple(rows)


def _class_line(row: ClassChange, names: Sequence[str] | None) -> str:
    return (
        f"{_name(row.label, names)}: {_percent(row.before)} correct before, {_percent(row.after)} after "
        f"({row.samples} samples, {row.fixed} fixed, {row.broken} broken)."
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}%"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def signed(number: float, digits: int = 1) -> str:
    """Write a difference out, with its sign: +4.9, −0.3 or 0.0."""
    text = f"{number:+.{digits}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", "−")


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 1e-4 else "< 0.0001"


def rounded(count: int) -> str:
    """Write a count with two digits that count: it is an estimate."""
    digits = max(0, len(str(count)) - 2)
    return f"{-(-count // 10**digits) * 10**digits:,}"

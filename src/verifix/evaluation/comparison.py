"""Whether one model is better than another on the same labelled samples, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from verifix.errors import DataError, printable
from verifix.evaluation.metrics import Bin, Measures, confusion, mean, measure, reliability
from verifix.evaluation.predictions import Answers, Array, as_answers, as_labels, as_weights, class_count
from verifix.evaluation.significance import (
    THRESHOLD,
    Interval,
    Outcomes,
    gain_interval,
    p_values,
    samples_needed,
    strata_of,
)
from verifix.model.outputs import Meaning
from verifix.options import check_outputs, check_seed

Verdict = Literal["improved", "not proven", "harmful"]

Count = Annotated[int, msgspec.Meta(ge=0)]
"""A number of things, which a stored result cannot hold below zero."""

ROUNDED_SHARES = 1e-3
"""How far shares of classes may be from a sum of 1."""


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
class Comparison:
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
        "improved" if `p_better` is below the threshold, "harmful" if `p_worse` is, else "not proven".
    samples_needed
        Number of verified samples that would decide with a power of 80%, if the observed gain is real; None if the
        verdict is clear already, or there is no gain.
    per_class
        What changed in each class.
    confusion_before, confusion_after
        Counts ``[label][predicted]``; None above 100 classes.
    reliability_before, reliability_after
        Bins of confidence; None if only predicted classes are known.
    outputs
        What the numbers of either were read as.
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

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as plain data, fit for JSON."""
        data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return data

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
        gain, low, high = (signed(x) for x in (self.gain.estimate, self.gain.low, self.gain.high))
        return (
            f"{self.verdict.capitalize()}: {self.before.accuracy:.1f}% right before, {self.after.accuracy:.1f}% after "
            f"({gain}, {self.gain.level:.0%} interval {low} to {high}) {where or f'on {self.samples:,} samples'}."
        )

    def summary(self, names: Sequence[str] | None = None) -> str:
        """Say what changed, in a few lines.

        Parameters
        ----------
        names
            Names of the classes, if they are known.

        Returns
        -------
        str
            The verdict first.
        """
        lines = [
            self.sentence(),
            *self._needed(),
            self._flips(),
            *self._measures(),
            *self._classes(names),
            *self._outputs(),
        ]
        return "\n".join(lines)

    def _needed(self) -> list[str]:
        if self.samples_needed is None:
            return []
        more = _rounded(self.samples_needed - self.samples)
        return [f"About {more} more verified samples would decide, if the observed difference is real (80% power)."]

    def _flips(self) -> str:
        weighted = " The percentages and p are weighted, the counts are not." if self.weighted else ""
        return (
            f"{self.changed} answers differ: {self.fixed} fixed, {self.broken} broken (one-sided p of no better "
            f"{_p(self.p_better)}, of no worse {_p(self.p_worse)}; the verdict needs p < {self.threshold}).{weighted}"
        )

    def _measures(self) -> list[str]:
        a, b = self.before, self.after
        lines = [f"Accuracy {a.accuracy:.2f}% before, {b.accuracy:.2f}% after."]
        lines.append(f"Balanced accuracy {a.balanced_accuracy:.2f}% before, {b.balanced_accuracy:.2f}% after.")
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
    seed: int = 0,
    outputs: Literal["auto", "logits", "log-probabilities", "probabilities", "percent"] = "auto",
) -> Comparison:
    """Compare two models on the same labelled samples, which neither model has learned from.

    Parameters
    ----------
    before, after
        The output of each model: logits, log-probabilities, probabilities or percent ``[n, classes]``, or one such
        number per sample ``[n, 1]``, that of class 1; tensors, arrays or lists. Whole numbers ``[n]`` are predicted
        classes; figures that need probabilities are then None.
    labels
        Class indices ``[n]``.
    weights
        How much each sample counts, ``[n]``, if the samples are not a random sample of what the model will meet; see
        `class_weights`. By default, all weights are equal.
    seed
        Seed of the bootstrap.
    outputs
        What the numbers of both are. "auto" finds it out for each, and refuses what is not clear.

    Returns
    -------
    Comparison
        Accuracy, calibration, flips and a verdict.

    Raises
    ------
    DataError
        If the arguments do not fit together, something is not finite, or it is not clear what the numbers are.
    UsageError
        If the seed is not a whole number, or `outputs` is not a known word.
    """
    check_seed(seed)
    check_outputs(outputs)
    y = as_labels(labels)
    a, b = (as_answers(x, what, len(y), outputs) for x, what in ((before, "before"), (after, "after")))
    classes, w = class_count(a, b, y), as_weights(weights, len(y))
    right_a, right_b = a.predicted == y, b.predicted == y
    outcomes = Outcomes(right_b.astype(np.int64) - right_a, w, strata_of(y, w))
    better, worse = p_values(outcomes, seed)
    verdict = _verdict(better, worse)
    return Comparison(
        samples=len(y),
        classes=classes,
        weighted=w is not None,
        before=measure(a, y, w),
        after=measure(b, y, w),
        gain=gain_interval(outcomes, seed),
        fixed=outcomes.fixed,
        broken=outcomes.broken,
        changed=int((a.predicted != b.predicted).sum()),
        p_better=better,
        p_worse=worse,
        threshold=THRESHOLD,
        verdict=verdict,
        samples_needed=samples_needed(outcomes) if verdict == "not proven" else None,
        per_class=_per_class(a, b, y, w, classes),
        confusion_before=confusion(a, y, classes),
        confusion_after=confusion(b, y, classes),
        reliability_before=reliability(a, y, w),
        reliability_after=reliability(b, y, w),
        outputs=(a.meaning, b.meaning),
    )


def class_weights(labels: Any, shares: Mapping[int, float] | Sequence[float]) -> Array:
    """Return weights for samples whose classes do not have the shares that they have where the model is used.

    Parameters
    ----------
    labels
        Class indices ``[n]``.
    shares
        The share of each class in what the model will meet: one number per class, or class → number; they sum to 1.

    Returns
    -------
    ndarray
        float64 ``[n]``: share · n / (samples of the class), which has a mean of 1.

    Raises
    ------
    DataError
        If a share is not usable, or a class has a share and no sample, or a sample and no share.
    """
    y = as_labels(labels)
    pairs = dict(shares) if isinstance(shares, Mapping) else dict(enumerate(shares))
    _check_shares(pairs)
    counts = {int(c): int(count) for c, count in zip(*np.unique(y, return_counts=True), strict=True)}
    for label, share in pairs.items():
        if share > 0 and label not in counts:
            raise DataError(
                f"class {label} has the share {share:g} and no sample; verify some samples of it, or compare without "
                "shares"
            )
    for label, count in counts.items():
        if label not in pairs:
            raise DataError(f"class {label} has {count} samples and no share; give the share of every class")
    total = sum(pairs.values())
    per_class = {label: pairs[label] / total * len(y) / count for label, count in counts.items()}
    return np.array([per_class[label] for label in y.tolist()])


def _check_shares(shares: Mapping[Any, Any]) -> None:
    for label, share in shares.items():
        if not isinstance(label, (int, np.integer)) or isinstance(label, bool):
            raise DataError(f"shares name the class {label!r}; classes are whole numbers of 0 or more")
        number = isinstance(share, (int, float, np.number)) and not isinstance(share, bool)
        if not number or not 0 <= share <= 1:
            raise DataError(f"class {label} has the share {share!r}; a share is a number from 0 to 1")
    if abs(sum(shares.values()) - 1) > ROUNDED_SHARES:
        raise DataError(f"the shares of {len(shares)} classes sum to {sum(shares.values()):g}; they must sum to 1")


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
        f"{_name(row.label, names)}: {_percent(row.before)} right before, {_percent(row.after)} after "
        f"({row.samples} samples, {row.fixed} fixed, {row.broken} broken)."
    )


def _name(label: int, names: Sequence[str] | None) -> str:
    return printable(names[label], one_line=True) if names is not None and label < len(names) else f"class {label}"


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


def _rounded(count: int) -> str:
    """Write a count with two digits that count: it is an estimate."""
    digits = max(0, len(str(count)) - 2)
    return f"{-(-count // 10**digits) * 10**digits:,}"

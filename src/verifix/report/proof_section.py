"""What the report shows of the proof: how much better, how sure, and where."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

from verifix.evaluation.comparison import ClassChange, Comparison
from verifix.proof import Fold
from verifix.recipe.decision import spelled
from verifix.report import charts
from verifix.report.formatting import count, decimal, percent, plural, probability, share, shortened, signed
from verifix.report.result import Example, ProofRecord, Result
from verifix.report.verdict import caution, measured_on, prepared, verdict

MOST_CLASSES, FEW_CLASSES = 30, 12
"""Classes up to which all are shown, in order, and how many of the worst and best are shown otherwise."""

LARGEST_TABLE = 12
"""Classes up to which every pair of label and answer is shown; of more, the pairs that changed most are."""

MOST_PAIRS = 15
"""Pairs of label and answer that are shown of many classes."""

MOST_EXAMPLES, FIRST_EXAMPLES = 20, 6
"""Samples that are shown of each kind, and how many of them at once."""

LONGEST_TEXT = 240
"""Characters of a sample that is a text."""

SMALL_PICTURE = 48
"""Pixels up to which a picture is enlarged with sharp edges."""

PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")
"""The only kind of address that a picture may have: its own content."""

TONES = {"improved": "good", "harmful": "bad", "not proven": "warn"}


def opening(result: Result) -> dict[str, Any]:
    """Return the verdict, what it holds for, and what was noticed."""
    head, _, rest = verdict(result).partition(": ")
    return {
        "tone": TONES[result.verdict] if result.verdict else "plain",
        "word": head,
        "sentence": rest,
        "caution": caution(result),
        "prepared": prepared(result),
        "remarks": _why(result),
        "notes": _noticed(result),
        "figures": _tiles(result.comparison),
    }


def _noticed(result: Result) -> list[str]:
    absent = result.provenance.classes_without_samples or ()
    named = ", ".join(class_name(result.class_names, label) for label in absent)
    forgotten = f"No sample has the label {named}: the correction may forget it, and no figure here would show that."
    return [*([forgotten] if absent else []), *(result.notes or ())]


def _why(result: Result) -> list[str]:
    found = result.comparison
    if found is None:
        return [result.proof.note] if result.proof is not None and result.proof.note else []
    return [*found.independence(), *_chance(found)]


def _chance(found: Comparison) -> list[str]:
    """Say what p is, and what would decide."""
    if found.doubt is not None and found.verdict == "not proven":
        return []
    kind = "one-sided" if found.weighted or found.groups is not None else "one-sided, exact"
    if found.verdict == "improved":
        p = probability(found.p_better)
        return [f"By chance alone, a gain is rarely this clear: p is {p} ({kind})."]
    if found.verdict == "harmful":
        p = probability(found.p_worse)
        return [f"By chance alone, a loss is rarely this clear: p is {p} ({kind})."]
    p = probability(found.p_worse if found.gain.estimate < 0 else found.p_better)
    return [f"The difference could be chance: p is {p}, and must be below {probability(found.threshold)}."]


def _tiles(found: Comparison | None) -> list[tuple[str, str, str]]:
    """Return the few figures that matter most: value, what it is, tone."""
    if found is None:
        return []
    return [
        (percent(found.before.accuracy, found.digits), "accuracy before", "before"),
        (percent(found.after.accuracy, found.digits), "accuracy after", "after"),
        (found.points, "gain in points", "plain"),
        (count(found.fixed), "answers fixed", "good"),
        (count(found.broken), "answers broken", "bad"),
    ]


def before_after(result: Result) -> dict[str, Any]:
    """Return the measures before and after, with intervals, and how they were made."""
    found, proof = result.comparison, result.proof or ProofRecord()
    return {
        "where": None if found is None else measured_on(result),
        "changed": result.changed,
        "note": proof.note,
        "weighted": found is not None and found.weighted,
        "gain": None if found is None else charts.gain(found.gain.estimate, found.gain.low, found.gain.high),
        "measures": [] if found is None else _measures(found),
        "folds": [_fold(fold, i) for i, fold in enumerate(proof.folds or (), 1)],
    }


def interval(accuracy: float, found: Comparison) -> tuple[float | None, float | None]:
    """Return Wilson's interval of an accuracy in percent; none where samples are weighted, grouped or not there."""
    from scipy.stats import binomtest

    samples = found.samples
    if not samples or found.weighted or found.groups is not None:
        return None, None
    right = min(max(round(accuracy * samples / 100), 0), samples)
    ends = binomtest(right, samples).proportion_ci(found.gain.level, method="wilson")
    return 100 * float(ends.low), 100 * float(ends.high)


def _measures(found: Comparison) -> list[dict[str, Any]]:
    named = (
        ("accuracy", "Accuracy", _alone(found), found.digits, 1),
        ("balanced_accuracy", "Balanced accuracy", "mean over classes", found.digits, 1),
        ("cross_entropy", "Cross-entropy", "in nats; lower is better", 4, -1),
        ("calibration_error", "Calibration error", "confidence against accuracy; lower is better", 4, -1),
    )
    rows = []
    for key, title, meaning, digits, better in named:
        old, new = getattr(found.before, key), getattr(found.after, key)
        if old is None and new is None:
            continue
        change = None if old is None or new is None else round(new, digits) - round(old, digits)
        write = decimal if better < 0 else percent
        tone = "" if not change else ("good" if change * better > 0 else "bad")
        row = {"title": title, "meaning": meaning, "before": write(old, digits), "after": write(new, digits)}
        shown = found.points if key == "accuracy" else signed(change, digits)
        rows.append(row | {"change": shown, "tone": tone})
    return rows


def _alone(found: Comparison) -> str:
    """Return the intervals of both accuracies, each for itself."""
    ends = [interval(side.accuracy, found) for side in (found.before, found.after)]
    texts = [f"{low:.{found.digits}f}–{high:.{found.digits}f}%" for low, high in ends if None not in (low, high)]
    return f"each alone ({found.gain.level:.0%}, Wilson): {', '.join(texts)}" if texts else ""


def _fold(fold: Fold, number: int) -> dict[str, Any]:
    used = [f"{stage} {spelled(strength)}" for stage, strength in fold.strengths.items() if strength is not None]
    return {
        "number": number,
        "samples": count(fold.samples),
        "before": percent(fold.before),
        "after": percent(fold.after),
        "used": ", ".join(used) or "no change",
    }


def class_name(names: Sequence[str] | None, index: int) -> str:
    """Return the name of a class, or its number if it has none."""
    return shortened(names[index]) if names and 0 <= index < len(names) else f"class {index}"


def classes(result: Result) -> dict[str, Any]:
    """Return the accuracy of every class, or of the classes that changed most if there are many."""
    found = () if result.comparison is None else result.comparison.per_class
    moved = {row.label: row.after - row.before for row in found if row.before is not None and row.after is not None}
    if len(found) <= MOST_CLASSES:
        groups = [("", list(found))]
    else:
        # With few samples, points alone would put chance first: answers won or lost count before them.
        order = sorted((r for r in found if r.label in moved), key=lambda r: (r.fixed - r.broken, moved[r.label]))
        lost = [row for row in order if moved[row.label] < 0][:FEW_CLASSES]
        won = [row for row in reversed(order) if moved[row.label] > 0][:FEW_CLASSES]
        groups = [("Lost most", lost), ("Gained most", won)]
    return {
        "total": len(found),
        "shown": sum(len(rows) for _, rows in groups),
        "unchanged": sum(change == 0 for change in moved.values()),
        "unseen": len(found) - len(moved),
        "groups": [(title, [_class(row, result.class_names) for row in rows]) for title, rows in groups],
    }


def _class(row: ClassChange, names: Sequence[str] | None) -> dict[str, Any]:
    ends = [None if value is None else min(max(value, 0), 100) for value in (row.before, row.after)]
    known = [end for end in ends if end is not None]
    change = None if row.before is None or row.after is None else round(row.after, 1) - round(row.before, 1)
    return {
        "name": class_name(names, row.label),
        "samples": plural(row.samples, "sample"),
        "before": percent(row.before),
        "after": percent(row.after),
        "dots": [(key, f"{end:.2f}") for key, end in zip(("before", "after"), ends, strict=True) if end is not None],
        "from": f"{min(known, default=0):.2f}",
        "length": f"{max(known, default=0) - min(known, default=0):.2f}",
        "change": signed(change),
        "tone": "" if not change else ("good" if change > 0 else "bad"),
        "flips": f"{count(row.fixed)} fixed, {count(row.broken)} broken",
    }


def confusion(result: Result) -> dict[str, Any]:
    """Return which labels got which answers, before and after: every pair, or of many classes those that changed."""
    found = result.comparison
    if found is None or found.confusion_before is None or found.confusion_after is None:
        size = 0 if found is None else found.classes
        missing = f"There is no table of {size:,} classes, which would have {size * size:,} cells."
        return {"missing": missing, "tables": [], "pairs": []}
    before, after = found.confusion_before, found.confusion_after
    names = [class_name(result.class_names, i) for i in range(found.classes)]
    small = found.classes <= LARGEST_TABLE
    return {
        "missing": None,
        "heads": names,
        "tables": [("Before", _shaded(before)), ("After", _shaded(after))] if small else [],
        "pairs": [] if small else _pairs(before, after, names),
    }


def _pairs(before: list[list[int]], after: list[list[int]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the wrong answers whose number changed most."""
    every = [(i, j, before[i][j], after[i][j]) for i in range(len(names)) for j in range(len(names)) if i != j]
    most = sorted((pair for pair in every if pair[2] != pair[3]), key=lambda pair: -abs(pair[3] - pair[2]))
    return [
        {
            "label": names[i],
            "answer": names[j],
            "before": count(old),
            "after": count(new),
            "change": signed(new - old, 0),
            "tone": "good" if new < old else "bad",
        }
        for i, j, old, new in most[:MOST_PAIRS]
    ]


def _shaded(rows: Sequence[Sequence[int]]) -> list[list[dict[str, Any]]]:
    """Return each cell with its text, and how dark it is by its share of the label."""
    return [
        [
            {"text": count(value), "shade": f"{100 * value / (sum(row) or 1):.0f}", "empty": not value, "right": i == j}
            for j, value in enumerate(row)
        ]
        for i, row in enumerate(rows)
    ]


def reliability(result: Result) -> dict[str, Any]:
    """Return the reliability diagrams before and after."""
    found = result.comparison
    if found is None:
        return {"charts": []}
    both = (
        ("Before", charts.BEFORE, found.before, found.reliability_before),
        ("After", charts.AFTER, found.after, found.reliability_after),
    )
    drawn = [
        (title, decimal(measures.calibration_error, 3), charts.reliability(bins, title, colour))
        for title, colour, measures, bins in both
        if bins and any(row.samples for row in bins)
    ]
    return {"charts": drawn}


def examples(result: Result) -> dict[str, Any]:
    """Return the samples that were fixed and broken, the surest wrong answers first."""
    found = result.comparison
    totals = {"broken": 0, "fixed": 0} if found is None else {"broken": found.broken, "fixed": found.fixed}
    groups = []
    for outcome, meaning, model in (
        ("broken", "correct before, wrong after", "corrected"),
        ("fixed", "wrong before, correct after", "original"),
    ):
        chosen = [example for example in result.examples or () if example.outcome == outcome]
        shown = [_example(example, result.class_names) for example in chosen[:MOST_EXAMPLES]]
        total = max(totals[outcome], len(chosen))
        which = f"all {count(total)}" if len(shown) == total else f"{len(shown)} of {count(total)}"
        order = f"{which.capitalize()}, the most confident wrong answers of the {model} model first."
        first, more = shown[:FIRST_EXAMPLES], shown[FIRST_EXAMPLES:]
        group = {"outcome": outcome, "meaning": meaning, "order": order, "total": total, "first": first, "more": more}
        groups.append(group)
    return {"groups": groups, "labelled": "label" if result.picked else "verified label"}


def _example(example: Example, names: Sequence[str] | None) -> dict[str, Any]:
    picture = example.image if example.image and PICTURE.fullmatch(example.image) else None
    return {
        "picture": picture,
        "small": picture is not None and _width(picture) <= SMALL_PICTURE,
        "text": None if example.text is None else _excerpt(example.text),
        "label": class_name(names, example.label),
        "answers": [
            ("before", class_name(names, example.before), share(example.confidence_before)),
            ("after", class_name(names, example.after), share(example.confidence_after)),
        ],
        "name": None if example.name is None else shortened(example.name),
        "index": example.index,
    }


def _excerpt(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT].rstrip()}…"


def _width(picture: str) -> int:
    """Return the width of a PNG in pixels; of anything else, more than any that is small."""
    head = base64.b64decode(picture.partition(",")[2][:32])
    return int.from_bytes(head[16:20], "big") if head[1:4] == b"PNG" else SMALL_PICTURE + 1

"""What the report shows of the proof: how much better, how sure, and where."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from verifix.evaluation.comparison import SECOND_LOOK, ClassChange, Comparison
from verifix.proof import Fold
from verifix.recipe.decision import spelled
from verifix.report import charts
from verifix.report.formatting import count, decimal, percent, plural, probability, share, shortened, signed
from verifix.report.result import Example, ProofRecord, Result
from verifix.report.verdict import caution, measured_on, preprocessing, verdict

MOST_CLASSES, FEW_CLASSES = 30, 12
"""Classes up to which all are shown, in order, and how many of the worst and best are shown otherwise."""

MOST_EXAMPLES = 20
"""Samples that are shown of each kind."""

LONGEST_TEXT = 400
"""Characters of a sample that is a text."""

SMALL_PICTURE = 48
"""Pixels up to which a picture is enlarged with sharp edges."""

PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")
"""The only kind of address that a picture may have: its own content."""

TONES = {"improved": "good", "harmful": "bad", "not proven": "warn"}

KINDS = {
    "nested": "Each outer fold was predicted by its own correction, made from the other folds alone, with its own "
    "strengths and stages. The figures describe this procedure. The model that is written comes from the same "
    "procedure on all samples.",
    "split": "One part of the verified samples was held out. The figures describe a correction made from the rest.",
    "test": "The figures describe the corrected model itself, on samples that were used for nothing else.",
}


def opening(result: Result) -> dict[str, Any]:
    """Return the verdict, the cautions and what became of the files."""
    head, _, rest = verdict(result).partition(": ")
    return {
        "tone": TONES[result.verdict] if result.verdict else "plain",
        "word": head,
        "sentence": rest,
        "caution": caution(result),
        "preprocessing": preprocessing(result),
        "remarks": [*_why(result), *_written(result)],
        "figures": _tiles(result.comparison),
    }


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
    told = f"The difference could be chance: p is {p}, and must be below {probability(found.threshold)}."
    needed = found.samples_needed
    more = f"If it is as large as estimated, about {count(needed)} verified samples in all would show it. {SECOND_LOOK}"
    return [told, more] if needed else [told]


def _written(result: Result) -> list[str]:
    if not result.out:
        return ["No corrected checkpoint was written."]
    forced = result.verdict != "improved"
    return [f"The corrected checkpoint is {result.out}{', although no gain was proven' if forced else ''}."]


def _tiles(found: Comparison | None) -> list[tuple[str, str, str]]:
    """Return the few figures that matter most: value, what it is, tone."""
    if found is None:
        return []
    return [
        (percent(found.before.accuracy), "right before", "before"),
        (percent(found.after.accuracy), "right after", "after"),
        (signed(found.gain.estimate), "gain, points", "plain"),
        (count(found.fixed), "samples fixed", "good"),
        (count(found.broken), "samples broken", "bad"),
    ]


def before_after(result: Result) -> dict[str, Any]:
    """Return the measures before and after, with intervals, and how they were made."""
    found, proof = result.comparison, result.proof or ProofRecord()
    return {
        "where": None if found is None else measured_on(result),
        "how": KINDS.get(proof.kind),
        "note": proof.note,
        "weighted": found is not None and found.weighted,
        "chart": None if found is None else _accuracies(found),
        "gain": None if found is None else charts.gain(found.gain.estimate, found.gain.low, found.gain.high),
        "measures": [] if found is None else _measures(found),
        "folds": [_fold(fold, i) for i, fold in enumerate(proof.folds or (), 1)],
    }


def _accuracies(found: Comparison) -> Markup:
    measures = (("Before", found.before.accuracy), ("After", found.after.accuracy))
    return charts.intervals([(title, accuracy, *interval(accuracy, found)) for title, accuracy in measures])


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
        ("accuracy", "Right", "", 1, 1),
        ("balanced_accuracy", "Right, mean over classes", "every class counts equally", 1, 1),
        ("cross_entropy", "Cross-entropy, nats", "lower is better", 4, -1),
        (
            "calibration_error",
            "Calibration error",
            "difference between confidence and accuracy; lower is better",
            4,
            -1,
        ),
    )
    rows = []
    for key, title, meaning, digits, better in named:
        old, new = getattr(found.before, key), getattr(found.after, key)
        if old is None and new is None:
            continue
        change = None if old is None or new is None else new - old
        write = percent if digits == 1 else decimal
        tone = "" if not change else ("good" if change * better > 0 else "bad")
        row = {"title": title, "meaning": meaning, "before": write(old), "after": write(new)}
        rows.append(row | {"change": signed(change, digits), "tone": tone})
    return rows


def _fold(fold: Fold, number: int) -> dict[str, Any]:
    kept = [f"{stage} {spelled(strength)}" for stage, strength in fold.strengths.items() if strength is not None]
    return {
        "number": number,
        "samples": count(fold.samples),
        "before": percent(fold.before),
        "after": percent(fold.after),
        "kept": ", ".join(kept) or "no change",
    }


def class_name(names: Sequence[str] | None, index: int) -> str:
    """Return the name of a class, or its number if it has none."""
    return shortened(names[index]) if names and 0 <= index < len(names) else f"class {index}"


def classes(result: Result) -> dict[str, Any]:
    """Return bars of every class, or of the classes that changed most if there are many."""
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
        "groups": [
            (title, [_class(row, moved.get(row.label), result.class_names) for row in rows]) for title, rows in groups
        ],
    }


def _class(row: ClassChange, change: float | None, names: Sequence[str] | None) -> dict[str, Any]:
    bars = (("before", row.before), ("after", row.after))
    return {
        "name": class_name(names, row.label),
        "samples": plural(row.samples, "sample"),
        "bars": [(key, percent(value), f"{min(max(value or 0, 0), 100):.2f}") for key, value in bars],
        "change": signed(change),
        "tone": "" if not change else ("good" if change > 0 else "bad"),
        "flips": f"{count(row.fixed)} fixed, {count(row.broken)} broken",
    }


def confusion(result: Result) -> dict[str, Any]:
    """Return the tables of labels and answers before, after and their difference, or why there are none."""
    found = result.comparison
    size = 0 if found is None else found.classes
    if size > MOST_CLASSES:
        missing = f"With {size:,} classes the table would have {size * size:,} cells, too many to read. "
        return {"missing": missing + "The classes that changed most are above.", "tables": []}
    if found is None or found.confusion_before is None or found.confusion_after is None:
        return {"missing": "No proof was made, so there is no table.", "tables": []}
    before, after = found.confusion_before, found.confusion_after
    heads = [class_name(result.class_names, i) for i in range(size)]
    difference = [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(before, after, strict=True)]
    tables = [
        ("Difference", "After minus before", _shaded(difference, difference=True)),
        ("Before", "Samples", _shaded(before)),
        ("After", "Samples", _shaded(after)),
    ]
    return {"missing": None, "tables": tables, "heads": heads, "plain": heads == [str(i) for i in range(size)]}


def _shaded(rows: Sequence[Sequence[int]], *, difference: bool = False) -> list[list[dict[str, Any]]]:
    """Return each cell with its text, how dark it is and whether it is good news."""
    most = max((abs(value) for row in rows for value in row), default=0) or 1
    table = []
    for i, row in enumerate(rows):
        whole = most if difference else (sum(row) or 1)
        table.append([_cell(value, whole, i == j, difference) for j, value in enumerate(row)])
    return table


def _cell(value: int, whole: int, diagonal: bool, difference: bool) -> dict[str, Any]:
    good = (value > 0) == diagonal if difference else diagonal
    return {
        "text": signed(value, 0) if difference else count(value),
        "shade": f"{100 * abs(value) / whole:.0f}",
        "tone": "after" if good else "before",
        "empty": not value,
        "diagonal": diagonal,
    }


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
    """Return the samples set right and broken, worst first."""
    found = result.comparison
    totals = {"broken": 0, "fixed": 0} if found is None else {"broken": found.broken, "fixed": found.fixed}
    groups = []
    for outcome, title in (("broken", "Samples broken"), ("fixed", "Samples fixed")):
        chosen = [example for example in result.examples or () if example.outcome == outcome]
        shown = [_example(example, result.class_names) for example in chosen[:MOST_EXAMPLES]]
        total = max(totals[outcome], len(chosen))
        groups.append({"title": title, "outcome": outcome, "shown": shown, "total": total})
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

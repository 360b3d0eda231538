"""What the report shows of the proof: how much better, how sure, and where."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from verifix.report import charts
from verifix.report.formatting import (
    caution,
    count,
    decimal,
    is_unverified,
    listed,
    part,
    percent,
    plural,
    probability,
    share,
    shortened,
    signed,
    strength,
    unseen,
    verdict,
)

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
    "nested": "Each outer fold was predicted by a correction of its own, made from the other folds alone, with its own "
    "strengths and stages. The figures are of that procedure, which makes the model that is written from all samples.",
    "split": "A part of the verified samples was set aside. The figures are of a correction made from the rest.",
    "test": "The figures are of the corrected model itself, on samples that were given for this alone.",
}


def opening(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the verdict, the cautions and what became of the files."""
    found = part(result, "proof", "comparison")
    tone = TONES.get(str(result.get("verdict")), "plain")
    head, _, rest = verdict(result).partition(": ")
    return {
        "tone": tone,
        "word": head,
        "sentence": rest,
        "caution": caution(result),
        "remarks": [*_why(result, found), *_written(result)],
        "figures": _tiles(found),
    }


def _why(result: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    limit = probability(found.get("threshold"))
    p = {key: probability(found.get(key)) for key in ("p_better", "p_worse")}
    needed = found.get("samples_needed")
    match result.get("verdict"):
        case "improved":
            return [f"By chance alone, a gain is rarely this clear: p is {p['p_better']} (one-sided, exact)."]
        case "harmful":
            return [f"By chance alone, a loss is rarely this clear: p is {p['p_worse']} (one-sided, exact)."]
        case "not proven":
            side = "p_worse" if (part(found, "gain").get("estimate") or 0) < 0 else "p_better"
            told = f"The difference could be chance: p is {p[side]}, and must be below {limit}."
            more = f"If it is as large as it looks, about {count(needed)} verified samples in all would show it."
            return [told, more] if needed else [told]
    return [str(part(result, "proof")["note"])] if part(result, "proof").get("note") else []


def _written(result: Mapping[str, Any]) -> list[str]:
    if not result.get("out"):
        return ["No corrected checkpoint was written."]
    forced = result.get("verdict") != "improved"
    return [f"The corrected checkpoint is {result['out']}{', though no gain was shown' if forced else ''}."]


def _tiles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the few figures that matter most: value, what it is, tone."""
    if not found:
        return []
    gain = part(found, "gain")
    return [
        (percent(part(found, "before").get("accuracy")), "right before", "before"),
        (percent(part(found, "after").get("accuracy")), "right after", "after"),
        (signed(gain.get("estimate")), "gain, points", "plain"),
        (count(found.get("fixed")), "samples set right", "good"),
        (count(found.get("broken")), "samples broken", "bad"),
    ]


def before_after(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measures before and after, with intervals, and how they were made."""
    found, proof = part(result, "proof", "comparison"), part(result, "proof")
    gain = part(found, "gain")
    drawn = None
    if gain.get("estimate") is not None:
        drawn = charts.gain(gain["estimate"], gain.get("low"), gain.get("high"))
    return {
        "where": unseen(result) if found else None,
        "how": KINDS.get(str(proof.get("kind"))),
        "note": proof.get("note"),
        "weighted": bool(found.get("weighted")),
        "chart": _accuracies(found),
        "gain": drawn,
        "measures": _measures(found),
        "folds": [_fold(fold, i) for i, fold in enumerate(listed(proof, "folds"), 1)],
    }


def _accuracies(found: Mapping[str, Any]) -> Markup | None:
    rows = []
    for key, title in (("before", "Before"), ("after", "After")):
        accuracy = part(found, key).get("accuracy")
        if accuracy is not None:
            rows.append((title, accuracy, *interval(accuracy, found)))
    return charts.intervals(rows) if len(rows) == 2 else None


def interval(accuracy: float, found: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return Wilson's interval of an accuracy in percent; none where samples are weighted or not counted."""
    from scipy.stats import binomtest

    samples = found.get("samples")
    if not samples or found.get("weighted"):
        return None, None
    level = part(found, "gain").get("level") or 0.95
    right = min(max(round(accuracy * samples / 100), 0), samples)
    ends = binomtest(right, samples).proportion_ci(level, method="wilson")
    return 100 * float(ends.low), 100 * float(ends.high)


def _measures(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    before, after = part(found, "before"), part(found, "after")
    named = (
        ("accuracy", "Right", "", 1, 1),
        ("balanced_accuracy", "Right, mean over classes", "every class counts the same", 1, 1),
        ("cross_entropy", "Cross-entropy, nats", "lower is better", 4, -1),
        ("calibration_error", "Calibration error", "how far confidence is from being right; lower is better", 4, -1),
    )
    rows = []
    for key, title, meaning, digits, better in named:
        old, new = before.get(key), after.get(key)
        change = None if old is None or new is None else new - old
        write = percent if digits == 1 else decimal
        tone = "" if not change else ("good" if change * better > 0 else "bad")
        row = {"title": title, "meaning": meaning, "before": write(old), "after": write(new)}
        rows.append(row | {"change": signed(change, digits), "tone": tone})
    return [row for row in rows if (row["before"], row["after"]) != (percent(None), percent(None))]


def _fold(fold: Mapping[str, Any], number: int) -> dict[str, Any]:
    kept = [f"{stage} {strength(value)}" for stage, value in part(fold, "strengths").items() if value is not None]
    return {
        "number": number,
        "samples": count(fold.get("samples")),
        "before": percent(fold.get("before")),
        "after": percent(fold.get("after")),
        "kept": ", ".join(kept) or "no change",
    }


def class_name(names: Sequence[Any] | None, index: Any) -> str:
    """Return the name of a class, or its number if it has none."""
    if names and isinstance(index, int) and 0 <= index < len(names):
        return shortened(str(names[index]))
    return "not known" if index is None else f"class {index}"


def classes(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return bars of every class, or of the classes that changed most if there are many."""
    found, names = listed(part(result, "proof", "comparison"), "per_class"), listed(result, "class_names")
    known = [row for row in found if row.get("before") is not None and row.get("after") is not None]
    if len(found) <= MOST_CLASSES:
        groups = [("", found)]
    else:
        order = sorted(known, key=_won)
        lost = [row for row in order if row["after"] < row["before"]][:FEW_CLASSES]
        won = [row for row in reversed(order) if row["after"] > row["before"]][:FEW_CLASSES]
        groups = [("Lost most", lost), ("Gained most", won)]
    return {
        "total": len(found),
        "shown": sum(len(rows) for _, rows in groups),
        "unchanged": sum(row["after"] == row["before"] for row in known),
        "unseen": len(found) - len(known),
        "groups": [(title, [_class(row, names) for row in rows]) for title, rows in groups],
    }


def _won(row: Mapping[str, Any]) -> tuple[float, float]:
    """Order classes by the answers won or lost: with few samples, points alone would put chance first."""
    return (row.get("fixed") or 0) - (row.get("broken") or 0), row["after"] - row["before"]


def _class(row: Mapping[str, Any], names: Sequence[Any]) -> dict[str, Any]:
    old, new = row.get("before"), row.get("after")
    change = None if old is None or new is None else new - old
    return {
        "name": class_name(names, row.get("class")),
        "samples": plural(row.get("samples") or 0, "sample"),
        "bars": [(key, percent(v), f"{min(max(v or 0, 0), 100):.2f}") for key, v in (("before", old), ("after", new))],
        "change": signed(change),
        "tone": "" if not change else ("good" if change > 0 else "bad"),
        "flips": f"{count(row.get('fixed'))} set right, {count(row.get('broken'))} broken",
    }


def confusion(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of labels and answers before, after and their difference, or why there are none."""
    found, names = part(result, "proof", "comparison"), listed(result, "class_names")
    before, after = listed(found, "confusion_before"), listed(found, "confusion_after")
    size = max(len(before), found.get("classes") or 0)
    if size > MOST_CLASSES:
        missing = f"With {size:,} classes the table would have {size * size:,} cells, too many to read. "
        return {"missing": missing + "The classes that changed most are above.", "tables": []}
    if not before or len(before) != len(after):
        return {"missing": "No proof was made, so that there is no table.", "tables": []}
    heads = [class_name(names, i) for i in range(size)]
    difference = [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(before, after, strict=True)]
    tables = [
        ("Difference", "After minus before", _shaded(difference, difference=True)),
        ("Before", "Samples", _shaded(before)),
        ("After", "Samples", _shaded(after)),
    ]
    return {"missing": None, "tables": tables, "heads": heads, "plain": heads == [str(i) for i in range(size)]}


def _shaded(rows: Sequence[Sequence[float]], *, difference: bool = False) -> list[list[dict[str, Any]]]:
    """Return each cell with its text, how dark it is and whether it is good news."""
    most = max((abs(value) for row in rows for value in row), default=0) or 1
    table = []
    for i, row in enumerate(rows):
        whole = most if difference else (sum(row) or 1)
        table.append([_cell(value, whole, i == j, difference) for j, value in enumerate(row)])
    return table


def _cell(value: float, whole: float, diagonal: bool, difference: bool) -> dict[str, Any]:
    good = (value > 0) == diagonal if difference else diagonal
    return {
        "text": signed(value, 0) if difference else count(value),
        "shade": f"{100 * abs(value) / whole:.0f}",
        "tone": "after" if good else "before",
        "empty": not value,
        "diagonal": diagonal,
    }


def reliability(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reliability diagrams before and after."""
    found = part(result, "proof", "comparison")
    drawn = []
    for key, title, colour in (("before", "Before", charts.BEFORE), ("after", "After", charts.AFTER)):
        bins = listed(found, f"reliability_{key}")
        if any(row.get("samples") for row in bins):
            error = decimal(part(found, key).get("calibration_error"), 3)
            drawn.append((title, error, charts.reliability(bins, title, colour)))
    return {"charts": drawn}


def examples(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the samples set right and broken, worst first."""
    given, names = listed(result, "examples"), listed(result, "class_names")
    found = part(result, "proof", "comparison")
    groups = []
    for outcome, title in (("broken", "Samples broken"), ("fixed", "Samples set right")):
        chosen = [example for example in given if example.get("outcome") == outcome]
        shown = [_example(example, names) for example in chosen[:MOST_EXAMPLES]]
        total = max(found.get(outcome) or 0, len(chosen))
        groups.append({"title": title, "outcome": outcome, "shown": shown, "total": total})
    return {"groups": groups, "labelled": "label" if is_unverified(result) else "verified label"}


def _example(example: Mapping[str, Any], names: Sequence[Any]) -> dict[str, Any]:
    picture, text = example.get("image"), example.get("text")
    picture = picture if isinstance(picture, str) and PICTURE.fullmatch(picture) else None
    answers = [
        (key, class_name(names, example.get(key)), share(example.get(f"confidence_{key}")))
        for key in ("before", "after")
    ]
    return {
        "picture": picture,
        "small": picture is not None and _width(picture) <= SMALL_PICTURE,
        "text": None if text is None else _excerpt(str(text)),
        "label": class_name(names, example.get("label")),
        "answers": answers,
        "name": None if example.get("name") is None else shortened(str(example["name"])),
        "index": example.get("index"),
    }


def _excerpt(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT].rstrip()}…"


def _width(picture: str) -> int:
    """Return the width of a PNG in pixels; of anything else, more than any that is small."""
    head = base64.b64decode(picture.partition(",")[2][:32])
    return int.from_bytes(head[16:20], "big") if head[1:4] == b"PNG" else SMALL_PICTURE + 1

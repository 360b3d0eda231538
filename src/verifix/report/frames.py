"""The figures behind a result as a table of pandas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import singledispatch
from typing import Any

import msgspec

from verifix.correction import Correction
from verifix.evaluation.comparison import Comparison
from verifix.evaluation.score import Score
from verifix.io.optional_imports import library
from verifix.losses import probabilities
from verifix.model.class_names import named
from verifix.proof import Proof
from verifix.recipe.decision import Point

Row = Mapping[str, Any]


def frame(result: Any) -> Any:
    """Return a result as a table; see `Presented.to_frame`."""
    pandas = library("pandas", "pandas", "notebook")
    return pandas.DataFrame(list(_rows(result)))


@singledispatch
def _rows(result: object) -> Iterable[Row]:
    raise TypeError(f"a {type(result).__name__} is no table")


@_rows.register
def _of_correction(correction: Correction) -> Iterator[Row]:
    """Yield the paths, then the strengths that each stage of the best one tried."""
    best = min((p.point.loss for p in correction.paths if p.point is not None), default=None)
    for path in correction.paths:
        if path.point is not None:
            taken = correction.changed and path.point.loss == best
            yield {"path": path.name, "stage": None} | _of_point(path.point, taken)
    for stage, choice in correction.choices.items():
        for point in choice.points:
            taken = choice.strength is not None and point.strength == choice.strength
            yield {"path": None, "stage": stage} | _of_point(point, taken)


def _of_point(point: Point, taken: bool) -> dict[str, Any]:
    return asdict(point) | {"taken": taken}


@_rows.register
def _of_proof(proof: Proof) -> Iterator[Row]:
    """Yield what became of each sample."""
    sides = {}
    for side, logits in (("before", proof.before), ("after", proof.after)):
        sides[side] = probabilities(logits).max(dim=1)
    for place, index in enumerate(proof.indices):
        row: dict[str, Any] = {"sample": index, "label": _class(int(proof.labels[place]), proof.class_names)}
        for side, found in sides.items():
            row[side] = _class(int(found.indices[place]), proof.class_names)
            row[f"confidence_{side}"] = float(found.values[place])
        right = row["before"] == row["label"], row["after"] == row["label"]
        row["outcome"] = {(False, True): "fixed", (True, False): "broken"}.get(right, "as before")
        yield row


@_rows.register
def _of_comparison(comparison: Comparison) -> Iterator[Row]:
    for row in comparison.per_class:
        yield msgspec.to_builtins(row) | {"class": _class(row.label, comparison.class_names)}


@_rows.register
def _of_score(score: Score) -> Iterator[Row]:
    for row in score.per_class:
        yield {"class": _class(row.label, score.class_names), "samples": row.samples, "accuracy": row.accuracy}


def _class(label: int, names: tuple[str, ...] | None) -> int | str:
    """Return a class's name, or its number where there is none."""
    return label if names is None else named(label, names)

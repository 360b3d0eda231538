"""What the report shows of the correction itself: how it was chosen, what it changed, what it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from verifix.recipe.candidates import Strength
from verifix.recipe.decision import Choice, Point, spelled
from verifix.recipe.outcome import LayerReport
from verifix.recipe.stages import projection_among
from verifix.report import charts
from verifix.report.formatting import count, day, decimal, percent, plural, share, shortened, signed, size, time
from verifix.report.result import Result, Spectrum

MOST_LAYERS, FIRST_LAYERS = 100, 8
"""Rows of the table of layers, of which those that changed most are shown, and how many of them at once."""

MOST_SPECTRA = 12
"""Spectra that are drawn: those of the layers that changed most."""

MOST_NAMES = 40
"""Parameters that are named for each reason to skip them."""


def curve(result: Result) -> dict[str, Any] | None:
    """Return the α curve of the projection; None if no strength of it was tried."""
    choice = result.choices.get(projection_among(result.choices) or "", Choice(None, (), "", note=None))
    points = [p for p in choice.points if p.strength is None or _single(p.strength)]
    if not any(p.strength is not None for p in points):
        return None
    return {
        "chosen": None if choice.strength is None else spelled(choice.strength),
        "charts": [_drawn(points, choice.strength, of) for of in ("loss", "score")],
    }


def _single(strength: Strength) -> bool:
    return not isinstance(strength, tuple) and strength > 0


def _drawn(points: Sequence[Point], chosen: Strength | None, of: str) -> tuple[str, Markup]:
    caption = {
        "loss": "Loss on held-out samples: lower is better.",
        "score": "Score (accuracy, unless another was given): higher is better.",
    }
    return caption[of], charts.curve(points, chosen, of)


def _points(points: Sequence[Point], chosen: Strength | None) -> list[dict[str, Any]]:
    return [
        {
            "title": spelled(point.strength),
            "chosen": "chosen" if point.strength == chosen else None,
            "loss": decimal(point.loss),
            "gain": "" if point.strength is None else signed(point.loss_gain, 4),
            "error": "" if point.strength is None else decimal(point.standard_error),
            "score": decimal(100 * point.score, 1),
        }
        for point in points
    ]


def paths(result: Result) -> dict[str, Any]:
    """Return the paths of stages that were tried to their end, and what was decided."""
    tried = [(path.name, path.point) for path in result.paths if path.point is not None]
    best = min((point.loss for _, point in tried), default=None)
    rows = [
        {
            "title": name,
            "chosen": "lowest loss" if point.loss == best and number > 0 else None,
            "loss": decimal(point.loss),
            "gain": signed(point.loss_gain, 4) if number else "",
            "error": decimal(point.standard_error) if number else "",
            "score": decimal(100 * point.score, 1),
        }
        for number, (name, point) in enumerate(tried)
    ]
    taken = result.reason and not result.reason.startswith("no change")
    return {"reason": f"Taken: {result.reason}" if taken else result.reason, "rows": rows}


def stages(result: Result) -> list[dict[str, Any]]:
    """Return what each stage added, and why it was used or not."""
    return [_stage(name, choice) for name, choice in result.choices.items()]


def _stage(name: str, choice: Choice) -> dict[str, Any]:
    used = choice.strength is not None
    by_strength = {point.strength: point for point in choice.points}
    best, base = by_strength.get(choice.strength) if used else None, by_strength.get(None)
    return {
        "name": name,
        "meaning": choice.about or None,
        "used": used,
        "strength": spelled(choice.strength) if used else None,
        "reason": choice.told,
        "gain": None if best is None else f"{signed(best.loss_gain, 4)} ± {decimal(best.standard_error)}",
        "score": signed(100 * (best.score - base.score)) if best and base else None,
        "points": _points(choice.points, choice.strength),
    }


def layers(result: Result) -> dict[str, Any]:
    """Return a table of the layers that were corrected or left unchanged; of many, those that changed most."""
    rows = [row for row in result.layers if row.status not in ("skipped", "unused")]
    order = sorted(range(len(rows)), key=lambda i: -_change(rows[i]))
    most = max(map(_change, rows), default=0.0) or 1.0
    first, more = (
        [_layer(rows[i], most, result.choices) for i in sorted(chosen)]
        for chosen in (order[:FIRST_LAYERS], order[FIRST_LAYERS:MOST_LAYERS])
    )
    return {"total": len(rows), "first": first, "more": more}


def _change(row: LayerReport) -> float:
    return row.relative_change or 0.0


def _layer(row: LayerReport, most: float, choices: Mapping[str, Choice]) -> dict[str, Any]:
    steps = [
        f"{stage} {', '.join(_number(*item) for item in choice.layers[row.parameter].items())}"
        for stage, choice in choices.items()
        if choice.strength is not None and choice.layers.get(row.parameter)
    ]
    return {
        "name": row.parameter,
        "status": "corrected" if row.status == "corrected" else "unchanged",
        "rank": decimal(row.effective_rank, 1),
        "change": percent(None if row.relative_change is None else 100 * row.relative_change),
        "bar": f"{100 * _change(row) / most:.1f}",
        "steps": "; ".join(steps),
    }


def _number(name: str, value: float) -> str:
    return f"{'α' if name == 'alpha' else name} {spelled(value)}"


def spectra(result: Result) -> dict[str, Any]:
    """Return the spectra of the layers that changed most."""
    given = result.spectra or {}
    found = {name: data for name, data in given.items() if any(r > 0 for r in data.eigenvalues)}
    changes = {row.parameter: _change(row) for row in result.layers}
    most = sorted(found, key=lambda name: -changes.get(name, 0))[:MOST_SPECTRA]
    return {"total": len(found), "charts": [_spectrum(name, found[name]) for name in found if name in most]}


def _spectrum(name: str, data: Spectrum) -> dict[str, Any]:
    values, alpha = data.eigenvalues, data.alpha
    if alpha is None:
        note = f"{plural(len(values), 'direction')}; the projection did not change this layer."
    else:
        above = charts.kept(values, alpha)
        of = f"{count(above)} of {plural(len(values), 'direction')}"
        note = f"α = {spelled(alpha)}: {of} have a weight of one half or more."
    return {"name": name, "chart": charts.spectrum(values, alpha, name), "note": note}


def skipped(result: Result) -> list[dict[str, Any]]:
    """Return the parameters that were left alone, by reason, the most frequent first."""
    reasons: dict[str, list[str]] = {}
    for row in result.layers:
        if row.status in ("skipped", "unused"):
            reason = row.reason or ("not used by the model" if row.status == "unused" else "no reason given")
            reasons.setdefault(reason, []).append(row.parameter)
    order = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return [
        {"reason": reason, "total": len(names), "names": names[:MOST_NAMES], "more": max(len(names) - MOST_NAMES, 0)}
        for reason, names in order
    ]


def cost(result: Result) -> str | None:
    """Say what the run took, in one sentence; None if that is not known."""
    steps = [(name, choice.seconds) for name, choice in result.choices.items()]
    steps += [] if result.proof is None else [("proof", result.proof.seconds)]
    parts = ", ".join(f"{name} {time(seconds)}" for name, seconds in steps if seconds is not None)
    whole = [] if result.seconds is None else [f"took {time(result.seconds)}"]
    whole += [] if result.memory_bytes is None else [f"held at most {size(result.memory_bytes)} of memory"]
    if not whole:
        return f"It took: {parts}." if parts else None
    return f"The run {' and '.join(whole)}{f' ({parts})' if parts else ''}."


def origin(result: Result) -> dict[str, Any]:
    """Return files with their hashes, versions, settings and the command."""
    return {
        "files": _files(result),
        "settings": [*result.libraries.items(), *_settings(result)],
        "command": result.command,
    }


def title(result: Result) -> dict[str, Any]:
    """Return what was corrected, from which samples, and when."""
    files = {role: file.path for role, file in (result.files or {}).items() if file is not None and file.path}
    kind, samples = ("picked" if result.picked else "verified"), result.provenance.samples
    data = files.get("verified") or files.get("trusted")
    facts = [("model", result.model or (result.architecture if "checkpoint" in files else None))]
    facts += [(f"{kind} samples", " in ".join(filter(None, (count(samples) if samples else None, data))) or None)]
    facts += [("test samples", files.get("test")), ("date", day(result.created))]
    return {
        "of": shortened(files.get("checkpoint") or result.model or result.architecture or "a model", 80),
        "facts": [(name, shortened(fact, 120)) for name, fact in facts if fact],
    }


def _files(result: Result) -> list[tuple[str, str, str]]:
    read, about = result.files or {}, result.provenance
    rows = [(role, file.path or "", file.sha256 or "") for role, file in read.items() if file is not None]
    in_memory = (("weights, in memory", about.model_sha256), ("samples, in memory", about.samples_sha256))
    rows += [(title, "", digest) for title, digest in in_memory if digest]
    written = (
        ("corrected checkpoint", result.out),
        ("correction", result.correction_file),
        ("moments", result.moments_file),
    )
    return rows + [(title, path, "") for title, path in written if path]


def _settings(result: Result) -> list[tuple[str, str]]:
    about = result.provenance
    settings = {"samples": about.samples, "verified_from": about.verified_from} | dict(about.settings)
    if result.seed is not None:
        settings.setdefault("seed", result.seed)
    rows = [(name.replace("_", " "), _setting(value)) for name, value in settings.items()]
    extra = (
        ("preprocessing", result.preprocessing),
        ("weights of the checkpoint", result.weights),
        ("stored as", result.weights_dtypes),
    )
    rows += [(title, _setting(value)) for title, value in extra if value]
    if result.unchanged_by_rounding is not None:
        rows.append(("entries that rounding left unchanged", share(result.unchanged_by_rounding)))
    return rows


def _setting(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_setting(inner)}" for key, inner in value.items()) or "none"
    return str(value)

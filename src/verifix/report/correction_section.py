"""What the report shows of the correction itself: how it was chosen, what it changed, what it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from verifix.recipe.stages import projection_among
from verifix.report import charts
from verifix.report.formatting import count, decimal, listed, part, percent, plural, share, signed, size, strength, time

MOST_LAYERS = 100
"""Rows of the table of layers; of more, those that changed most are shown."""

MOST_SPECTRA = 12
"""Spectra that are drawn: those of the layers that changed most."""

MOST_NAMES = 40
"""Parameters that are named for each reason to skip them."""

SELECTION = "These scores chose the strength, so that they overstate the gain. The proof above is what to believe."


def curve(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the α curve of the projection, or why there is none."""
    choice = part(result, "choices", projection_among(part(result, "choices")) or "")
    points = [p for p in listed(choice, "points") if _single(p.get("strength"))]
    chosen = choice.get("strength")
    shown = points if any(p.get("strength") is not None for p in points) else []
    return {
        "reason": choice.get("reason"),
        "chosen": None if chosen is None else strength(chosen),
        "charts": [_drawn(shown, chosen, of) for of in ("loss", "score")] if shown else [],
        "points": _points(shown, chosen),
        "note": choice.get("note") or SELECTION,
    }


def _single(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and value > 0)


def _drawn(points: Sequence[Mapping[str, Any]], chosen: float | None, of: str) -> tuple[str, Markup]:
    caption = {
        "loss": "Loss of held-out samples: lower is better. Bars: one paired standard error.",
        "score": "Share of held-out samples that are right. Bars: one paired standard error.",
    }
    return caption[of], charts.curve(points, chosen, of)


def _points(points: Sequence[Mapping[str, Any]], chosen: Any) -> list[dict[str, Any]]:
    rows = []
    for point in points:
        value, score = point.get("strength"), point.get("score")
        rows.append(
            {
                "strength": strength(value),
                "chosen": value == chosen,
                "loss": decimal(point.get("loss")),
                "gain": "" if value is None else signed(point.get("loss_gain"), 4),
                "error": "" if value is None else decimal(point.get("standard_error")),
                "score": decimal(None if score is None else 100 * score, 1),
            }
        )
    return rows


def stages(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each stage added, and why it was kept or left out."""
    return [_stage(name, part(result, "choices", name)) for name in part(result, "choices")]


def _stage(name: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    points, chosen = listed(choice, "points"), choice.get("strength")
    best: Mapping[str, Any] = next((p for p in points if p.get("strength") == chosen), {}) if chosen is not None else {}
    base: Mapping[str, Any] = next((p for p in points if p.get("strength") is None), {})
    known = best.get("score") is not None and base.get("score") is not None
    return {
        "name": name,
        "meaning": choice.get("about"),
        "kept": chosen is not None,
        "strength": strength(chosen),
        "reason": choice.get("reason") or "",
        "gain": signed(best.get("loss_gain"), 4),
        "error": decimal(best.get("standard_error")),
        "score": signed(100 * (best["score"] - base["score"])) if known else decimal(None),
        "time": time(choice.get("seconds")),
        "estimated": time(choice.get("estimated")),
        "points": _points(points, chosen),
    }


def layers(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of the layers that were corrected or kept; of many, those that changed most."""
    rows = [row for row in listed(result, "layers") if row.get("status") not in ("skipped", "unused")]
    chosen = rows
    if len(rows) > MOST_LAYERS:
        changed = sorted(rows, key=lambda row: -(row.get("relative_change") or 0))[:MOST_LAYERS]
        chosen = [row for row in rows if any(row is other for other in changed)]
    most = max((row.get("relative_change") or 0 for row in rows), default=0) or 1
    return {"total": len(rows), "rows": [_layer(row, most, result) for row in chosen]}


def _layer(row: Mapping[str, Any], most: float, result: Mapping[str, Any]) -> dict[str, Any]:
    name, change = str(row.get("parameter")), row.get("relative_change")
    steps = []
    for stage, choice in part(result, "choices").items():
        numbers = part(choice, "layers", name) if choice and choice.get("strength") is not None else {}
        if numbers:
            steps.append(f"{stage} {', '.join(_number(*item) for item in numbers.items())}")
    return {
        "name": name,
        "kind": row.get("kind") or "",
        "status": row.get("status") or "",
        "rows": count(row.get("rows")),
        "rank": decimal(row.get("effective_rank"), 1),
        "change": percent(None if change is None else 100 * change),
        "bar": f"{100 * (change or 0) / most:.1f}",
        "steps": "; ".join(steps),
    }


def _number(name: str, value: float | None) -> str:
    return f"{'α' if name == 'alpha' else name} {strength(value)}"


def spectra(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spectra of the layers that changed most."""
    found = {name: part(result, "spectra", name) for name in part(result, "spectra")}
    found = {name: data for name, data in found.items() if any(r and r > 0 for r in listed(data, "eigenvalues"))}
    changes = {row.get("parameter"): row.get("relative_change") or 0 for row in listed(result, "layers")}
    most = sorted(found, key=lambda name: -changes.get(name, 0))[:MOST_SPECTRA]
    return {"total": len(found), "charts": [_spectrum(name, found[name]) for name in found if name in most]}


def _spectrum(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    values, alpha = listed(data, "eigenvalues"), data.get("alpha")
    if alpha is None:
        note = f"{plural(len(values), 'direction')}; the projection did not change this layer."
    else:
        above = charts.kept(values, alpha)
        note = f"α = {strength(alpha)}: {count(above)} of {plural(len(values), 'direction')} keep half or more."
    return {"name": name, "chart": charts.spectrum(values, alpha, name), "note": note}


def skipped(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters that were left alone, by reason, the most frequent first."""
    reasons: dict[str, list[str]] = {}
    for row in listed(result, "layers"):
        if row.get("status") in ("skipped", "unused"):
            reason = row.get("reason") or ("not used by the model" if row["status"] == "unused" else "no reason given")
            reasons.setdefault(reason, []).append(str(row.get("parameter")))
    order = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return [
        {"reason": reason, "total": len(names), "names": names[:MOST_NAMES], "more": max(len(names) - MOST_NAMES, 0)}
        for reason, names in order
    ]


def cost(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what each step took, what it was expected to take, and the memory."""
    proof = part(result, "proof")
    rows = [
        (f"Stage {name}", time(choice.get("seconds")), time(choice.get("estimated")))
        for name, choice in ((name, part(result, "choices", name)) for name in part(result, "choices"))
        if choice.get("seconds") is not None
    ]
    if proof.get("seconds") is not None:
        rows.append((f"Proof, {proof.get('kind')}", time(proof["seconds"]), time(proof.get("estimated"))))
    if result.get("seconds") is not None:
        rows.append(("In all", time(result["seconds"]), time(None)))
    return {"rows": rows, "memory": None if result.get("memory_bytes") is None else size(result["memory_bytes"])}


def origin(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return files with their hashes, versions, settings, notes and the command."""
    about = part(result, "provenance")
    return {
        "files": _files(result),
        "versions": _versions(result),
        "settings": _settings(result),
        "notes": [str(note) for note in listed(result, "notes")],
        "command": result.get("command"),
        "absent": ", ".join(map(str, about.get("classes_without_samples") or [])),
        "correction_file": result.get("correction_file"),
    }


def _files(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    about = part(result, "provenance")
    rows = [
        (role, str(part(result, "files", role).get("path") or ""), str(part(result, "files", role).get("sha256") or ""))
        for role in part(result, "files")
    ]
    rows += [
        (title, "", str(about[key]))
        for key, title in (("model_sha256", "weights, in memory"), ("samples_sha256", "samples, in memory"))
        if about.get(key)
    ]
    known = {row[0] for row in rows}
    written = (("out", "corrected checkpoint"), ("correction_file", "correction"), ("moments_file", "moments"))
    return rows + [(title, str(result[key]), "") for key, title in written if result.get(key) and key not in known]


def _versions(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    about = part(result, "provenance")
    early = {name: about[name] for name in ("verifix", "torch") if about.get(name)}
    return [(name, str(version)) for name, version in (early | part(result, "versions")).items()]


def _settings(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown_elsewhere = {"verifix", "torch", "model_sha256", "samples_sha256", "classes_without_samples"}
    rows = [
        (name.replace("_", " "), _setting(value))
        for name, value in part(result, "provenance").items()
        if name not in shown_elsewhere
    ]
    if result.get("seed") is not None and "seed" not in part(result, "provenance"):
        rows.append(("seed", str(result["seed"])))
    extra = (("preprocessing", "preprocessing"), ("weights", "weights of the checkpoint"))
    rows += [(title, _setting(result[key])) for key, title in extra if result.get(key)]
    if result.get("weights_dtypes"):
        rows.append(("stored as", _setting(result["weights_dtypes"])))
    if result.get("unchanged_by_rounding") is not None:
        rows.append(("entries that rounding left unchanged", share(result["unchanged_by_rounding"])))
    return rows


def _setting(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_setting, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_setting(inner)}" for key, inner in value.items()) or "none"
    return str(value)

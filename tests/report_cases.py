"""Results to report on: realistic, small, huge and hostile ones, made by hand and without a model."""

from __future__ import annotations

import base64
import copy
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from verifix.report import render

SHA = "9f2b7c41d05e6a8893b1c7f0e24d5a6b71c8d9e0f1a2b3c4d5e6f708192a3b4c"

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>document.title='x'</script>",
    "<img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)" x="',
    "</style><style>body{display:none}</style>",
    "</title><h1>owned</h1>",
    "]]><svg onload=alert(1)>",
    "<!-- a comment -->",
    "--><b>bold</b>",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "&nbsp;&copy;&unknown;",
    "{{ 7 * 7 }}",
    "{% for x in range(9) %}x{% endfor %}",
    "{# a comment #}",
    "${7*7} #{7*7} <%= 7*7 %>",
    "javascript:alert(1)",
    "https://example.invalid/picture.png",
    "url(https://example.invalid/x.css)",
    "expression(alert(1));color:red",
    "red;background:url(//example.invalid/a)",
    "<svg><use href='https://example.invalid/#x'/></svg>",
    "<iframe src='https://example.invalid'></iframe>",
    "<base href='https://example.invalid/'>",
    "<meta http-equiv=refresh content='0;url=https://example.invalid'>",
    "<link rel=stylesheet href=//example.invalid/x.css>",
    "<form action=https://example.invalid><input name=q></form>",
    "data:text/html,<script>alert(1)</script>",
    "../../etc/passwd",
    "C:\\Users\\x\\n.png",
    "\u202egnp.exe",
    "\u2066a\u2069\u2069b\u200f",
    "שלום عالم",
    "🦊👩‍👩‍👧‍👦🏳️‍🌈",
    "é e\u0301 ﬁ Å",
    "\ufeffstart and \u2028 line",
    "$\\alpha_{1}^2$ \\frac{a}{b}",
    "a" * 255,
    "`code` **bold** [link](javascript:alert(1)) | cell",
]
"""Forty names of classes and files that a page must show as they are."""

UNSHOWABLE = {
    "a\x00b": "a␀b",
    "bell\x07": "bell␇",
    "bad\udcff.png": "bad\ufffd.png",
    "c1\x85": "c1\ufffd",
    "cr\r": "cr␍",
}
"""Names that no page can hold, and what stands for them."""


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def answers(labels: np.ndarray, right: float, seed: int, classes: int, confused: int = 3) -> np.ndarray:
    """Return probabilities ``[n, classes]`` of a network that answers this share right."""
    random = np.random.default_rng(seed)
    wrong = random.random(len(labels)) > right
    target = np.where(wrong, (labels + random.integers(1, confused + 1, len(labels))) % classes, labels)
    logits = random.normal(0, 1, (len(labels), classes))
    logits[np.arange(len(labels)), target] += random.uniform(3, 7, len(labels))
    answered = logits.argmax(1)
    logits[np.arange(len(labels)), answered] -= 1e-9
    return softmax(logits)


def comparison(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Compare two sets of probabilities, the slow way."""
    n, k = before.shape
    right = [before.argmax(1) == labels, after.argmax(1) == labels]
    fixed, broken = int((~right[0] & right[1]).sum()), int((right[0] & ~right[1]).sum())
    gains = 100 * (right[1].astype(float) - right[0].astype(float))
    resampled = np.random.default_rng(0).choice(gains, (2000, n)).mean(1)
    bins = [_bins(p, labels) for p in (before, after)]
    return {
        "samples": n,
        "classes": k,
        "weighted": False,
        "before": _measures(before, labels, bins[0]),
        "after": _measures(after, labels, bins[1]),
        "gain": {
            "estimate": float(gains.mean()),
            "low": float(np.quantile(resampled, 0.025)),
            "high": float(np.quantile(resampled, 0.975)),
            "level": 0.95,
        },
        "fixed": fixed,
        "broken": broken,
        "changed": int((before.argmax(1) != after.argmax(1)).sum()),
        "p_better": _chance(fixed, broken),
        "p_worse": _chance(broken, fixed),
        "threshold": 0.025,
        "verdict": "improved",
        "samples_needed": None,
        "per_class": [_class(c, labels, *right) for c in range(k)],
        "confusion_before": _confusion(before, labels) if k <= 100 else None,
        "confusion_after": _confusion(after, labels) if k <= 100 else None,
        "reliability_before": bins[0],
        "reliability_after": bins[1],
    }


def _chance(won: int, lost: int) -> float:
    from math import comb

    return sum(comb(won + lost, i) for i in range(won, won + lost + 1)) / 2 ** (won + lost)


def _measures(p: np.ndarray, labels: np.ndarray, bins: Sequence[dict[str, Any]]) -> dict[str, float]:
    right = p.argmax(1) == labels
    balanced = np.mean([right[labels == c].mean() for c in np.unique(labels)])
    return {
        "accuracy": 100 * float(right.mean()),
        "balanced_accuracy": 100 * float(balanced),
        "cross_entropy": float(-np.log(p[np.arange(len(p)), labels]).mean()),
        "calibration_error": sum(
            b["samples"] / len(p) * abs(b["accuracy"] - b["confidence"]) for b in bins if b["samples"]
        ),
    }


def _bins(p: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    sure, right = p.max(1), p.argmax(1) == labels
    rows = []
    for i in range(15):
        inside = (sure > i / 15) & (sure <= (i + 1) / 15)
        means = (float(sure[inside].mean()), float(right[inside].mean())) if inside.any() else (None, None)
        row = {"low": i / 15, "high": (i + 1) / 15, "samples": int(inside.sum())}
        rows.append(row | {"confidence": means[0], "accuracy": means[1]})
    return rows


def _class(c: int, labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    inside = labels == c
    if not inside.any():
        return {"class": c, "samples": 0, "before": None, "after": None, "fixed": 0, "broken": 0}
    return {
        "class": c,
        "samples": int(inside.sum()),
        "before": 100 * float(before[inside].mean()),
        "after": 100 * float(after[inside].mean()),
        "fixed": int((inside & ~before & after).sum()),
        "broken": int((inside & before & ~after).sum()),
    }


def _confusion(p: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    table = np.zeros((p.shape[1], p.shape[1]), dtype=int)
    np.add.at(table, (labels, p.argmax(1)), 1)
    return table.tolist()


def points(strengths: Sequence[Any], best: float, gain: float, seed: int = 0) -> list[dict[str, Any]]:
    """Return a curve that is lowest at the strength with index `best`."""
    random = np.random.default_rng(seed)
    rows = [dict.fromkeys(("loss_gain", "standard_error", "score_error"), 0.0)]
    rows[0] |= {"strength": None, "loss": 0.9212, "score": 0.78}
    for i, strength in enumerate(strengths):
        lower = gain * (1 - ((i - best) / len(strengths)) ** 2 * 3) + float(random.normal(0, 0.004))
        rows.append(
            {
                "strength": strength,
                "loss": 0.9212 - lower,
                "loss_gain": lower,
                "standard_error": 0.012 + 0.01 * abs(i - best),
                "score": 0.78 + 0.35 * lower,
                "score_error": 0.011,
            }
        )
    return rows


def _choice(strength: Any, rows: list[dict[str, Any]], reason: str, layers: Any, seconds: float) -> dict[str, Any]:
    return {
        "strength": strength,
        "reason": reason,
        "note": "selection score: it chose the strength, so it overstates the gain",
        "points": rows,
        "layers": layers,
        "estimated": 1.2 * seconds,
        "seconds": seconds,
    }


def picture(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def digits_result() -> dict[str, Any]:
    """Return what a correction of a network for handwritten digits could have given, with real digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = np.random.default_rng(1).permutation(len(data.target))[:200]
    labels = data.target[chosen]
    before, after = answers(labels, 0.79, 2, 10), answers(labels, 0.945, 3, 10)
    images = [picture(255 - 15.9 * image) for image in data.images[chosen]]
    names = [f"digits/{i:05d}.png" for i in chosen]
    found = comparison(labels, before, after)
    return about_digits(found) | {
        "proof": {
            "kind": "nested",
            "samples": 200,
            "estimated": 41.0,
            "seconds": 36.4,
            "note": "5 outer folds of 40 samples",
            "comparison": found,
            "folds": [
                {
                    "strengths": {"project": 316.2, "layerwise": 0.01, "refit": None},
                    "samples": 40,
                    "before": 77.5 + i,
                    "after": 92.5 + i,
                }
                for i in range(5)
            ],
        },
        "verdict": found["verdict"],
        "examples": examples(labels, before, after, names, images),
    }


def examples(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, names: Sequence[str], images: Sequence[str | None]
) -> list[dict[str, Any]]:
    rows = []
    for i, label in enumerate(labels):
        old, new = int(before[i].argmax()), int(after[i].argmax())
        if (old == label) == (new == label):
            continue
        rows.append(
            {
                "index": i,
                "name": names[i],
                "label": int(label),
                "before": old,
                "after": new,
                "confidence_before": float(before[i].max()),
                "confidence_after": float(after[i].max()),
                "outcome": "fixed" if new == label else "broken",
                "image": images[i],
                "text": None,
            }
        )
    return sorted(rows, key=lambda row: -max(row["confidence_before"], row["confidence_after"]))


def spectrum(size: int, decay: float) -> list[float]:
    values = np.exp(-decay * np.arange(size)) + 1e-7
    return (values / values.sum()).tolist()


def about_digits(found: dict[str, Any]) -> dict[str, Any]:
    """Return all that is not the proof."""
    parameters = {"0.weight": 64, "3.weight": 256, "6.weight": 256}
    alphas = [10.0, 100.0, 316.2, 562.3, 1000.0, 1e4, 1e5, 1e6]
    per_layer = {name: {"alpha": 100.0 * (i + 1), "gate": 0.9 - 0.2 * i} for i, name in enumerate(parameters)}
    corrected = [
        {
            "parameter": name,
            "kind": "linear",
            "status": "corrected",
            "reason": "",
            "rows": 200,
            "effective_rank": 6.2 + 3 * i,
            "relative_change": 0.31 + 0.11 * i,
        }
        for i, name in enumerate(parameters)
    ]
    skipped = [
        ("embedding.weight", "skipped", "used by embedding (looked up, row by row)"),
        ("mix.weight", "skipped", "used by mul (an elementwise scale, which is no matrix product)"),
        ("unused.weight", "unused", ""),
    ]
    left = [
        {"parameter": name, "kind": "", "status": status, "reason": reason, "rows": 0}
        for name, status, reason in skipped
    ]
    return {
        "schema": "verifix-result-1",
        "provenance": {
            "verifix": "0.1.0",
            "torch": "2.13.0+cpu",
            "model_sha256": SHA,
            "samples": 200,
            "samples_sha256": SHA[::-1],
            "earlier_moments": False,
            "alpha": "auto",
            "recipe": "auto",
            "folds": 5,
            "seed": 0,
            "verified_from": "unseen",
            "budget": None,
        },
        "unverified": False,
        "strengths": {"project": 316.2, "layerwise": 0.01, "refit": None, "finetune": [0.001, 30]},
        "choices": {
            "project": _choice(
                316.2,
                points(alphas, 2, 0.21),
                "strength 316.2 lowers the loss by 0.21 (standard error 0.0120), the score goes from 0.7800 to 0.8535",
                {name: {"alpha": 316.2} for name in parameters},
                2.31,
            ),
            "layerwise": _choice(
                0.01,
                points([0.001, 0.01, 0.1], 1, 0.09),
                "strength 0.01 lowers the loss by 0.0900 (standard error 0.0120), the score goes from 0.8535 to 0.8850",
                per_layer,
                6.9,
            ),
            "refit": _choice(
                None,
                points([0.1, 1.0, 10.0], 1, 0.006),
                "no change: strength 1 lowers the loss by 0.0060 (standard error 0.0120), which is not a clear gain",
                {},
                1.25,
            ),
            "finetune": _choice(
                [0.001, 30],
                points([[0.001, 10], [0.001, 30]], 1, 0.12),
                "strength 0.001 × 30 lowers the loss by 0.1200 (standard error 0.0120), the score goes from 0.8850 to "
                "0.9300 (standard error 0.0110)",
                {},
                11.8,
            ),
        },
        "layers": corrected + left,
        "changed": True,
        "out": "fixed.safetensors",
        "correction_file": "fixed.correction.safetensors",
        "preprocessing": "pixels from 0 to 1, 8 × 8, grey",
        "weights": "raw",
        "weights_dtypes": ["float32"],
        "unchanged_by_rounding": 0.0,
        "notes": ["The averaged weights of the checkpoint were not used."],
        "class_names": [str(i) for i in range(10)],
        "spectra": {
            name: {"eigenvalues": spectrum(size, 0.12 + 0.05 * i), "alpha": 316.2}
            for i, (name, size) in enumerate(parameters.items())
        },
        "files": {
            "checkpoint": {"path": "runs/2026-11-20/digits-mlp.safetensors", "sha256": SHA},
            "verified": {"path": "data/verified.parquet", "sha256": SHA[::-1]},
        },
        "command": "verifix correct --model py:net.py:build --checkpoint runs/2026-11-20/digits-mlp.safetensors "
        "--verified data/verified.parquet --verified-from unseen --drawn random --proof nested --out fixed.safetensors "
        "--report report.html",
        "memory_bytes": 1_310_000_000,
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6", "verifix": "0.1.0"},
        "seed": 0,
        "seconds": 61.7,
    }


def minimal_result() -> dict[str, Any]:
    """Return the least that the schema asks for: no proof, no change, nothing else known."""
    return {
        "schema": "verifix-result-1",
        "provenance": {"verified_from": "unseen", "samples": 60},
        "strengths": {"project": None},
        "choices": {"project": {"strength": None, "reason": "no change: no strength lowers the loss", "points": []}},
        "layers": [],
        "changed": False,
    }


def training_result() -> dict[str, Any]:
    """Return the digits' result if the samples had been those of the training: no verdict, and a caution."""
    result = digits_result()
    result["provenance"] |= {"verified_from": "training"}
    note = "The model was trained on these samples, so that nothing can be proved on them; give --test."
    return result | {"verdict": None, "proof": {"kind": "none", "samples": 200, "note": note, "comparison": None}}


def not_proven_result() -> dict[str, Any]:
    """Return the digits' result with a gain that could be chance."""
    result = digits_result()
    result["proof"]["comparison"] |= {"p_better": 0.084, "verdict": "not proven", "samples_needed": 1400}
    return result | {"verdict": "not proven", "out": None, "correction_file": None}


def text_result() -> dict[str, Any]:
    """Return a result on texts, of a binary classifier with one logit: two classes."""
    labels = np.arange(90) % 2
    before, after = answers(labels, 0.7, 4, 2, 1), answers(labels, 0.84, 5, 2, 1)
    found = comparison(labels, before, after)
    rows = examples(labels, before, after, [f"row {i}" for i in range(90)], [None] * 90)
    text = "The parcel came two days late, and the lid was broken.\nThe shop sent a new one at once, though. "
    for row in rows:
        row |= {"text": text * (1 + row["index"] % 9), "name": None}
    result = about_digits(found) | {"class_names": ["bad", "good"], "examples": rows, "verdict": "improved"}
    return result | {"proof": {"kind": "test", "samples": 90, "note": "", "comparison": found, "folds": []}}


def huge_result(classes: int = 1000, layers: int = 320) -> dict[str, Any]:
    """Return a result with many classes, layers, spectra and samples."""
    labels = np.random.default_rng(6).integers(0, classes, 3000)
    before, after = answers(labels, 0.7, 7, classes), answers(labels, 0.76, 8, classes)
    found = comparison(labels, before, after)
    names = [f"n{i:08d} a kind of thing, number {i}" for i in range(classes)]
    tile = picture(np.add.outer(np.arange(96), np.arange(128)))
    files = [f"val/{i:08d}.jpeg" for i in range(len(labels))]
    result = about_digits(found) | {"class_names": names, "verdict": "improved"}
    rows = [
        result["layers"][0] | {"parameter": f"blocks.{i}.attention.projection.weight", "relative_change": i / 400}
        for i in range(layers)
    ]
    left = [
        result["layers"][3] | {"parameter": f"blocks.{i}.norm.weight", "reason": f"reason {i % 3}"}
        for i in range(layers)
    ]
    spectra = {row["parameter"]: {"eigenvalues": spectrum(2048, 0.004), "alpha": 1e4} for row in rows[:20]}
    result |= {"layers": rows + left, "spectra": spectra}
    result["examples"] = examples(labels, before, after, files, [tile] * len(labels))
    return result | {"proof": {"kind": "nested", "samples": 3000, "note": "", "comparison": found, "folds": []}}


def hostile_result() -> dict[str, Any]:
    """Return the digits' result with forty hostile names in every place that takes one."""
    result = copy.deepcopy(digits_result())
    labels = np.arange(80) % len(HOSTILE)
    before, after = answers(labels, 0.5, 10, len(HOSTILE)), answers(labels, 0.5, 11, len(HOSTILE))
    found = comparison(labels, before, after)
    rows = examples(labels, before, after, [HOSTILE[i % 40] for i in range(80)], [None] * 80)
    outcomes = ("fixed", "broken")
    rows = [
        rows[i % len(rows)] | {"name": name, "text": name, "outcome": outcomes[i % 2]} for i, name in enumerate(HOSTILE)
    ]
    layer = result["layers"][0]
    return result | {
        "proof": result["proof"] | {"comparison": found, "note": HOSTILE[0]},
        "class_names": HOSTILE,
        "examples": rows,
        "layers": [layer | {"parameter": name, "kind": name} for name in HOSTILE]
        + [layer | {"parameter": name, "status": "skipped", "reason": name} for name in HOSTILE],
        "spectra": {HOSTILE[i]: result["spectra"]["0.weight"] for i in (0, 6, 30, 37)},
        "choices": {name: result["choices"]["project"] | {"reason": name} for name in HOSTILE},
        "files": {name: {"path": name, "sha256": name} for name in HOSTILE},
        "notes": HOSTILE,
        "out": HOSTILE[0],
        "correction_file": HOSTILE[1],
        "command": " ".join(HOSTILE),
        "preprocessing": HOSTILE[2],
        "versions": {"python": HOSTILE[3]},
        "warning": HOSTILE[4],
    }


CASES = {
    "digits": digits_result,
    "minimal": minimal_result,
    "training": training_result,
    "not proven": not_proven_result,
    "texts": text_result,
    "huge": huge_result,
    "hostile": hostile_result,
}


@functools.cache
def page(name: str) -> str:
    """Return the report of a case; made once for all tests."""
    return render(CASES[name]())

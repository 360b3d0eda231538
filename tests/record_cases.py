"""Files of verified records, as `verifix review` writes them, made by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

TIME = "2026-01-01T00:00:00Z"


def fingerprint(names, labels) -> str:
    """The hash of the names and labels of a data set's samples, written out."""
    lines = [f"{name or ''}\0{label}\n" for name, label in zip(names, labels, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def header(data: Path, names, labels, classes, **more) -> dict:
    options = {"classes": classes, "labels": True, "texts": False} | more.pop("options", {})
    return {
        "format": "verifix-verified-1",
        "data": str(data),
        "classes": classes if classes is not None else [str(i) for i in range(max(labels) + 1)],
        "length": len(labels),
        "fingerprint": fingerprint(names, labels),
        "strategy": "uncertain",
        "seed": 0,
        "options": options,
        "random": [],
        "probability": None,
        "earlier": [],
    } | more


def record(number: int, given, verified=None, status: str | None = None, annotator: str = "ada") -> dict:
    status = status or ("ok" if verified in (None, given) else "relabel")
    return {
        "id": number,
        "file": None,
        "label": given,
        "verified": verified if verified is not None or status != "ok" else given,
        "status": status,
        "annotator": annotator,
        "time": TIME,
    }


def write(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path

"""`result.json`: everything that is known about a correction, as plain data with a version."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from verifix.errors import UsageError
from verifix.storage.atomic import write_atomically

SCHEMA = "verifix-result-1"
"""Version of the format; `schema` has its definition, docs/report.md what a change of it means."""


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of `SCHEMA`."""
    data: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
    return data


def plain(result: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a result into what JSON can hold, and put the version of its format in front.

    Parameters
    ----------
    result
        What `verifix correct` has found, from memory or read from a file.

    Returns
    -------
    dict
        The same content: tuples are lists, paths texts, scalars and arrays of NumPy and torch Python's own; a number
        that is not finite is None, because JSON has no word for it.

    Raises
    ------
    UsageError
        If it is of another format, or holds something that is not data.
    """
    version = result.get("schema", SCHEMA)
    if version != SCHEMA:
        raise UsageError(f"the result has the schema {version!r}; this version of verifix reads {SCHEMA!r}")
    return {"schema": SCHEMA, **{str(key): plain_data(value, str(key)) for key, value in result.items()}}


def plain_data(value: Any, place: str) -> Any:
    """Turn anything that is data into what JSON can hold; see `plain`. `place` names it in an error message."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain_data(inner, f"{place}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(inner, place) for inner in value]
    if hasattr(value, "tolist"):
        return plain_data(value.tolist(), place)
    if isinstance(value, Path):
        return str(value)
    raise UsageError(f"{place} of the result is a {type(value).__name__}; it must be plain data, as JSON has it")


def as_json(result: Mapping[str, Any]) -> str:
    """Return a result as the text of `result.json`; the same content in the same order gives the same text."""
    return json.dumps(plain(result), indent=1, allow_nan=False) + "\n"


def write_result(path: str | Path, result: Mapping[str, Any], force: bool = False) -> Path:
    """Write `result.json`.

    Parameters
    ----------
    path
        Where to.
    result
        What `verifix correct` has found.
    force
        Replace a file that exists.

    Returns
    -------
    Path
        The path.
    """
    return write_text(path, as_json(result), force)


def write_text(path: str | Path, text: str, force: bool = False) -> Path:
    """Write a text in UTF-8, atomically and with its own line ends; see `write_atomically`."""
    return write_atomically(path, partial(fill_text, text=text), force=force)


def fill_text(path: Path, text: str) -> None:
    """Put a text into a file that another function makes, in UTF-8 and with its own line ends."""
    path.write_bytes(text.encode())

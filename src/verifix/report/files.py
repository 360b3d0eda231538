"""A result in files: `result.json`, read and written, and its JSON schema."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from verifix.errors import UsageError
from verifix.report.result import SCHEMA, Result, gathered, held
from verifix.storage.atomic import write_atomically


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of `SCHEMA`, made from `Result` and the docstrings of its parts."""
    _, parts = msgspec.json.schema_components((Result,))
    for part in parts.values():
        _describe(part)
    del parts["Provenance"]["properties"]["settings"]  # they stand beside the other keys
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA,
        **parts.pop("Result"),
        "$defs": parts,
    }


def _describe(part: dict[str, Any]) -> None:
    """Put what a class says of itself and of its attributes in the places that a JSON schema has for it."""
    import docstring_parser

    said = docstring_parser.parse(part["description"])
    part["description"] = " ".join(filter(None, (said.short_description, said.long_description)))
    for about in said.params:
        for name in about.arg_name.split(", "):
            key = "class" if name == "label" and "class" in part["properties"] else name
            part["properties"][key]["description"] = " ".join((about.description or "").split())


def as_result(result: Result | Mapping[str, Any]) -> Result:
    """Return a result as a typed object.

    Parameters
    ----------
    result
        The object, or the content of a `result.json`; keys that this version does not know are left out.

    Returns
    -------
    Result
        The result.

    Raises
    ------
    UsageError
        If it is of another format, or a part of it is missing or of another type.
    """
    if isinstance(result, Result):
        return result
    data = plain(result)
    if isinstance(data.get("provenance"), dict):
        data["provenance"] = gathered(data["provenance"])
    try:
        return msgspec.convert(data, Result)
    except msgspec.ValidationError as error:
        raise UsageError(f"the result is not {SCHEMA!r}: {error}; give what 'verifix correct --result' wrote") from None


def read_result(path: str | Path) -> Result:
    """Read a `result.json`.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Result
        What `verifix correct` has found.

    Raises
    ------
    UsageError
        If the file cannot be read, or is something else.
    """
    try:
        data = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error}); give what 'verifix correct --result' wrote") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds no JSON object; give what 'verifix correct --result' wrote")
    return as_result(data)


def plain(result: Result | Mapping[str, Any]) -> dict[str, Any]:
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
    content: Mapping[str, Any] = held(result) if isinstance(result, Result) else result
    version = content.get("schema", SCHEMA)
    if version != SCHEMA:
        raise UsageError(f"the result has the schema {version!r}; this version of verifix reads {SCHEMA!r}")
    return {"schema": SCHEMA, **{str(key): plain_data(value, str(key)) for key, value in content.items()}}


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
    return plain_data(_content(value, place), place)


def _content(value: Any, place: str) -> Any:
    """Return what an object holds that is data but not as JSON has it."""
    if hasattr(value, "as_dict"):
        return value.as_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return held(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise UsageError(f"{place} of the result is a {type(value).__name__}; it must be plain data that JSON can hold")


def as_json(result: Result | Mapping[str, Any]) -> str:
    """Return a result as the text of `result.json`; the same content in the same order gives the same text."""
    return json.dumps(plain(result), indent=1, allow_nan=False) + "\n"


def write_result(path: str | Path, result: Result | Mapping[str, Any], force: bool = False) -> Path:
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

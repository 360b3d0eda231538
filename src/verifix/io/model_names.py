"""What somebody may have meant by the name of a model that leads to none."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from pathlib import Path

from verifix.errors import did_you_mean, first_of

WEIGHTS = (".safetensors", ".pt", ".pth", ".tar", ".bin", ".ckpt")
"""How checkpoints end."""


def meant(name: str, schemes: Iterable[str]) -> str:
    """Return what to give instead, as the end of a message; empty if nothing suggests itself.

    Parameters
    ----------
    name
        The name as it was given.
    schemes
        What may stand before the colon.

    Returns
    -------
    str
        After a semicolon.
    """
    path, (scheme, colon, rest) = Path(name), name.partition(":")
    if path.is_dir():
        return _of_folder(name, path)
    if path.suffix == ".py" and path.is_file():
        return f"; give py:{name}:FACTORY{_functions(path)}"
    if path.suffix.lower() in WEIGHTS:
        return "; that is the name of weights: give these with --checkpoint, and the model that they are for here"
    if colon and rest:
        return did_you_mean(scheme, schemes)
    return f"; did you mean timm:{name} or torchvision:{name}?" if name.isidentifier() else ""


def _of_folder(name: str, path: Path) -> str:
    """Tell a folder of transformers from one of timm by its config.json."""
    here = name if path.is_absolute() or name.startswith(".") else f"./{name}"
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    known = config if isinstance(config, dict) else {}
    scheme = "local-dir" if "architecture" in known and "architectures" not in known else "hf"
    return f"; did you mean {scheme}:{here}?"


def _functions(path: Path) -> str:
    """Name the functions of a file, of which one may build the model; the file is not run."""
    try:
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return ""
    names = [n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
    return f" (it has {first_of(names, 5)})" if names else ""

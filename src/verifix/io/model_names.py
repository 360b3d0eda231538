"""Names of models: their forms, and what somebody may have meant by one that has none. Importable before torch."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from verifix.errors import UsageError, did_you_mean, first_of

SCHEMES = ("py", "torchvision", "timm", "hf", "hf-hub", "local-dir")
"""What stands before the first colon."""

FORMS = "py:FILE_OR_MODULE:FACTORY, torchvision:NAME, timm:NAME, hf:DIR, hf-hub:ORG/NAME or local-dir:DIR"

WEIGHTS = (".safetensors", ".pt", ".pth", ".tar", ".bin", ".ckpt")
"""How checkpoints end."""


def check_name(name: str) -> None:
    """Refuse the name of a model that has none of the `FORMS`; says what may have been meant."""
    scheme, _, rest = name.partition(":")
    if scheme not in SCHEMES or not rest:
        raise UsageError(f"model is {name!r}; it must be {FORMS}{_meant(name)}")


def _meant(name: str) -> str:
    """Return what to give instead, as the end of a message; empty if nothing suggests itself."""
    path, (scheme, colon, rest) = Path(name), name.partition(":")
    if path.is_dir():
        return _of_folder(name, path)
    if path.suffix == ".py" and path.is_file():
        return f"; give py:{name}:FACTORY{_functions(path)}"
    if path.suffix.lower() in WEIGHTS:
        return "; that is the name of weights: give these with --checkpoint, and the model that they are for here"
    if colon and rest:
        return did_you_mean(scheme, SCHEMES)
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

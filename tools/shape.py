"""Print the shape of the source: how many modules and packages, how long functions and files are.

``python tools/shape.py [FOLDER]`` measures ``src/verifix``, or another folder such as that of an earlier checkout.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "verifix"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the lines of every docstring, also of those below constants."""
    found: set[int] = set()
    for node in ast.walk(tree):
        for inner in getattr(node, "body", []) if isinstance(node, DOCUMENTED) else []:
            if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant):
                found.update(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1))
    return found


def code_lines(text: str) -> int:
    """Count the lines that are neither blank nor comment nor docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(text)))


def function_bodies(tree: ast.Module) -> list[int]:
    """Return the length in lines of every function's body, its docstring not counted."""
    lengths = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lengths.append((body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0)
    return lengths


def shape(folder: Path) -> dict[str, float]:
    """Return the figures of a folder of source files.

    Parameters
    ----------
    folder
        The package's folder.

    Returns
    -------
    dict
        Counts, and lengths in lines, by name.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    bodies = [length for text in texts.values() for length in function_bodies(ast.parse(text))]
    return {
        "modules at the root": sum(path.parent == folder for path in texts),
        "packages": len({path.parent for path in texts if path.parent.parent == folder}),
        "modules": len(texts),
        "lines of code": sum(map(code_lines, texts.values())),
        "lines of the longest file": max(text.count("\n") for text in texts.values()),
        "lines of the longest function body": max(bodies),
        "median lines of a function body": statistics.median(bodies),
    }


if __name__ == "__main__":
    for name, value in shape(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE).items():
        print(f"{value:8g}  {name}")

"""Write docs/settings.md, the page of all settings, from where they are declared.

``python tools/settings.py`` writes the page; a test checks that it is up to date.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from verifix.cli.options import COMMANDS
from verifix.evaluation.runs import RunArguments
from verifix.inspection import CollectArguments, InspectArguments
from verifix.options import CollectOptions, CorrectArguments, CorrectOptions, LayerOptions, RunOptions
from verifix.proof import ProveArguments
from verifix.selection.options import SelectOptions
from verifix.selection.select import SelectArguments
from verifix.selection.trusted import TrustArguments
from verifix.settings import HEADINGS, declarations

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"

TAKERS: dict[str, tuple[type[Any], type[Any]]] = {
    "Python: correct": (CorrectArguments, CorrectOptions),
    "Python: prove": (ProveArguments, CorrectOptions),
    "Python: inspect": (InspectArguments, LayerOptions),
    "Python: collect_moments": (CollectArguments, CollectOptions),
    "Python: score": (RunArguments, RunOptions),
    "Python: trust": (TrustArguments, RunOptions),
    "Python: select": (SelectArguments, SelectOptions),
    **{name: (COMMANDS[name], COMMANDS[name]) for name in COMMANDS},
}
"""Calls and commands, with the class of what they take, and that of what stands under a heading of the help."""

HEAD = """# Settings

<!-- tools/settings.py writes this page from the declarations in the source. -->

Every setting is declared once and means the same wherever it is taken. A setting `batch_size` is the keyword argument
`batch_size` in Python, the flag `--batch-size` on the command line, and the key `batch_size` in a YAML file that is
given with `--config`. A setting that is on by default is turned off with `--no-…` on the command line and with `false`
in a file. Lists are written `a,b,c` on the command line and `[a, b, c]` in a file.
"""


def page() -> str:
    """Return the page as Markdown."""
    sections: dict[str, dict[tuple[str, ...], list[str]]] = {heading: {} for heading in (*HEADINGS, "Python only")}
    for taker, (settings, headed) in TAKERS.items():
        headings = _headings(headed)
        for row in _rows(settings):
            sections[headings.get(row[0], "Python only")].setdefault(row, []).append(taker)
    parts = [HEAD]
    for heading, rows in sections.items():
        parts += [f"## {heading}\n", *(_entry(row, takers) for row, takers in rows.items())]
    return "\n".join(parts)


def _headings(settings: type[Any]) -> dict[str, str]:
    """Return the heading that each setting stands under in the help, by name."""
    kinds = get_type_hints(settings, include_extras=True)
    return {
        name: heading
        for name, kind in kinds.items()
        for heading, parameter in HEADINGS.items()
        if parameter in getattr(kind, "__metadata__", ())
    }


def _rows(settings: type[Any]) -> Iterator[tuple[str, ...]]:
    """Yield name, type, default and description of each setting."""
    declared = declarations(settings)
    for name, each in inspect.signature(settings).parameters.items():
        kind, text = declared[name]
        yield name, kind, "" if each.default in ("", None, each.empty) else repr(each.default), text


def _entry(row: tuple[str, ...], takers: list[str]) -> str:
    name, kind, default, text = row
    python = ", ".join(taker.removeprefix("Python: ") for taker in takers if taker.startswith("Python"))
    commands = ", ".join(taker for taker in takers if not taker.startswith("Python"))
    about = [f"`{kind}`", f"default `{default}`" if default else "", f"Python: {python}" if python else ""]
    about.append(f"commands: {commands}" if commands else "")
    return f"- **`{name}`**: {'; '.join(filter(None, about))}.\n{_filled(text)}\n"


def _filled(text: str) -> str:
    return textwrap.indent(textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False), "  ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

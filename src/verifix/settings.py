"""What a setting is, and how it reaches the Python calls (`takes`), the command line and docs/settings.md.

No torch here: the command line reads the settings for its help.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import fields
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from cyclopts import Group, Parameter, Token

from verifix.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

P = ParamSpec("P")
S = TypeVar("S")
R = TypeVar("R")

HEADINGS = {
    heading: Parameter(group=Group.create_ordered(heading))
    for heading in ("Main options", "Model", "Data", "Correction", "Proof", "Output", "Computing")
}
"""Headings of the help, in its order: what people need first, then the rest by topic."""

MAIN, MODEL, DATA, CORRECTION, PROOF, OUTPUT, COMPUTING = HEADINGS.values()


class Role(Enum):
    """What the command line does with the paths in a setting; stands beside the heading in a declaration."""

    READS = "a file or folder"
    READS_MODEL = "a model"
    READS_DATA = "samples"
    READS_LIST = "a list, or a file of one"
    WRITES = "a file or folder to write"


READS, READS_MODEL, READS_DATA, READS_LIST, WRITES = Role


class Settings:
    """Base of all settings: each class checks its own fields when an object is made."""

    def __post_init__(self) -> None:
        """Check the fields; a class calls that of its bases first. Single numbers of NumPy or torch become Python's."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        self.settle(**{name: value.item() for name, value in given.items() if getattr(value, "shape", None) == ()})

    def settle(self, **values: Any) -> None:
        """Put values in their final form, while the object is being made."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a value that is not allowed.

    Parameters
    ----------
    ok
        Whether it is.
    name, value
        The setting, and what it was given.
    allowed
        What may be given, to complete "it must be".

    Raises
    ------
    UsageError
        If it is not.
    """
    if not ok:
        near = did_you_mean(value, re.findall(r"'([^']+)'", allowed)) if isinstance(value, str) else ""
        raise UsageError(f"{name} is {value!r}; it must be {allowed}{near}")


def whole(value: object, least: int = 0) -> bool:
    """Whether a value is a whole number, which True and False are not, and not below the least one."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def one_of(value: object, *allowed: str | None) -> bool:
    """Whether a value is one of some texts or None; an array is none, and must not be compared with them."""
    return (value is None or isinstance(value, str)) and value in allowed


def split_list(value: Sequence[str] | str) -> list[str]:
    """Split a text at its commas; a list stays as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)


def text_or_list(_: object, tokens: Sequence[Token]) -> str | list[str]:
    """Return the text with commas that the command line gave last, and a list in a file of settings as a list."""
    values = [token.value for token in tokens]
    return values[-1] if len(values) == 1 or tokens[0].source == "cli" else values


AS_TEXT = Parameter(converter=text_or_list, allow_leading_hyphen=True)
"""For a list that may be given as a text, which its class reads."""

AS_LIST = Parameter(converter=lambda hint, tokens: split_list(text_or_list(hint, tokens)))
"""For a list of texts, which commas separate on the command line."""

AS_WORDS = Parameter(consume_multiple=True)
"""For a list of words, which spaces separate on the command line."""

SWITCH = Parameter(negative="", show_default=False)
"""For what is off unless it is asked for."""

NEEDED = Parameter(show_default=False)
"""For what has no default, but is checked later, because not every command needs it."""


def takes(
    settings: Callable[P, S],
) -> Callable[[Callable[[nn.Module, Any, S], R]], Callable[Concatenate[nn.Module, Any, P], R]]:
    """Let a call take settings as keyword arguments, as they are declared: for editors, type checkers and `help`.

    Parameters
    ----------
    settings
        The class of the settings.

    Returns
    -------
    Callable
        A decorator. It turns a function of a model, samples and settings into one of a model, samples and keyword
        arguments; the entry "settings" of its docstring gives way to their descriptions.
    """

    def decorate(function: Callable[[nn.Module, Any, S], R]) -> Callable[Concatenate[nn.Module, Any, P], R]:
        *given, _ = inspect.signature(function).parameters.values()
        found = declarations(settings)  # type: ignore[arg-type]  # it is a class
        named = [p.replace(annotation=found[name][0]) for name, p in inspect.signature(settings).parameters.items()]
        signature = inspect.Signature([*given, *named])

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> R:
            arguments = signature.bind(*args, **kwargs).arguments
            return function(*(arguments.pop(each.name) for each in given), settings(**arguments))  # type: ignore[call-arg]

        call.__signature__ = signature  # type: ignore[attr-defined]
        entries = "".join(f"{name}\n{_indented(text)}\n" for name, (_, text) in found.items())
        call.__doc__ = re.sub(r"(?m)^settings\n(?: +.*\n)+", lambda _: entries, inspect.getdoc(function) or "")
        return call

    return decorate


def declarations(settings: type[Any]) -> dict[str, tuple[str, str]]:
    """Return the type and the description of each setting of a class, as they stand in the source, if it is there.

    Parameters
    ----------
    settings
        The class.

    Returns
    -------
    dict
        By name: the type, and the text below the declaration, in one line.
    """
    found = {field.name: (str(field.type), "") for field in fields(settings)}
    for cls in reversed(settings.__mro__):
        for entry, text in pairwise(_classes(cls.__module__).get(cls.__name__, ())):
            if isinstance(entry, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                kind = entry.annotation
                if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Annotated":
                    kind = kind.slice.elts[0]  # type: ignore[attr-defined]
                found[ast.unparse(entry.target)] = ast.unparse(kind), " ".join(str(text.value.value).split())
    return found


@functools.cache
def _classes(module: str) -> dict[str, list[ast.stmt]]:
    """Return what stands in each class of a module; nothing if its source is not there."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError):
        return {}
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def _indented(text: str) -> str:
    return textwrap.indent(textwrap.fill(text, 112), "    ")

"""Settings as keyword arguments of a call, with the types and descriptions that stand in their source."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from torch import nn

P = ParamSpec("P")
S = TypeVar("S")
R = TypeVar("R")


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

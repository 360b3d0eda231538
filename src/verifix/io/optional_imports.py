"""Libraries that an extra installs, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from verifix.errors import UsageError


def library(module: str, package: str, extra: str = "vision") -> Any:
    """Import a library.

    Parameters
    ----------
    module
        The module.
    package
        What it is called when installed.
    extra
        The extra of verifix that installs it.

    Returns
    -------
    module
        The module.

    Raises
    ------
    UsageError
        If it cannot be imported; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, AttributeError) as error:
        raise UsageError(
            f"{package} cannot be imported ({reason(error)}); install it with: pip install 'verifix[{extra}]'"
        ) from None


def reason(error: BaseException) -> str:
    """Say in one line what went wrong at the bottom of a chain of errors.

    Parameters
    ----------
    error
        The error.

    Returns
    -------
    str
        Its kind and the first line of its message.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

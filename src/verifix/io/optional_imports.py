"""Libraries that an extra installs, imported when they are needed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from verifix.errors import UsageError

OTHER_BUILD = (
    "torchvision::",
    "partially initialized module 'torchvision'",
    "torchvision were compiled with different cuda",
    "torchvision has cuda version",
    "torchvision/_c",
)
"""What errors of a torchvision that was built for another torch have in them, in small letters."""

REINSTALL = "pip install --force-reinstall"

FIRST_MINOR = 15
"""The minor version of torchvision that came with torch 2.0."""


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
        If it cannot be imported; says what to install.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        install = f"install it with: pip install 'verifix[{extra}]'"
        if not isinstance(error, ImportError) and _version(package):
            install = f"version {_version(package)} of it is installed; reinstall it with: {REINSTALL} {package}"
        raise UsageError(f"{package} cannot be imported ({reason(error)}); {remedy(error, install)}") from None


def remedy(error: BaseException, otherwise: str) -> str:
    """Return what to do about a library that fails.

    Parameters
    ----------
    error
        The error.
    otherwise
        The remedy unless torchvision was built for another torch. That breaks timm and the image models of transformers
        as well, and installing these does not help.

    Returns
    -------
    str
        The remedy, in one line without a full stop.
    """
    if not any(sign in str(each).lower() for each in _chain(error) for sign in OTHER_BUILD):
        return otherwise
    torch_version, _, build = _version("torch").partition("+")
    major, minor = (int(part) for part in torch_version.split(".")[:2])
    # Versions go in step: torchvision 0.15 came with torch 2.0.
    package = f"torchvision==0.{minor + FIRST_MINOR}.*" if major == 2 else "torchvision"
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return (
        f"torchvision {_version('torchvision')} was built for another torch than {_version('torch')}; install the one "
        f"that belongs to it with: {REINSTALL} --no-deps '{package}'{index}"
    )


def _version(package: str) -> str:
    """Return the installed version of a package; empty if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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

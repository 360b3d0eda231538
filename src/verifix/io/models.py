"""Build the model that a name on the command line stands for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from verifix.errors import UsageError

FORMS = "py:FILE_OR_MODULE:FACTORY, torchvision:NAME or timm:NAME"


def build_model(name: str, num_classes: int | None = None) -> nn.Module:
    """Build an untrained model.

    Parameters
    ----------
    name
        ``py:FILE_OR_MODULE:FACTORY`` (the factory is called without arguments), ``torchvision:NAME`` or ``timm:NAME``.
    num_classes
        Number of outputs, for torchvision and timm.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    UsageError
        If the name does not lead to a model.
    """
    scheme, _, rest = name.partition(":")
    builders: dict[str, Callable[[str, int | None], nn.Module]] = {
        "py": _from_python,
        "torchvision": _from_torchvision,
        "timm": _from_timm,
    }
    if scheme not in builders or not rest:
        raise UsageError(f"model is {name!r}; it must be {FORMS}")
    return builders[scheme](rest, num_classes)


def _from_python(rest: str, num_classes: int | None) -> nn.Module:
    where, _, factory_name = rest.rpartition(":")
    if not where or not factory_name:
        raise UsageError(f"model is 'py:{rest}'; it must be py:FILE_OR_MODULE:FACTORY")
    if num_classes is not None:
        raise UsageError("num_classes is for torchvision and timm models; give the factory its number in the code")
    factory = getattr(_import(where), factory_name, None)
    if not callable(factory):
        raise UsageError(f"{where} has no function {factory_name!r}; name the function that builds the model")
    try:
        model = factory()
    except (Exception, SystemExit) as error:
        raise UsageError(f"{where}:{factory_name}() failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{where}:{factory_name}() returned a {type(model).__name__}; it must return a torch.nn.Module"
        )
    return model


def _import(where: str) -> ModuleType:
    path = Path(where)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise UsageError(f"{where} does not exist; check the path of the model's file")
    # As if the file were run, or Python started here: neighbours can be imported.
    sys.path.insert(0, str(path.resolve().parent if is_file else Path.cwd()))
    try:
        if not is_file:
            return importlib.import_module(where)
        spec = importlib.util.spec_from_file_location(f"_verifix_model_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise UsageError(f"{where} cannot be imported as a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module


def _from_torchvision(name: str, num_classes: int | None) -> nn.Module:
    library = _library("torchvision.models", "torchvision")
    if name not in library.list_models():
        raise UsageError(f"torchvision has no model {name!r}; torchvision.models.list_models() names them")
    model: nn.Module = library.get_model(name, weights=None, **_classes(num_classes))
    return model


def _from_timm(name: str, num_classes: int | None) -> nn.Module:
    library = _library("timm", "timm")
    if not library.is_model(name):
        raise UsageError(f"timm has no model {name!r}; timm.list_models() names them")
    model: nn.Module = library.create_model(name, pretrained=False, **_classes(num_classes))
    return model


def _classes(num_classes: int | None) -> dict[str, int]:
    return {} if num_classes is None else {"num_classes": num_classes}


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, AttributeError) as error:
        line = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{package} cannot be imported ({line}); install it with: pip install 'verifix[vision]'"
        ) from None

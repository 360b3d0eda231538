"""Build the model that a name on the command line stands for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from verifix.errors import UsageError, did_you_mean, one_line
from verifix.io.model_names import check_name
from verifix.io.optional_imports import library, reason, remedy
from verifix.io.transformers_models import build_transformers

MODULE = "_verifix_model_"
"""How the name of a module begins that was made of a file."""

TIMM = ("timm", "hf-hub", "local-dir")
"""What stands in front of the name of a model of timm."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a folder of timm or on the hub, in the order of preference."""


def build_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    further: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build an untrained model.

    Parameters
    ----------
    name
        ``py:FILE_OR_MODULE:FACTORY`` (the factory is called without arguments), ``torchvision:NAME``, ``timm:NAME``,
        ``hf:DIR`` (a folder that transformers has saved), or ``hf-hub:ORG/NAME`` and ``local-dir:DIR`` as timm spells
        them.
    num_classes
        Number of outputs, for torchvision and timm.
    in_chans
        Number of channels of an input, for timm; the others must take that many as they are.
    further
        Further arguments by name, for torchvision and timm.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    UsageError
        If the name does not lead to a model.
    """
    check_name(name)
    scheme, _, rest = name.partition(":")
    builders: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
        "py": _from_python,
        "torchvision": _from_torchvision,
        "timm": _from_timm,
        "hf": _from_transformers,
        "hf-hub": partial(_from_timm_source, "hf-hub"),
        "local-dir": partial(_from_timm_source, "local-dir"),
    }
    arguments = {"num_classes": num_classes, **(further or {})}
    if scheme in TIMM:
        arguments["in_chans"] = in_chans
    elif scheme == "torchvision" and in_chans not in (None, 3):
        raise UsageError(
            f"in_chans is {in_chans}, but models of torchvision take 3 channels; build another one with py:, or give "
            "--in-chans to a model of timm"
        )
    return builders[scheme](rest, {key: value for key, value in arguments.items() if value is not None})


def _from_transformers(rest: str, arguments: dict[str, Any]) -> nn.Module:
    num_classes = arguments.pop("num_classes", None)
    _refuse_further(arguments, "config.json says how a model of transformers is built")
    return build_transformers(rest, num_classes)


def _refuse_further(arguments: Mapping[str, Any], why: str) -> None:
    if arguments:
        raise UsageError(f"model_kwargs ({', '.join(arguments)}) is for torchvision and timm models; {why}")


def _from_python(rest: str, arguments: dict[str, Any]) -> nn.Module:
    where, _, factory_name = rest.rpartition(":")
    if not where or not factory_name:
        raise UsageError(f"model is 'py:{rest}'; it must be py:FILE_OR_MODULE:FACTORY")
    if "num_classes" in arguments:
        raise UsageError("num_classes is for torchvision and timm models; give the factory its number in the code")
    _refuse_further(arguments, "give the factory its arguments in the code")
    path = Path(where)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise UsageError(f"{where} does not exist; check the path of the model's file")
    with _importing_from(path.resolve().parent if is_file else Path.cwd()):
        module = _import(where, is_file)
        factory = getattr(module, factory_name, None)
        if not callable(factory):
            known = [name for name, value in vars(module).items() if callable(value)]
            raise UsageError(
                f"{where} has no function {factory_name!r}; name the function that builds the model"
                f"{did_you_mean(factory_name, known)}"
            )
        try:
            model = factory()
        except (Exception, SystemExit) as error:
            raise UsageError(f"{where}:{factory_name}() failed: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{where}:{factory_name}() returned a {type(model).__name__}; it must return a torch.nn.Module"
        )
    return model


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Import as if a file in the folder were run, or Python started there; later still, behind everything else.

    A model may import its neighbours when it is run. From then on they come last, so that a datasets.py beside a model
    does not take the place of the library that reads the data.
    """
    place = str(folder)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        with suppress(ValueError):  # the model's own code may have changed it
            sys.path.remove(place)
        if place not in sys.path:
            sys.path.append(place)


@contextmanager
def neighbours() -> Iterator[None]:
    """Let models import their neighbours for as long as the context lasts; then forget both.

    Another model may have other neighbours of the same names.
    """
    path, known = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        folders = {Path(place) for place in sys.path} - {Path(place) for place in path}
        sys.path[:] = path
        for name in sys.modules.keys() - known:
            file = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
            if name.startswith(MODULE) or (file is not None and {*Path(file).parents[:2]} & folders):
                sys.modules.pop(name, None)


def _import(where: str, is_file: bool) -> ModuleType:
    try:
        if not is_file:
            return importlib.import_module(where)
        spec = importlib.util.spec_from_file_location(f"{MODULE}{Path(where).stem}", where)
        if spec is None or spec.loader is None:
            raise UsageError(f"{where} cannot be imported as a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{where} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    return module


def _from_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    models = library("torchvision.models", "torchvision")
    if name not in models.list_models():
        raise UsageError(
            f"torchvision has no model {name!r}; torchvision.models.list_models() names them"
            f"{did_you_mean(name, models.list_models())}"
        )
    build = partial(models.get_model, name, weights=None, **_no_backbone(models, name))
    return _built(build, f"torchvision's {name}", arguments)


def _no_backbone(models: Any, name: str) -> dict[str, None]:
    """Keep detectors and the like from downloading the weights of their backbone."""
    import inspect

    known = inspect.signature(models.get_model_builder(name)).parameters
    return {"weights_backbone": None} if "weights_backbone" in known else {}


def _from_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    timm = library("timm", "timm")
    if not timm.is_model(name):
        raise UsageError(
            f"timm has no model {name!r}; timm.list_models() names them{did_you_mean(name, timm.list_models())}"
        )
    return _built(partial(timm.create_model, name, pretrained=False), f"timm's {name}", arguments)


def _built(build: Callable[..., nn.Module], what: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a model; what goes wrong is due to arguments that the user has given, if there are any."""
    try:
        return build(**arguments)
    except Exception as error:  # each model checks its arguments in its own way
        if not arguments.keys() - {"num_classes"}:
            raise
        raise UsageError(
            f"{what} cannot be built with {', '.join(f'{k}={v!r}' for k, v in arguments.items())} "
            f"({type(error).__name__}: {one_line(error, 200)}); correct --model-kwargs and --in-chans"
        ) from None


def _from_timm_source(source: str, rest: str, arguments: dict[str, Any]) -> nn.Module:
    timm = library("timm", "timm")
    if source == "local-dir" and not (Path(rest) / "config.json").is_file():
        raise UsageError(f"{rest} has no config.json; local-dir: takes a folder that timm has saved for the hub")
    try:
        model: nn.Module = timm.create_model(f"{source}:{rest}", pretrained=False, **arguments)
    except Exception as error:  # the hub, json and timm each have errors of their own
        given = ", --model-kwargs and --in-chans" if arguments.keys() - {"num_classes"} else ""
        raise UsageError(
            f"{source}:{rest} is not a timm model ({reason(error)}); "
            f"{remedy(error, f'check the name, and config.json there{given}')}"
        ) from None
    return model


def model_files(name: str) -> list[Path]:
    """Return the files and folders that the name of a model leads to, without importing anything.

    Parameters
    ----------
    name
        As `build_model` takes it.

    Returns
    -------
    list of Path
        The file of a factory, or those of its module in the current folder; the folder of ``hf:`` and ``local-dir:``.
    """
    scheme, _, rest = name.partition(":")
    if scheme in ("hf", "local-dir"):
        return [Path(rest)]
    where = rest.rpartition(":")[0]
    if scheme != "py" or not where:
        return []
    if where.endswith(".py"):
        return [Path(where)]
    module = Path(*where.split("."))
    packages = [parent / "__init__.py" for parent in (module, *module.parents) if parent.parts]
    return [module.with_name(f"{module.name}.py"), *packages]


def own_checkpoint(name: str) -> Path:
    """Find the weights of a model that brings its own.

    Parameters
    ----------
    name
        ``hf:DIR``, ``hf-hub:ORG/NAME`` or ``local-dir:DIR``.

    Returns
    -------
    Path
        The folder, for ``hf:``, whose weights may be in several files; else the file.

    Raises
    ------
    UsageError
        If there are none.
    """
    source, _, rest = name.partition(":")
    if source == "hf":
        return Path(rest)
    if source == "hf-hub":
        return _from_hub(rest)
    files = [Path(rest) / file for file in WEIGHT_FILES]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UsageError(f"{rest} has no {' and no '.join(WEIGHT_FILES)}; give the weights with --checkpoint")
    return found


def _from_hub(rest: str) -> Path:
    hub = library("huggingface_hub", "huggingface_hub")
    repository, _, revision = rest.partition("@")
    failures = []
    for file in WEIGHT_FILES:
        try:
            return Path(hub.hf_hub_download(repository, file, revision=revision or None))
        except Exception as error:  # noqa: PERF203 - the second name is tried only if the first is not there
            failures.append(reason(error))
    raise UsageError(
        f"hf-hub:{rest} has no {' and no '.join(WEIGHT_FILES)} that can be loaded ({failures[0]}); give the weights "
        "with --checkpoint"
    )

"""Borrow a user's model: copy it, run it, and give back everything that running it may change."""

from __future__ import annotations

import copy
import inspect
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from verifix.errors import DataError, UsageError, VerifixError
from verifix.forms import refuse_form, run_eagerly

Forward = Callable[[nn.Module, Any], Any]
"""``(model, inputs) → output``: how a batch enters a model, where calling it with the batch is not all."""

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def lock_of(model: nn.Module) -> threading.RLock:
    """Return the lock that whoever runs or copies a model holds meanwhile."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


class _FastPathOff:
    """Attention's fused fast path is one switch for the whole process: the last to leave turns it back on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = True

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                torch.backends.mha.set_fastpath_enabled(self._before)


_FAST_PATH_OFF = _FastPathOff()


@contextmanager
def random_state_kept(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Give the global random generators their state back; models draw from them, and so does reading data.

    Parameters
    ----------
    devices
        CUDA devices whose generators count as well.

    Yields
    ------
    None
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is the user's state that is kept
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random generators for as long as the context lasts, then give them their state back."""
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    with random_state_kept(devices):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - datasets draw from the global generator
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Lend a model in eval mode, without gradients, and give back all that running it may change.

    Train flags are set per module instead of by ``model.eval()``, which models override to merge or freeze things.
    On the way out, also after an exception, every module has its flag and the very buffers it had, with their
    content, and the random generators have their state. One thread at a time borrows a model.

    Parameters
    ----------
    model
        The user's model.

    Yields
    ------
    None
    """
    with ExitStack() as stack:
        stack.enter_context(lock_of(model))
        stack.enter_context(_FAST_PATH_OFF)
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        stack.enter_context(random_state_kept(sorted(devices, key=str)))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_fresh_casts())
        stack.enter_context(_eager())
        flags = [(module, module.training) for module in model.modules()]
        buffers = [
            (module, dict(module._buffers), {k: b.clone() for k, b in module._buffers.items() if b is not None})
            for module in model.modules()
        ]
        stack.callback(_give_back, flags, buffers)
        for module, _ in flags:
            module.training = False
        yield


@contextmanager
def _eager() -> Iterator[None]:
    """Run what is compiled inside the model as it was written; a compiled function shows nothing of its inside."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _fresh_casts() -> Iterator[None]:
    """Keep autocast from serving casts of weights that have been replaced since."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _give_back(
    flags: list[tuple[nn.Module, bool]],
    buffers: list[tuple[nn.Module, dict[str, Tensor | None], dict[str, Tensor]]],
) -> None:
    for module, training in flags:
        module.training = training
    for module, objects, contents in buffers:
        module._buffers.clear()
        module._buffers.update(objects)
        for name, content in contents.items():
            buffer = module._buffers[name]
            if buffer is not None and not (buffer.shape == content.shape and torch.equal(buffer, content)):
                buffer.data = content


def check_model(model: object) -> None:
    """Check that a model can be run and copied, and that its values are values.

    Parameters
    ----------
    model
        What the user gave.

    Raises
    ------
    UsageError
        If it is no module, is of a form whose weights cannot be seen or written, or they are not there.
    DataError
        If a weight or buffer is not finite; names it.
    """
    if not isinstance(model, nn.Module):
        remedy = "; give the module that it was made from" if "Exported" in type(model).__name__ else ""
        raise UsageError(f"model is a {type(model).__name__}; it must be a torch.nn.Module{remedy}")
    refuse_form(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or nn.parameter.is_lazy(tensor):
            what = "is on the meta device and has no values" if tensor.is_meta else "is not initialised"
            raise UsageError(f"{name!r} {what}; load the weights first")
        narrow = tensor.is_floating_point() and tensor.element_size() == 1  # float8 cannot be asked
        values = tensor.float() if narrow else tensor
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise DataError(f"{name!r} of the model contains NaN or Inf; load an intact checkpoint")


def run_model(model: nn.Module, inputs: Any, forward: Forward | None = None) -> Any:
    """Run a model, and turn what its own code raises into one line about the inputs.

    Parameters
    ----------
    model
        The model.
    inputs
        A batch, on its device. A dictionary gives keyword arguments, as far as the model names them; a tuple gives
        positional ones.
    forward
        How the batch enters the model, if that is not it.

    Returns
    -------
    object
        The output.

    Raises
    ------
    DataError
        If the model cannot run on these inputs. Lack of memory and errors of this package pass as they are.
    """
    try:
        return (forward or _call)(model, inputs)
    except Exception as error:
        if isinstance(error, (VerifixError, MemoryError)) or out_of_memory(error):
            raise
        line = " ".join(str(error).split())
        raise DataError(
            f"the model cannot run on inputs of {_form(inputs)}: {type(error).__name__}: {line}"
            + ("" if forward or isinstance(inputs, Tensor) else "; forward= says how a batch enters the model")
        ) from error


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        named = _named_arguments(model, inputs)
        return model(inputs) if named is None else model(**named)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _named_arguments(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a model's signature names, as transformers' Trainer does; None if it names nothing of it."""
    kinds = inspect.signature(model.forward).parameters
    named = {name: value for name, value in inputs.items() if name in kinds}
    if not named and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in kinds.values()):
        return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    return named or None


def _form(inputs: Any) -> str:
    """Describe a batch in a few words."""
    if isinstance(inputs, Tensor):
        shape = f"[{inputs.size(0)}, nested]" if inputs.is_nested else str(list(inputs.shape))
        return f"shape {shape} and {inputs.dtype}"
    parts = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return "; ".join(f"{name}: {_form(x) if isinstance(x, Tensor) else type(x).__name__}" for name, x in parts)


def to_device(inputs: Any, device: torch.device) -> Any:
    """Bring every tensor of a batch to a device."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, inputs)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether torch ran out of memory, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def copy_model(model: nn.Module) -> nn.Module:
    """Copy a model; parameters that share memory share it in the copy, and gradients stay behind.

    Parameters
    ----------
    model
        The user's model; nothing of it is changed.

    Returns
    -------
    nn.Module
        The copy.

    Raises
    ------
    UsageError
        If something in the model cannot be copied.
    """
    memo: dict[int, Any] = _computed_attributes(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with lock_of(model):
        try:
            for first, *others in tied_names(model).values():
                twin = copy.deepcopy(parameters[first], memo)
                memo |= {id(parameters[name]): twin for name in others}
            work = copy.deepcopy(model, memo)
        except Exception as error:
            raise UsageError(
                f"the model cannot be copied ({type(error).__name__}: {error}); remove what cannot be copied from it"
            ) from error
    work.zero_grad(set_to_none=True)
    run_eagerly(work)
    return work


def _computed_attributes(model: nn.Module) -> dict[int, Any]:
    """Copy plain tensors that some module computed in its last run, such as the weight of the older weight norm."""
    values = (value for module in model.modules() for value in vars(module).values())
    return {id(x): x.detach().clone() for x in values if isinstance(x, Tensor) and not x.is_leaf}


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """Return, for the first name of each parameter, all names that it or its memory has in the model."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        storage = storage_of(parameter)
        place = (storage, int(parameter.storage_offset()), tuple(parameter.shape), parameter.stride())
        groups.setdefault(place if storage else (id(parameter),), []).append(name)
    return {names[0]: names for names in groups.values()}


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter; the CPU for a model without any."""
    return next(model.parameters(), torch.empty(0, device="cpu")).device


def storage_of(tensor: Tensor) -> int:
    """Return the address of a plain tensor's memory; 0 for one without (sparse, nested, batched, meta)."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0

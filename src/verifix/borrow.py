"""Borrow a user's model: copy it, run it, and give back everything that running it may change."""

from __future__ import annotations

import copy
import inspect
import random
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

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


class _WholeProcess:
    """A state of the whole process: the first of overlapping users changes it, and the last gives it back.

    Parameters
    ----------
    change
        Changes the state and returns what gives it back.
    """

    def __init__(self, change: Callable[[], Callable[[], object]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._users = 0
        self._give_back: Callable[[], object] = lambda: None

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._give_back = self._change()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._give_back()


def _fast_path_off() -> Callable[[], object]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    return lambda: torch.backends.mha.set_fastpath_enabled(before)


def _run_eagerly() -> Callable[[], object]:
    stance = torch.compiler.set_stance("force_eager")
    stance.__enter__()
    return lambda: stance.__exit__(None, None, None)


def _random_state() -> Callable[[], object]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def give_back() -> None:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - it is the user's state that is kept
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)

    return give_back


_FAST_PATH_OFF = _WholeProcess(_fast_path_off)
_EAGER = _WholeProcess(_run_eagerly)
_RANDOM_STATE_KEPT = _WholeProcess(_random_state)
"""Models draw from the global random generators, and so does reading data."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random generators for as long as the context lasts, then give them their state back."""
    with _RANDOM_STATE_KEPT:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - datasets draw from the global generator
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
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
        stack.enter_context(_RANDOM_STATE_KEPT)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_fresh_casts())
        if "torch._dynamo" in sys.modules:  # else nothing can be compiled, and importing it takes seconds
            stack.enter_context(_EAGER)
        flags = [(module, module.training) for module in model.modules()]
        buffers = [
            (module, dict(module._buffers.items()), {k: b.clone() for k, b in module._buffers.items() if b is not None})
            for module in model.modules()
        ]
        stack.callback(_give_back, flags, buffers)
        for module, _ in flags:
            module.training = False
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
        if isinstance(module._buffers, dict):  # not so in a scripted part, which keeps its own
            module._buffers.clear()
            module._buffers.update(objects)
        for name, content in contents.items():
            buffer = objects[name]
            if buffer is not None and not _same(buffer, content):
                buffer.data = content


def _same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two buffers hold the same, NaN counted as equal to nothing; sparse ones are never compared."""
    return a.layout is torch.strided and a.shape == b.shape and torch.equal(a, b)


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
    parameters = dict(model.named_parameters())
    for name, tensor in (*parameters.items(), *model.named_buffers()):
        if tensor.is_meta or nn.parameter.is_lazy(tensor):
            what = "is on the meta device and has no values" if tensor.is_meta else "is not initialised"
            raise UsageError(f"{name!r} {what}; load the weights first")
        if tensor.layout is not torch.strided or not tensor.is_floating_point():
            continue
        values = tensor.float() if tensor.element_size() == 1 else tensor  # float8 cannot be asked
        # Buffers may be infinite on purpose: masks of attention, bounds of clipping. Statistics of inputs may not.
        bounded = name in parameters or name.rpartition(".")[2] in ("running_mean", "running_var")
        if torch.isnan(values).any() or (bounded and torch.isinf(values).any()):
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
    """Return what a model's signature names, or all tensors if it takes any name; None if it names nothing."""
    kinds = inspect.signature(model.forward).parameters
    named = {name: value for name, value in inputs.items() if name in kinds}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in kinds.values())
    if takes_all and not hasattr(model, "main_input_name"):  # models of transformers pass on what they do not know
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
    """Copy every tensor of a batch to a device; a model may write into what it is given."""
    return tree_map(lambda x: x.to(device, copy=True) if isinstance(x, Tensor) else x, inputs)


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
    with lock_of(model):
        try:
            work = copy.deepcopy(model, _twins(model))
        except Exception as error:
            raise UsageError(
                f"the model cannot be copied ({type(error).__name__}: {error}); remove what cannot be copied from it"
            ) from error
    for parameter in work.parameters():
        if parameter.is_leaf:  # those of a scripted part are not, once copied
            parameter.grad = None
    run_eagerly(work)
    return work


def _twins(model: nn.Module) -> dict[int, Any]:
    """Copy ahead what `deepcopy` would part, or cannot copy, by the identity of the original."""
    # Parameters that share memory, whole or in part, views of parameters, and plain tensors that a module computed in
    # its last run, such as the weight of the older weight norm.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    users = Counter(storage_of(p) for p in {id(p): p for p in parameters.values()}.values())
    storages: dict[int, torch.UntypedStorage] = {}
    memo: dict[int, Any] = {}

    def twin(x: Tensor) -> Tensor:
        if storage_of(x) not in storages:
            storages[storage_of(x)] = x.untyped_storage().clone()
        storage = storages[storage_of(x)]
        return x.detach().new_empty(0).set_(storage, x.storage_offset(), x.shape, x.stride())

    for names in tied_names(model).values():
        first = parameters[names[0]]
        if storage_of(first) and users[storage_of(first)] > 1:
            one = nn.Parameter(twin(first), first.requires_grad)
            memo |= {id(parameters[name]): one for name in names}
    for x in _computed(model):
        shared = next((p for p in parameters.values() if storage_of(p) == storage_of(x) != 0), None)
        if shared is None:
            memo[id(x)] = x.detach().clone()
            continue
        if id(shared) not in memo:
            memo[id(shared)] = nn.Parameter(twin(shared), shared.requires_grad)
        memo[id(x)] = twin(x)
    return memo


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Yield plain tensors among the attributes of modules that are the result of a computation."""
    for module in model.modules():
        own = [v for k, v in vars(module).items() if not k.startswith(("_param", "_buff", "_mod"))]
        yield from (x for x in tensors_in(own) if not isinstance(x, nn.Parameter) and not x.is_leaf)


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


def tensors_in(values: Any) -> list[Tensor]:
    """Return all tensors in a nest of containers, in order."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """Return the address of a plain tensor's memory; 0 for one without (sparse, nested, batched, meta)."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0

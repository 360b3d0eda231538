"""Lend a user's model, and give back everything that running it may change."""

from __future__ import annotations

import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from verifix.errors import DataError, UsageError
from verifix.model.threads import BLAS_VARIABLES, any_set
from verifix.model.wrappers import refuse_form

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


@cache
def _blas_of_scipy() -> Any:
    """Return what sets the number of threads of the BLAS that scipy brings; finding it takes milliseconds."""
    import scipy.optimize  # noqa: F401 - it has to be there to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def _one_blas_thread() -> Callable[[], object]:
    if any_set(BLAS_VARIABLES):
        return lambda: None
    give_back: Callable[[], object] = _blas_of_scipy().limit(limits=1).restore_original_limits
    return give_back


_FAST_PATH_OFF = _WholeProcess(_fast_path_off)
_EAGER = _WholeProcess(_run_eagerly)
_ONE_BLAS_THREAD = _WholeProcess(_one_blas_thread)
_RANDOM_STATE_KEPT = _WholeProcess(_random_state)
"""Models draw from the global random generators, and so does reading data."""


def one_blas_thread() -> AbstractContextManager[None]:
    """Let scipy multiply on one thread, as `verifix.model.threads` does with torch; a number the user set stays."""
    return _ONE_BLAS_THREAD


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
    return a.layout is torch.strided and a.shape == b.shape and (a.is_meta or torch.equal(a, b))


@torch.no_grad()
def check_model(model: object, *, may_be_meta: bool = False) -> None:
    """Check that a model can be run and copied, and that its values are values.

    Parameters
    ----------
    model
        What the user gave.
    may_be_meta
        Whether it may be on the meta device, where it has no values.

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
        if tensor.is_meta and may_be_meta:
            continue
        if tensor.is_meta or nn.parameter.is_lazy(tensor):
            what = "is on the meta device and has no values" if tensor.is_meta else "is not initialised"
            raise UsageError(f"{name!r} {what}; load the weights first")
        if tensor.is_nested:
            raise UsageError(f"{name!r} of the model is a nested tensor; keep its parts as parameters of their own")
        if tensor.layout is not torch.strided or not tensor.is_floating_point():
            continue
        values = tensor.float() if tensor.element_size() == 1 else tensor  # float8 cannot be asked
        # Buffers may be infinite on purpose: masks of attention, bounds of clipping. Statistics of inputs may not.
        bounded = name in parameters or name.rpartition(".")[2] in ("running_mean", "running_var")
        if torch.isnan(values).any() or (bounded and torch.isinf(values).any()):
            raise DataError(f"{name!r} of the model contains NaN or Inf; load an intact checkpoint")

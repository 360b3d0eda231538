"""Copy a model, with the memory that its parameters share."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from verifix.errors import UsageError, one_line
from verifix.model.borrow import lock_of
from verifix.model.tensors import storage_of, tensors_in
from verifix.model.wrappers import run_eagerly


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
                f"the model cannot be copied ({type(error).__name__}: {one_line(error)}); remove what cannot be copied "
                "from it"
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
    for x in (*parameters.values(), *model.buffers()):
        # No gradient may ever pass through a tensor of inference mode, and `deepcopy` copies no sparse one.
        if id(x) not in memo and (x.is_inference() or not (is_lazy(x) or x.layout is torch.strided)):
            memo[id(x)] = nn.Parameter(x.clone(), x.requires_grad) if isinstance(x, nn.Parameter) else x.clone()
    return memo


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Yield plain tensors among the attributes of modules that are the result of a computation."""
    for module in model.modules():
        own = [v for k, v in vars(module).items() if not k.startswith(("_param", "_buff", "_mod"))]
        yield from (x for x in tensors_in(own) if not isinstance(x, nn.Parameter) and not x.is_leaf)


def bare_tensors(model: nn.Module) -> list[Tensor]:
    """Return the tensors that a copy of a model's modules may share with them; lazy parameters have none to share."""
    return [x for x in (*model.parameters(), *model.buffers(), *_computed(model)) if not is_lazy(x)]


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """Return, for the first name of each parameter, all names that it or its memory has in the model."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        storage = 0 if is_lazy(parameter) else storage_of(parameter)
        place = (
            (storage, int(parameter.storage_offset()), tuple(parameter.shape), parameter.stride())
            if storage
            else (id(parameter),)
        )
        groups.setdefault(place, []).append(name)
    return {names[0]: names for names in groups.values()}

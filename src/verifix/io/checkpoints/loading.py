"""What a model's own `load_state_dict` makes of the entries of a file, tried on a copy."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from verifix.errors import CheckpointError
from verifix.model.borrow import lock_of
from verifix.model.clone import bare_tensors, tied_names
from verifix.model.tensors import storage_of, tensor_digest
from verifix.model.weights import tensors_of

EXTRA = "_extra_state"
"""The last part of the key under which torch puts what `get_extra_state` returns: tensors, numbers, containers."""


def is_extra(key: object) -> bool:
    """Tell whether a key is that of a module's extra state."""
    return isinstance(key, str) and key.rpartition(".")[2] == EXTRA


def load(model: nn.Module, entries: Mapping[str, Any], **settings: bool) -> None:
    """Load entries strictly, by the model's own method, which may keep and change only copies of them.

    Parameters
    ----------
    model
        The model.
    entries
        As its `load_state_dict` takes them.
    **settings
        Further ones of that method.

    Raises
    ------
    CheckpointError
        If the method left keys out that it did not refuse, as one that is never strict does.
    """
    given = OrderedDict((key, _apart(key, value)) for key, value in entries.items())
    given._metadata = copy.deepcopy(getattr(entries, "_metadata", None))  # type: ignore[attr-defined]  # as torch does
    result = model.load_state_dict(given, strict=True, **settings)
    missing, unexpected = getattr(result, "missing_keys", []), getattr(result, "unexpected_keys", [])
    if missing or unexpected:
        raise CheckpointError(
            f"missing {', '.join(missing) or 'nothing'}; unexpected {', '.join(unexpected) or 'nothing'}"
        )


def _apart(key: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if is_extra(key) else value.detach()
    return copy.deepcopy(value)


def loaded_copy(model: nn.Module, entries: Mapping[str, Any]) -> nn.Module | None:
    """Load entries into a copy of a model.

    Parameters
    ----------
    model
        The model; nothing of it is changed.
    entries
        As `load_state_dict` takes them.

    Returns
    -------
    nn.Module or None
        The copy, whose parameters are the entries' own memory where the model takes them as they are; None if the model
        refuses the entries, leaves a parameter that it saves as it was, or cannot be copied.
    """
    with lock_of(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            try:
                work = _blank_copy(model)
                load(work, entries, assign=True)
            except TypeError:  # a method of the model's own may know nothing of assign; it copies into what is there
                work = _blank_copy(model)
                load(work, entries)
            return None if _left_blank(model, work) else work
        except Exception:  # hooks may raise anything; the caller says what does not fit
            return None


def _blank_copy(model: nn.Module) -> nn.Module:
    """Copy a model without its weights: floating-point parameters are NaN, so that those loaded can be told apart."""
    return copy.deepcopy(model, {id(x): _blank(x) for x in bare_tensors(model)})


def _blank(x: Tensor) -> Tensor:
    if not isinstance(x, nn.Parameter):
        return x.detach().clone()
    value = torch.full_like(x, torch.nan) if x.is_floating_point() else x.detach().clone()
    return nn.Parameter(value.detach(), x.requires_grad)


def _left_blank(model: nn.Module, work: nn.Module) -> bool:
    """Tell whether a parameter that the model saves is still blank in a copy, under each of its names."""
    first, parameters = first_names(model), dict(work.named_parameters(remove_duplicate=False))
    blank = {first[name]: True for name in saved_names(model).values() if name in parameters}
    for name, x in parameters.items():
        if first.get(name) in blank:
            blank[first[name]] &= x.is_floating_point() and x.numel() > 0 and bool(x.detach().isnan().all())
    return any(blank.values())


def holders(model: nn.Module, entries: Mapping[str, Any]) -> dict[str, list[str]]:
    """Find the entries that hold each parameter and buffer as it is, so that a new value can take its place.

    Parameters
    ----------
    model
        The model.
    entries
        Those that it loads.

    Returns
    -------
    dict
        Keys of entries by the first name of the parameter or buffer; of a tied one there may be several, and their
        values may differ. What no entry holds, or only in another form, is not there.
    """
    first = first_names(model)
    tensors = {key: x for key, x in entries.items() if isinstance(x, Tensor) and not is_extra(key)}
    named: dict[str, list[str]] = {}
    for key, name in saved_names(model).items():
        if key in tensors:
            named.setdefault(first[name], []).append(key)
    alone = _apart_in_memory(tensors)
    work = loaded_copy(model, with_metadata({**entries, **alone}, getattr(entries, "_metadata", None)))
    if work is None:
        return named
    loaded = {name: x for name, x in tensors_of(work, every_name=True).items() if name in first}
    keys = {spot(x): key for key, x in alone.items()}
    found: dict[str, list[str]] = {}
    for name, x in loaded.items():
        if spot(x) in keys:
            found.setdefault(first[name], []).append(keys[spot(x)])
    rest = {key: tensors[key] for key in tensors.keys() - {key for each in found.values() for key in each}}
    for name in dict.fromkeys(first[name] for name in loaded):
        more = [key for key in named.get(name, []) if key in rest and rest[key].shape == loaded[name].shape]
        if name not in found:  # a load of the model's own may copy, and may change what it copies
            more = [key for key in more if _same(rest[key], loaded[name])] or _only_one(rest, loaded[name])
        found[name] = [*dict.fromkeys([*found.get(name, []), *more])]
    return {name: each for name, each in found.items() if each}


def _only_one(tensors: Mapping[str, Tensor], x: Tensor) -> list[str]:
    """Return the one entry that holds a value, if no other does."""
    same = [key for key, value in tensors.items() if value.shape == x.shape and _same(value, x)]
    return same if len(same) == 1 else []


def _same(value: Tensor, x: Tensor) -> bool:
    return tensor_digest(value.to(x.dtype)) == tensor_digest(x)


def _apart_in_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors none of which lies where another does."""
    seen: set[object] = set()
    apart: dict[str, Tensor] = {}
    for key, x in tensors.items():
        apart[key] = x.detach().clone() if spot(x) in seen else x.detach()
        seen.add(spot(x))
    return apart


def first_names(model: nn.Module) -> dict[str, str]:
    """Return the first name of each parameter and buffer by every name that it has."""
    first = {name: names[0] for names in tied_names(model).values() for name in names}
    buffers: dict[int, str] = {}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        first[name] = buffers.setdefault(id(buffer), name)
    return first


def saved_names(model: nn.Module) -> dict[str, str]:
    """Return the qualified name of the parameter or buffer that each entry of `state_dict` is; hooks may rename it."""
    tensors = tensors_of(model, every_name=True)
    names = {spot(x): name for name, x in tensors.items()}
    saved: dict[str, str] = {}
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor) or is_extra(key):
            continue
        if key in tensors and (spot(tensors[key]) == spot(value) or not storage_of(value)):
            saved[key] = key
        elif spot(value) in names:
            saved[key] = names[spot(value)]
    return saved


def saved_twins(model: nn.Module) -> Iterator[list[str]]:
    """Yield the keys of `state_dict` that are one parameter, for each parameter."""
    first, groups = first_names(model), dict[str, list[str]]()
    parameters = {name for names in tied_names(model).values() for name in names}
    for key, name in saved_names(model).items():
        if name in parameters:
            groups.setdefault(first[name], []).append(key)
    yield from groups.values()


def spot(x: Tensor) -> object:
    """Return the same for two tensors that are one: the same memory, seen in the same way."""
    storage = 0 if is_lazy(x) else storage_of(x)
    return (storage, int(x.storage_offset()), tuple(x.shape), x.stride()) if storage else id(x)


def with_metadata(entries: dict[str, Any], metadata: object) -> OrderedDict[str, Any]:
    """Return entries with the versions of modules that `state_dict` keeps beside them."""
    given = OrderedDict(entries)
    given._metadata = metadata  # type: ignore[attr-defined]  # so does torch
    return given


def metadata_by_name(entries: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the versions of modules in a file by the names that the modules have in the model.

    Parameters
    ----------
    entries
        Those of the file.
    keys
        Keys of the file by the model's names.

    Returns
    -------
    dict or None
        As torch keeps them; None if the file has none.
    """
    held = getattr(entries, "_metadata", None)
    if not isinstance(held, Mapping):
        return None
    versions: dict[str, Any] = {}
    for name, key in keys.items():
        ours, theirs = name.split(".")[:-1], key.split(".")[:-1]
        while ".".join(theirs) in held:
            versions.setdefault(".".join(ours), held[".".join(theirs)])
            if not ours or not theirs or ours.pop() != theirs.pop():
                break
    return versions


def shape_of(x: Tensor) -> torch.Size | None:
    """Return a tensor's shape; None for a lazy parameter, which takes any."""
    return None if is_lazy(x) else x.shape

"""Which key of a state dict is which weight of a model, whatever was wrapped around the model when it was saved."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from verifix.errors import CheckpointError, first_of, printable
from verifix.io.checkpoints.loading import is_extra, loaded_copy, metadata_by_name, saved_twins, with_metadata
from verifix.io.checkpoints.state_dict import Found, says_averaged
from verifix.model.tensors import storage_of

WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module")
"""Names that torch.compile, activation checkpointing, FSDP and (Distributed)DataParallel put in front of a part of a
model; the last one may be a module of the model's own as well."""

DROPPED = ((), WRAPPERS[:-1], WRAPPERS)
"""What may be dropped from keys, in the order in which it is tried."""


@dataclass(frozen=True)
class Fit:
    """How the keys of a state dict fit a model.

    Attributes
    ----------
    prefix
        What stands before the model's own names.
    keys
        Keys of the state dict by the model's names.
    missing
        Names of the model that have no key, under none of the names of a tied weight.
    unexpected
        Keys that stand where the model's do, and are none of them.
    outside
        Keys without the prefix, and buffers that the model does not save itself.
    averaged
        Whether the prefix is that of an averaged copy of the model.
    by_torch
        Whether the model's own `load_state_dict` takes the keys, without the prefix, as they are.
    """

    prefix: str
    keys: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    outside: tuple[str, ...]
    averaged: bool
    by_torch: bool = False

    def entries(self, model: nn.Module, found: Found) -> Mapping[str, Any]:
        """Return what the model is to load, by its own names.

        Parameters
        ----------
        model
            The model.
        found
            The state dict.

        Returns
        -------
        mapping
            Of a tied weight that the file has once, all names; a missing counter of batches is the model's own.
        """
        given = {name: found.entries[key] for name, key in self.keys.items()}
        if not self.by_torch:
            for names in saved_twins(model):
                held = [name for name in names if name in given]
                given |= {name: given[held[0]] for name in names if held and name not in given}
            own = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
            given = {**own, **given}
        return with_metadata(given, metadata_by_name(found.entries, self.keys))


def fits(model: nn.Module, keys: Collection[str]) -> list[Fit]:
    """Find the prefixes under which a state dict holds a model.

    Parameters
    ----------
    model
        The model.
    keys
        Keys of the state dict.

    Returns
    -------
    list of Fit
        All that are complete; if none is, the one with most of the model's names.
    """
    nearest: list[Fit] = []
    for names, anywhere in _spellings(model):
        for dropped in DROPPED:
            found = [
                _fit(model, prefix, names, plain, dropped)
                for plain in [_without(keys, dropped)]
                for prefix in _prefixes(names, plain, dropped)
                if anywhere or not prefix
            ]
            complete = [fit for fit in found if not fit.missing]
            if complete:
                return [fit for fit in complete if not fit.prefix] or complete
            nearest += found
    return [max(nearest, key=lambda fit: len(fit.keys) - len(fit.unexpected))] if nearest else []


def _without(keys: Collection[str], dropped: Collection[str]) -> dict[str, str]:
    """Return the keys by what is left of them without some of their parts; if two become one, all stay whole."""
    plain = {".".join(part for part in key.split(".") if part not in dropped): key for key in keys}
    return plain if len(plain) == len(keys) else {key: key for key in keys}


def _prefixes(names: Mapping[str, str], plain: Mapping[str, str], dropped: Collection[str]) -> list[str]:
    """Return what stands before the model's names in the keys, the most frequent first."""
    wanted = _without(names, dropped)
    starts = (
        key[:cut]
        for key in plain
        for cut in (0, *(place.end() for place in re.finditer(r"\.", key)))
        if key[cut:] in wanted
    )
    return [prefix for prefix, _ in Counter(starts).most_common(8)]


def _fit(
    model: nn.Module, prefix: str, names: Mapping[str, str], plain: Mapping[str, str], dropped: Collection[str]
) -> Fit:
    """Compare keys under a prefix with the names of a model."""
    wanted = _without(names, dropped)
    under = {key.removeprefix(prefix): whole for key, whole in plain.items() if key.startswith(prefix)}
    keys = {names[wanted[name]]: whole for name, whole in under.items() if name in wanted}
    same = {name: group for group in saved_twins(model) for name in group}
    missing = [
        name
        for name in names.values()
        if not any(twin in keys for twin in same.get(name, [name])) and not name.endswith("num_batches_tracked")
    ]
    buffers = {name for name, _ in model.named_buffers()}
    rest = {name: whole for name, whole in under.items() if name not in wanted}
    return Fit(
        prefix,
        keys,
        tuple(missing),
        tuple(whole for name, whole in rest.items() if name not in buffers),
        tuple(whole for key, whole in plain.items() if not key.startswith(prefix))
        + tuple(whole for name, whole in rest.items() if name in buffers),
        says_averaged(prefix) or f"{prefix.removesuffix('module.')}n_averaged" in plain,
    )


def _spellings(model: nn.Module) -> Iterator[tuple[dict[str, str], bool]]:
    """Yield the model's names by how a file may spell them, and whether that may stand behind any prefix."""
    names = [name for name, value in model.state_dict().items() if isinstance(value, Tensor) or is_extra(name)]
    own = {name: name for name in names}
    yield from _unwrapped(own)
    in_files = {spelled: name for name, spelled in _names_in_files(model, own).items()}
    if in_files != own:
        yield from _unwrapped(in_files)


def _unwrapped(names: Mapping[str, str]) -> Iterator[tuple[dict[str, str], bool]]:
    """Yield names as they are, then without the modules around the network that the file may know nothing of."""
    inner = dict(names)
    yield inner, True
    while inner and all("." in name for name in inner) and len({name.partition(".")[0] for name in inner}) == 1:
        inner = {name.partition(".")[2]: whole for name, whole in inner.items()}
        yield inner, False


def _names_in_files(model: nn.Module, own: Mapping[str, str]) -> dict[str, str]:
    """Return the names that transformers writes for each of the model's; from its version 5 on they may differ."""
    library = sys.modules.get("transformers")  # a model of it cannot be there unless it is imported
    loading = sys.modules.get("transformers.core_model_loading")
    spelled = dict(own)
    if library is None or loading is None:
        return spelled
    for path, module in model.named_modules():
        if isinstance(module, library.PreTrainedModel):
            start = f"{path}." if path else ""
            inner = {key: value.detach() for key, value in module.state_dict().items() if isinstance(value, Tensor)}
            back = {id(value): key for key, value in inner.items()}
            for written, value in loading.revert_weight_conversion(module, dict(inner)).items():
                if id(value) in back:  # a tensor that is merged or split in the file is none of the model's
                    spelled[start + back[id(value)]] = start + written
            break  # the outermost; it knows the names of those within
    return spelled


def choose_fit(model: nn.Module, found: Found, weights: str, path: object) -> Fit:
    """Find the model's weights in a state dict.

    Parameters
    ----------
    model
        The model.
    found
        The state dict.
    weights
        "auto", "raw" or "ema", as in `choose_state`.
    path
        The file, for the message.

    Returns
    -------
    Fit
        Which key is which weight.

    Raises
    ------
    CheckpointError
        If keys are missing or unexpected, the weights wanted are not there, or they are there more than once.
    """
    whole = [("", {key: key for key in found.entries})] if all(isinstance(key, str) for key in found.entries) else []
    every = _taken(model, found, whole)
    every = every or fits(model, found.matchable)
    if not every or every[0].missing or every[0].unexpected:
        every = _taken_without_prefix(model, found) or every
    if not every or every[0].missing or every[0].unexpected:
        raise CheckpointError(f"{path} does not fit the model: {_misfit(model, found, every)}")
    kinds = {"ema": [f for f in every if f.averaged], "raw": [f for f in every if not f.averaged]}
    if found.kind == "ema":
        kinds = {"ema": every, "raw": []}
    order = ("ema", "raw") if weights == "auto" else (weights,)
    chosen = next((kinds[kind] for kind in order if kinds[kind]), [])
    if not chosen:
        raise CheckpointError(
            f"{path} has no {'averaged' if weights == 'ema' else weights} weights; omit --weights {weights}, or "
            "give another checkpoint"
        )
    if len({tuple(place(found.entries[f.keys[name]]) for name in sorted(f.keys)) for f in chosen}) > 1:
        raise CheckpointError(
            f"{path} holds the model more than once, under {listed([repr(f.prefix) for f in chosen])}; save the state "
            "dict to correct in a file of its own"
        )
    return chosen[0]


def _taken(model: nn.Module, found: Found, candidates: Iterable[tuple[str, Mapping[str, str]]]) -> list[Fit]:
    """Return those of some ways to name a state dict's entries that the model's own `load_state_dict` takes."""
    every = []
    for prefix, keys in candidates:
        used = set(keys.values())
        outside = tuple(key for key in found.matchable if key not in used)
        fit = Fit(prefix, keys, (), (), outside, says_averaged(prefix), by_torch=True)
        if loaded_copy(model, fit.entries(model, found)) is not None:
            every.append(fit)
    return every


def _taken_without_prefix(model: nn.Module, found: Found) -> list[Fit]:
    """Return how the model takes a state dict's entries once a prefix is dropped that torch would refuse."""
    for dropped in DROPPED:
        plain = _without(found.matchable, dropped)
        cuts = Counter(key[: place.end()] for key in plain for place in re.finditer(r"\.", key))
        prefixes = [*([""] if dropped else []), *(prefix for prefix, _ in cuts.most_common(4))]
        under = (
            (prefix, {key.removeprefix(prefix): whole for key, whole in plain.items() if key.startswith(prefix)})
            for prefix in prefixes
        )
        every = _taken(model, found, under)
        if every:
            return every
    return []


def _misfit(model: nn.Module, found: Found, every: list[Fit]) -> str:
    wanted = tuple(name for name, value in model.state_dict().items() if isinstance(value, Tensor) or is_extra(name))
    fit = every[0] if every else Fit("", {}, wanted, tuple(found.tensors), (), False)
    adapter = any("lora_" in key for key in found.tensors)
    hint = "merge the adapter first (merge_and_unload), or " if adapter else ""
    if any(map(is_extra, fit.missing)):
        hint += "save the state dict with torch.save, which keeps extra state, or "
    behind = f" behind the prefix {fit.prefix!r}" if fit.prefix else ""
    return (
        f"{few('missing', fit.missing)}; {few('unexpected', fit.unexpected)}{behind}; {hint}give the checkpoint of "
        "this model, or the model of this checkpoint"
    )


def place(tensor: object) -> object:
    """Return the same for two tensors that lie in the same place."""
    if not isinstance(tensor, Tensor):
        return id(tensor)
    return (storage_of(tensor), int(tensor.storage_offset())) if storage_of(tensor) else id(tensor)


def few(what: str, names: Collection[str]) -> str:
    """Say how many of something there are, and name the first ones."""
    return f"{len(names)} {what}" + (f" ({listed(names, 3)})" if names else "")


def listed(names: Collection[str], most: int = 5) -> str:
    """Name the first ones."""
    return printable(first_of(names, most), one_line=True)

"""Where the content of a checkpoint has its state dict, and whether its weights are raw or averaged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from verifix.errors import CheckpointError, UsageError
from verifix.io.checkpoints.loading import is_extra

RAW = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "checkpoint")
"""Keys under which a state dict is looked for, in this order, also one inside another."""

EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema")
"""The same for weights that were averaged over training steps."""

WEIGHTS = ("auto", "raw", "ema")
AVERAGED = {"ema", "swa", "avg", "average", "averaged"}
"""Parts of names that stand for averaged weights."""


@dataclass(frozen=True)
class Found:
    """A state dict in a checkpoint.

    Attributes
    ----------
    kind
        "raw", or "ema" for weights that were averaged over training steps.
    place
        Keys that lead to it, joined by slashes; empty if it is the content itself.
    tensors
        Its tensors by key.
    entries
        All of it, with extra state and the versions of modules.
    """

    kind: str
    place: str
    tensors: Mapping[str, Tensor]
    entries: Mapping[str, Any]

    @property
    def matchable(self) -> dict[str, Any]:
        """The tensors and the extra state by key."""
        return {key: value for key, value in self.entries.items() if key in self.tensors or is_extra(key)}


def find_states(content: object, place: str = "") -> dict[str, Found]:
    """Find the state dicts in the content of a checkpoint.

    Parameters
    ----------
    content
        What was read.
    place
        Keys that led to it, each followed by a slash.

    Returns
    -------
    dict
        At most one of each kind, "raw" and "ema".
    """
    if not isinstance(content, Mapping) or place.count("/") > 5:  # a file may hold itself
        return {}
    found: dict[str, Found] = {}
    for nest, ema in _nests(content):
        for kind, state in find_states(content.get(nest), f"{place}{nest}/").items():
            kept = "ema" if ema else kind
            found.setdefault(kept, replace(state, kind=kept))
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    lone = _only_one(content, place)
    if found or any(len(state.tensors) > len(tensors) for state in lone.values()):  # a loss may be a tensor as well
        return found or lone
    return {"raw": Found("raw", place.rstrip("/"), tensors, content)} if tensors else {}


def _nests(content: Mapping[Any, Any]) -> list[tuple[str, bool]]:
    """Return the keys to look under, and whether each holds averaged weights."""
    if "current_model_state" in content:  # Lightning's WeightAveraging puts the average where the weights usually are
        return [("current_model_state", False), ("state_dict", True)]
    return [*((nest, False) for nest in RAW), *((nest, True) for nest in EMA)]


def _only_one(content: Mapping[Any, Any], place: str) -> dict[str, Found]:
    """Return the one entry that holds named tensors and nothing else, under whatever key."""
    states = [
        (key, value)
        for key, value in content.items()
        if isinstance(value, Mapping)
        and value
        and all(isinstance(k, str) for k in value)
        and all(isinstance(v, Tensor) or is_extra(k) for k, v in value.items())
        and any(isinstance(v, Tensor) for v in value.values())
    ]
    if len(states) != 1:
        return {}
    ((key, entries),) = states
    tensors = {k: v for k, v in entries.items() if isinstance(v, Tensor)}
    kind = "ema" if says_averaged(str(key)) else "raw"
    return {kind: Found(kind, f"{place}{key}", tensors, entries)}


def says_averaged(name: str) -> bool:
    """Tell whether a key or a prefix is that of averaged weights."""
    return not AVERAGED.isdisjoint(re.split(r"[._]", name))


def choose_state(found: Mapping[str, Found], weights: str, path: object) -> Found:
    """Choose between raw and averaged weights.

    Parameters
    ----------
    found
        State dicts by kind, at least one.
    weights
        "raw", "ema", or "auto" for the averaged ones if there are any: timm's `load_checkpoint` and Lightning's
        `load_from_checkpoint` read these too.
    path
        The file, for the message.

    Returns
    -------
    Found
        The state dict. For "ema" it may be the raw one, which may hold averaged weights under a prefix.

    Raises
    ------
    UsageError
        If `weights` is none of these.
    CheckpointError
        If there are only averaged ones, and raw ones are wanted.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"weights is {weights!r}; it must be 'auto', 'raw' or 'ema'")
    for kind in ("raw",) if weights == "raw" else ("ema", "raw"):
        if kind in found:
            return found[kind]
    raise CheckpointError(f"{path} holds averaged weights only; omit --weights raw, or give another checkpoint")

"""Models that this process has corrected, so that a second correction of them can be refused."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from verifix.errors import CheckpointError
from verifix.model.tensors import tensor_digest

_LOCK = threading.Lock()
_CORRECTED: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""SHA-256 of the corrected weights of each model, for as long as the model is there."""


def remember_corrected(model: nn.Module, original: Mapping[str, Tensor], corrected: Mapping[str, Tensor]) -> None:
    """Remember which weights of a model a correction has changed, for `refuse_corrected`.

    Parameters
    ----------
    model
        The model, which holds the corrected weights. The reference to it is weak.
    original, corrected
        Weights by name, before and after. Those that are zero or were not changed are no sign of a correction.
    """
    before = {tensor_digest(tensor) for tensor in original.values()}
    after = {tensor_digest(tensor) for tensor in corrected.values() if tensor.any()}
    with _LOCK:
        _CORRECTED[model] = after - before


def refuse_corrected(parameters: Mapping[str, Tensor]) -> None:
    """Refuse to correct weights that a model of this process has from a correction.

    Parameters
    ----------
    parameters
        Current values, by name.

    Raises
    ------
    CheckpointError
        Naming the first such weight: correcting twice is not correcting once.
    """
    with _LOCK:
        known = set().union(*_CORRECTED.values())
    for name, parameter in parameters.items():
        if tensor_digest(parameter) in known:
            raise CheckpointError(
                f"{name!r} has been corrected already; correct the original weights (undo_ restores them)"
            )

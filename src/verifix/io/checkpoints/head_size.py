"""How many outputs the head in a checkpoint has, where a model was built with another number."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

MOST_HEADS = 6
"""Weights and biases that may differ: those of one head, and of the auxiliary ones that some models have."""


def outputs_in(state: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """Return the number of outputs in a checkpoint if it is all that keeps the weights from fitting a model.

    Parameters
    ----------
    state
        The tensors of the checkpoint by key; a prefix may stand before the model's own names.
    model
        The model, built with another number of outputs.

    Returns
    -------
    int or None
        The first axis of the few weights of the model that differ from those of their name in that axis alone; None if
        none differ, others do as well, or they do not agree.
    """
    different: set[int] = set()
    names = []
    for name, own in model.state_dict().items():
        found = state.get(name)
        if found is None:
            same = [key for key in state if key.endswith(f".{name}")]
            found = state[min(same, key=len)] if same else None
        if found is None or not isinstance(own, Tensor) or found.shape == own.shape:
            continue
        if found.ndim != own.ndim or own.ndim == 0 or found.shape[1:] != own.shape[1:]:
            return None
        different.add(int(found.shape[0]))
        names.append(name)
    return different.pop() if len(different) == 1 and len(names) <= MOST_HEADS else None

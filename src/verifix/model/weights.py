"""A model's parameters and buffers by name, and running it with other values of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

Update = Mapping[str, Tensor]
"""New values of parameters and buffers, by qualified name."""


def tensors_of(model: nn.Module, *, every_name: bool = False) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by qualified name: shared ones once, or under every name."""
    return {
        **dict(model.named_parameters(remove_duplicate=not every_name)),
        **dict(model.named_buffers(remove_duplicate=not every_name)),
    }


@contextmanager
def weights_replaced(model: nn.Module, update: Update) -> Iterator[None]:
    """Run a model with other weights for as long as the context lasts; the old ones come back in any case.

    Values are copied into the tensors' own memory, so that ties, views and fused copies of them follow.

    Parameters
    ----------
    model
        The model.
    update
        New values of some of its parameters and buffers.

    Yields
    ------
    None
    """
    tensors = tensors_of(model)
    before = {name: tensors[name].detach().clone() for name in update}
    try:
        for name, value in update.items():
            tensors[name].data.copy_(value)
        yield
    finally:
        for name, value in before.items():
            tensors[name].data.copy_(value)

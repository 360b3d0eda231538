"""Which tensors no sample has a part in: made of parameters, buffers and numbers alone.

A table of relative positions, projected by a layer, gives the same rows in every batch, however many samples it has.
Such rows have to be known, so that the result does not depend on the size of batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from verifix.model.tensors import storage_of, tensors_in


class Constants:
    """Follow what functions make of parameters and buffers.

    Parameters
    ----------
    model
        The model; its parameters and buffers are where constants begin. What no function call shows is taken to
        depend on the samples.
    """

    def __init__(self, model: nn.Module) -> None:
        own = (*model.parameters(), *model.buffers())
        self._storages = {storage for x in own if (storage := storage_of(x))}
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether no sample has a part in any of these tensors."""
        return all(x in self._made or storage_of(x) in self._storages for x in tensors)

    def note(self, tensors: Sequence[Tensor], result: Any, *, constant: bool, writes: bool) -> None:
        """Remember what a function has made, or written into its first argument.

        Parameters
        ----------
        tensors
            All tensors among its arguments.
        result
            What it returned.
        constant
            Whether they all were constants before it ran; see `holds`.
        writes
            Whether it writes into its first tensor.
        """
        if writes and tensors and not constant:
            self._forget(storage_of(tensors[0]))
        for made in tensors_in(result) if constant else ():
            self._made[made] = True

    def _forget(self, storage: int) -> None:
        """Let go of all that lies in memory which now depends on the samples."""
        self._storages.discard(storage)
        for x in [x for x in self._made if storage_of(x) == storage]:
            del self._made[x]

"""Moments that wait in a temporary file until they are asked for."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from verifix.capture.layer import Layer
from verifix.capture.memory_plan import spelled
from verifix.errors import VerifixError
from verifix.moments import Moments


class Spill:
    """A temporary file without a name: nothing is left of it, however the process ends.

    Parameters
    ----------
    size
        Bytes that it will take.

    Raises
    ------
    VerifixError
        If there is less space than that.
    """

    def __init__(self, size: int) -> None:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if size > free:
            raise VerifixError(
                f"the moments take {spelled(size)} in a temporary file, but {folder} has {spelled(free)} left; set "
                "TMPDIR to a folder with more space, or give more memory"
            )
        self._file: Any = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as what is in it
        weakref.finalize(self, self._file.close)

    def put(self, x: Tensor) -> int:
        """Write a tensor, and return where it begins."""
        start: int = self._file.seek(0, 2)
        self._file.write(x.detach().cpu().contiguous().flatten().numpy().data.cast("B"))
        return start

    def get(self, start: int, like: Tensor) -> Tensor:
        """Read a tensor of the shape and dtype of `like`."""
        x = torch.empty(like.shape, dtype=like.dtype)
        self._file.seek(start)
        self._file.readinto(x.flatten().numpy().data.cast("B"))
        return x


class SpilledTable(Mapping[Layer, Moments]):
    """Moments of one fold by layer; each is read anew whenever it is asked for.

    Parameters
    ----------
    spill
        The file.
    """

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._places: dict[Layer, tuple[Moments, list[int], torch.device]] = {}

    def update(self, table: Mapping[Layer, Moments]) -> None:
        """Write the moments of some layers."""
        written: dict[int, tuple[Moments, list[int], torch.device]] = {}  # layers may share their moments
        for layer, moments in table.items():
            if id(moments) not in written:
                places = [self._spill.put(x) for x in moments.tensors]
                husk = moments.holding([x.to("meta") for x in moments.tensors])
                written[id(moments)] = husk, places, moments.tensors[0].device
            self._places[layer] = written[id(moments)]

    def __getitem__(self, layer: Layer) -> Moments:
        husk, places, device = self._places[layer]
        tensors = zip(places, husk.tensors, strict=True)
        return husk.holding([self._spill.get(start, like).to(device) for start, like in tensors])

    def __contains__(self, layer: object) -> bool:
        return layer in self._places

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

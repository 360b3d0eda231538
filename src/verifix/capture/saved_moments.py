"""Files of moments, with the model and the samples that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verifix.capture.collect import Collected, moments_device
from verifix.capture.layer import Layer
from verifix.errors import CheckpointError, DataError, UsageError
from verifix.model.tensors import sealed, unsealed
from verifix.moments import Moments
from verifix.options import VERIFIED_FROM
from verifix.storage.tensors import read_safetensors, write_safetensors

MOST_ROWS = 2**53
"""Numbers of rows below this are exact in float64."""

ROUNDING = 1e-9
"""What moments may be off by, relative to their trace."""

FORMAT = "verifix-moments-4"


@dataclass(frozen=True)
class SavedMoments:
    """Moments of verified samples, with the model and the samples that they belong to.

    Attributes
    ----------
    moments
        By layer.
    model
        Digest of the uncorrected model; see `model_digest`.
    digests
        SHA-256 of each sample that they include.
    preparation
        How the samples were preprocessed, in words; None if unknown.
    verified_from
        Where the samples came from, as in `verifix.correct`; None if unknown.
    origin
        The file that the moments were read from; empty if there is none.
    """

    moments: Mapping[Layer, Moments]
    model: str
    digests: frozenset[bytes]
    preparation: str | None = None
    verified_from: str | None = None
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Check that `verified_from` is known."""
        if self.verified_from not in (None, *VERIFIED_FROM):
            raise UsageError(
                f"{self.origin or 'the saved moments'} has verified_from {self.verified_from!r}; it must be one of "
                f"{', '.join(map(repr, VERIFIED_FROM))}, or None if unknown"
            )

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write to a safetensors file.

        Parameters
        ----------
        path
            Where to; must not exist.
        force
            Overwrite what is there.

        Returns
        -------
        Path
            The path.
        """
        return write_safetensors(path, *self.content(), force=force)

    def content(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return what `save` writes: tensors by name, and one entry of metadata in JSON."""
        tensors, layers = {}, []
        for i, (layer, moments) in enumerate(self.moments.items()):
            if moments.rows is not None:
                tensors[f"{i}.rows"] = moments.rows
            else:
                tensors[f"{i}.gram"] = moments.gram
            layers.append({**asdict(layer), "n": moments.n})
        about = {
            "format": FORMAT,
            "model": self.model,
            "layers": layers,
            "samples": sorted(digest.hex() for digest in self.digests),
            "preparation": self.preparation,
            "verified_from": self.verified_from,
        }
        return tensors, sealed(tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> SavedMoments:
        """Read a file that `save` wrote.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        SavedMoments
            Its content.

        Raises
        ------
        CheckpointError
            If the file is not a moments file, or damaged.
        UsageError
            If this version does not know its `verified_from`.
        """
        tensors, metadata = read_safetensors(path)
        about = unsealed(path, tensors, metadata, "moments", FORMAT, "--save-moments")
        try:
            table = {}
            for i, entry in enumerate(about["layers"]):
                table[_layer(entry)] = _loaded(tensors, i, entry)
            digests = frozenset(map(bytes.fromhex, about["samples"]))
            said = (about.get("preparation"), about.get("verified_from"))  # not in files of earlier versions
            model = about["model"]
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is not a verifix moments file ({error!r}); write one with --save-moments"
            ) from None
        return cls(table, model, digests, *said, origin=str(path))

    def check_preparation(self, preparation: str) -> None:
        """Refuse moments of samples that were preprocessed differently.

        Parameters
        ----------
        preparation
            How samples are preprocessed now, in words.

        Raises
        ------
        DataError
            If the preprocessing differs. Moments with unknown preprocessing are accepted.
        """
        if self.preparation is not None and self.preparation != preparation:
            raise DataError(
                f"{self.origin or 'the saved moments'} holds moments of samples that were preprocessed differently "
                f"({self.preparation}) than now ({preparation}); preprocess both alike, or collect the moments again"
            )

    def check_origin(self, verified_from: str) -> None:
        """Refuse moments of training or trusted samples in a correction from better samples.

        Parameters
        ----------
        verified_from
            Where the samples of the correction come from, as in `verifix.correct`.

        Raises
        ------
        DataError
            If the moments are from such samples. Moments of unknown origin are accepted.
        """
        worth = VERIFIED_FROM.index
        if self.verified_from is not None and worth(self.verified_from) > worth(verified_from):
            raise DataError(
                f"{self.origin or 'the saved moments'} holds moments of samples with verified_from "
                f"{self.verified_from!r}, but now it is {verified_from!r}; combined samples count as "
                f"{self.verified_from!r}: give that, or omit the moments"
            )

    def checked(self, path: object, model: str, collected: Collected, device: torch.device) -> dict[Layer, Moments]:
        """Return the moments if they fit a model, and no sample is counted twice.

        Parameters
        ----------
        path
            Where the moments came from, for the message.
        model
            Digest of the uncorrected model.
        collected
            Its layers, and the new verified samples.
        device
            Where the model is.

        Returns
        -------
        dict
            The moments by layer, on the device where moments live.

        Raises
        ------
        CheckpointError
            If they belong to other weights, or lack a layer.
        DataError
            If they already hold some of the samples.
        """
        if self.model != model:
            raise CheckpointError(f"{path} holds moments of other weights; collect them again with this model")
        missing = [layer.parameter for layer in collected.layers if layer not in self.moments]
        if missing:
            raise CheckpointError(
                f"{path} has no moments of {', '.join(missing[:3])}; collect them with the same include and exclude"
            )
        for layer in collected.layers:
            here, new = self.moments[layer], next(table[layer] for table in collected.folds if layer in table)
            if (here.groups, here.width) != (new.groups, new.width):
                raise CheckpointError(f"{path} is damaged: {layer.parameter!r} has another shape; collect them again")
        again = len(self.digests & collected.digests)
        if again:
            raise DataError(f"{again} of the verified samples are in {path} already; give only new ones")
        return {layer: self.moments[layer].to(moments_device(device)) for layer in collected.layers}


def _layer(entry: Mapping[str, Any]) -> Layer:
    known = {field.name: entry[field.name] for field in fields(Layer)}
    return Layer(**known | {"shape": tuple(entry["shape"]), "stride": tuple(entry["stride"])})


def _loaded(tensors: Mapping[str, Tensor], i: int, entry: Mapping[str, Any]) -> Moments:
    n, rows = entry["n"], tensors.get(f"{i}.rows")
    if rows is not None:
        _require(rows.ndim == 3 and rows.shape[1] == n and _sound(rows), f"{i}.rows")
        return Moments(rows)
    gram = tensors[f"{i}.gram"]
    fits = type(n) is int and 0 < n < MOST_ROWS and gram.ndim == 3 and gram.shape[1] == gram.shape[2]
    _require(fits and _sound(gram) and _positive(gram), f"{i}.gram")
    return Moments.from_gram(gram, n)


def _positive(gram: Tensor) -> bool:
    """Tell whether matrices ``[groups, d, d]`` are symmetric and positive semidefinite, but for rounding."""
    size = gram.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    even = (gram - gram.mT).abs() <= ROUNDING * size
    raised = gram + ROUNDING * size * torch.eye(gram.shape[-1], dtype=gram.dtype)
    alive = size.flatten() > 0
    solvable = torch.linalg.cholesky_ex(raised[alive]).info == 0
    return bool(even.all() and solvable.all() and not gram[~alive].any())


def _sound(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float64 and bool(torch.isfinite(tensor).all())


def _require(holds: bool, name: str) -> None:
    if not holds:
        raise ValueError(f"{name} holds impossible moments")

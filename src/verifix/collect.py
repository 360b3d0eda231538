"""One pass of the uncorrected model over samples: the moments of every layer, per fold; and their files."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verifix.borrow import run_model, to_device
from verifix.capture import Account, Bias, Census, Layer, Selection, intercepting
from verifix.errors import CheckpointError, DataError, UsageError
from verifix.files import read_safetensors, write_safetensors
from verifix.finite import check_finite, first_tensor
from verifix.layers import AmbiguousBatchError
from verifix.moments import Moments, merge
from verifix.options import VERIFIED_FROM
from verifix.progress import progress_bar
from verifix.samples import Batch, Samples, tensor_bytes

FORMAT = "verifix-moments-2"


@dataclass(frozen=True)
class Collected:
    """Moments of every layer and fold, and the account of every parameter.

    Attributes
    ----------
    folds
        For each fold, the moments by layer.
    accounts
        What becomes of each parameter of two or more dimensions.
    digests
        SHA-256 of each sample that went in.
    padded
        Indices of the largest batch with padding; empty if there was none.
    biases
        The bias of each layer that has one of its own.
    """

    folds: tuple[Mapping[Layer, Moments], ...]
    accounts: tuple[Account, ...]
    digests: frozenset[bytes] = field(default_factory=frozenset)
    padded: tuple[int, ...] = ()
    biases: Mapping[Layer, Bias] = field(default_factory=dict)

    @property
    def layers(self) -> list[Layer]:
        """The layers to correct, in the order of first use."""
        chosen = {layer for account in self.accounts if account.status == "corrected" for layer in account.layers}
        return [layer for layer in dict.fromkeys(itertools.chain(*self.folds)) if layer in chosen]

    def moments(self, layer: Layer, folds: Iterable[int], earlier: Mapping[Layer, Moments]) -> Moments:
        """Merge one layer's moments over some folds, and those of earlier samples."""
        # Adding the other folds up is total − fold without the cancellation: what none of them excites stays zero.
        parts = [self.folds[fold][layer] for fold in folds if layer in self.folds[fold]]
        if layer in earlier:
            parts.append(earlier[layer])
        return merge(parts) if parts else next(table[layer] for table in self.folds if layer in table).empty()


def collect(
    model: nn.Module,
    samples: Samples,
    folds: Sequence[Sequence[int]],
    *,
    batch_size: int,
    device: torch.device,
    selection: Selection | None = None,
    padding: bool = True,
    show: bool = False,
) -> Collected:
    """Run a borrowed model once over all folds; batches never cross folds.

    Parameters
    ----------
    model
        The uncorrected model, borrowed (see `verifix.borrow.borrowed`), on `device`.
    samples
        The verified samples.
    folds
        Indices of each fold.
    batch_size
        Samples per batch.
    device
        Where the model is.
    selection
        Layers wanted; all by default.
    padding
        Whether token ids that contain the model's pad id need a mask.
    show
        Whether to show progress.

    Returns
    -------
    Collected
        One set of moments per fold.

    Raises
    ------
    DataError
        If the rows of a layer are not finite.
    """
    tables: list[dict[Layer, Moments]] = [{} for _ in folds]
    current: dict[Layer, Moments] = {}

    def sink(layer: Layer, rows: Tensor) -> None:
        if counting:
            add_rows(current, layer, rows)

    counting = False
    padded: tuple[int, ...] = ()
    selection = selection or Selection()
    watched = intercepting(model, sink, selection, padding=padding)
    with progress_bar("moments", sum(map(len, folds)), show) as bar, watched as census:
        first = next(samples.batches([folds[0][0]], 1))  # shows what grows with the number of samples
        _run(model, samples, first, census, device)
        counting = True
        for table, fold in zip(tables, folds, strict=True):
            current = table
            for batch in samples.batches(fold, batch_size):
                padded = max(padded, _run(model, samples, batch, census, device), key=len)
                bar.update(len(batch.labels))
    accounts = tuple(census.accounts(model, selection))
    _condense(tables)
    digests = frozenset(samples.digests)
    return Collected(tuple(tables), accounts, digests, padded, census.biases)


def _run(model: nn.Module, samples: Samples, batch: Batch, census: Census, device: torch.device) -> tuple[int, ...]:
    """Run one batch, in parts if its samples and tokens could be mistaken for each other; return padded indices."""
    census.begin(len(batch.labels))
    try:
        logits = first_tensor(run_model(model, to_device(batch.inputs, device), samples.forward))
        if isinstance(logits, Tensor) and not logits.is_nested:
            check_finite(logits, batch.indices)
    except AmbiguousBatchError:
        if census.batch.counted:
            raise
        half = len(batch.indices) // 2
        halves = (batch.indices[:half], batch.indices[half:])
        parts = [part for half in halves for part in samples.batches(half, len(half))]
        return max((_run(model, samples, part, census, device) for part in parts), key=len)
    return tuple(batch.indices) if census.batch.padded is not None else ()


def _condense(tables: Sequence[Mapping[Layer, Moments]]) -> None:
    """Multiply a fold's rows out once, if the rows of the others are too many for the dual form anyway."""
    for layer in {layer for table in tables for layer in table}:
        parts = [table[layer] for table in tables if layer in table]
        if sum(part.n for part in parts) - max(part.n for part in parts) >= parts[0].width:
            for part in parts:
                part.condense_()


def add_rows(table: dict[Layer, Moments], layer: Layer, rows: Tensor) -> None:
    """Add rows ``[groups, n, d_in]`` to the moments of their layer; refuse rows that are not finite."""
    rows = rows.to(moments_device(rows.device))
    if layer in table:
        table[layer].add_(rows)
    else:
        table[layer] = Moments(rows)
    if not torch.isfinite(table[layer].trace).all():
        raise DataError(
            f"the input of layer {layer.parameter!r} contains NaN or Inf; check the weights before it and the inputs"
        )


def moments_device(device: torch.device) -> torch.device:
    """Moments live where the model is, unless that device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def model_digest(model: nn.Module) -> str:
    """Return one SHA-256 (hexadecimal) over the names and values of all parameters and buffers."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            total.update(tensor_bytes(tensor))
    return total.hexdigest()


@dataclass(frozen=True)
class SavedMoments:
    """Moments of verified samples, with what they belong to: one model, and these samples.

    Attributes
    ----------
    moments
        By layer.
    model
        Digest of the uncorrected model; see `model_digest`.
    digests
        SHA-256 of each sample that went in.
    preparation
        How the samples were prepared, in words; None if nobody said.
    verified_from
        Where the samples came from, as in `verifix.correct`; None if nobody said.
    origin
        The file that this was read from; empty if it was read from none.
    """

    moments: Mapping[Layer, Moments]
    model: str
    digests: frozenset[bytes]
    preparation: str | None = None
    verified_from: str | None = None
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Check that it is known what samples from there are worth."""
        if self.verified_from not in (None, *VERIFIED_FROM):
            raise UsageError(
                f"{self.origin or 'the saved moments'} has verified_from {self.verified_from!r}; it must be one of "
                f"{', '.join(map(repr, VERIFIED_FROM))}, or None if nobody knows"
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
                tensors |= {f"{i}.scatter": moments.scatter, f"{i}.mean": moments.mean}
            layers.append({**asdict(layer), "n": moments.n})
        about = {
            "format": FORMAT,
            "model": self.model,
            "layers": layers,
            "samples": sorted(digest.hex() for digest in self.digests),
            "preparation": self.preparation,
            "verified_from": self.verified_from,
        }
        return tensors, {"verifix": json.dumps(about, sort_keys=True)}

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
            If it is not such a file, or damaged.
        UsageError
            If its samples are from where this version knows nothing of.
        """
        tensors, metadata = read_safetensors(path)
        try:
            about = json.loads(metadata["verifix"])
            if about["format"] != FORMAT:
                raise KeyError(about["format"])
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
        """Refuse moments of samples that were prepared in another way.

        Parameters
        ----------
        preparation
            How samples are prepared now, in words.

        Raises
        ------
        DataError
            If that was another way. Moments of which nobody said how are taken as they are.
        """
        if self.preparation is not None and self.preparation != preparation:
            raise DataError(
                f"{self.origin or 'the saved moments'} holds moments of samples prepared in another way "
                f"({self.preparation}) than now ({preparation}); prepare both alike, or collect the moments again"
            )

    def check_origin(self, verified_from: str) -> None:
        """Refuse moments of samples that are worth less than what the samples of now are said to be.

        Parameters
        ----------
        verified_from
            Where the samples of now come from, as in `verifix.correct`.

        Raises
        ------
        DataError
            If they are. Moments of which nobody said where they come from are taken as they are.
        """
        worth = VERIFIED_FROM.index
        if self.verified_from is not None and worth(self.verified_from) > worth(verified_from):
            raise DataError(
                f"{self.origin or 'the saved moments'} holds moments of samples with verified_from "
                f"{self.verified_from!r}, and now it is {verified_from!r}; both together are worth no more than "
                f"{self.verified_from!r}: give that, or leave the moments out"
            )

    def checked(self, path: object, model: str, collected: Collected, device: torch.device) -> dict[Layer, Moments]:
        """Return the moments if they fit a model, and no sample is counted twice.

        Parameters
        ----------
        path
            Where they came from, for the message.
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
    scatter, mean = tensors[f"{i}.scatter"], tensors[f"{i}.mean"]
    fits = type(n) is int and n > 0 and scatter.ndim == 3 and scatter.shape == (*mean.shape, mean.shape[-1])
    _require(fits and _sound(scatter) and _sound(mean), f"{i}.scatter")
    _require(bool((scatter.diagonal(dim1=1, dim2=2) >= 0).all()), f"{i}.scatter")
    return Moments.from_scatter(scatter, mean, n)


def _sound(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float64 and bool(torch.isfinite(tensor).all())


def _require(holds: bool, name: str) -> None:
    if not holds:
        raise ValueError(f"{name} does not hold the moments of any rows")

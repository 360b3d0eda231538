"""The verified samples: read once, checked, split into folds, and handed out by index in a fixed order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from verifix.errors import DataError, UsageError
from verifix.progress import progress_bar

MEMORY_BYTES = 2**30
"""Samples are kept in memory after the first reading if they take no more than this."""

DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True)
class Batch:
    """Inputs ``[n, ...]`` and labels ``[n]`` (int64) of consecutive samples."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Source:
    """How samples are read by index.

    Attributes
    ----------
    dataset
        Yields ``(input, label)`` by index.
    collate
        Turns a list of those into a batch.
    batch_size
        The user's own, or None if it is free.
    options
        Further settings of the DataLoader that reads.
    """

    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any] = default_collate
    batch_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def read(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Yield the samples at `indices`, in that order, `batch_size` at a time.

        Parameters
        ----------
        indices
            Which samples.
        batch_size
            How many at a time.

        Yields
        ------
        Batch
            Inputs and labels, checked for form.

        Raises
        ------
        DataError
            If they are no pair of inputs and labels, or do not fit into one batch.
        """
        loader = DataLoader(
            Subset(self.dataset, [int(i) for i in indices]),
            batch_size=batch_size,
            collate_fn=self.collate,
            **self.options,
        )
        try:
            yield from map(_batch, loader)
        except (RuntimeError, TypeError) as error:
            if "stack expects" in str(error) or "default_collate" in str(error):
                line = " ".join(str(error).split())
                raise DataError(
                    f"inputs of different shape or kind cannot be put into one batch ({line}); "
                    "bring them to one size, or give a DataLoader with a collate_fn"
                ) from None
            raise


@dataclass(frozen=True)
class Samples:
    """Samples that can be read again by index, in any order, as often as needed.

    Attributes
    ----------
    source
        Where they are read from.
    batch_size
        The user's own, or None if it is free.
    labels
        int64 ``[n]``.
    digests
        One SHA-256 per sample, of its input as the model gets it.
    """

    source: Source
    batch_size: int | None
    labels: Tensor
    digests: tuple[bytes, ...]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def batches(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Yield the samples at `indices`, in that order, `batch_size` at a time."""
        yield from self.source.read(indices, batch_size)

    def digest(self) -> str:
        """Return one SHA-256 (hexadecimal) of all inputs and labels, whatever their order."""
        rows = sorted(
            d + int(y).to_bytes(8, "little", signed=True) for d, y in zip(self.digests, self.labels, strict=True)
        )
        return hashlib.sha256(b"".join(rows)).hexdigest()


def read_samples(verified: Any, batch_size: int | str = "auto", show: bool = False) -> Samples:
    """Read all samples once: check them, fingerprint them, and keep them in memory if they are small.

    Parameters
    ----------
    verified
        A DataLoader (its dataset is re-read by index in order, so its shuffling does not matter), a Dataset, or a
        pair of tensors ``inputs [n, ...]``, ``labels [n]``.
    batch_size
        A number, or "auto": the DataLoader's own if there is one.
    show
        Whether to show progress.

    Returns
    -------
    Samples
        The samples.

    Raises
    ------
    DataError
        If an input or a label is not usable; the message names the first such sample.
    UsageError
        If `verified` is none of the accepted things.
    """
    source = _source(verified)
    dataset, own_size = source.dataset, source.batch_size
    if batch_size != "auto":
        own_size = int(batch_size)
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise DataError("the verified set is empty; it must hold at least 2 samples")
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    digests: list[bytes] = []
    held = 0
    with progress_bar("reading samples", count, show) as bar:
        for batch in source.read(range(count), own_size or DEFAULT_BATCH_SIZE):
            _check_finite(batch.inputs, len(digests))
            digests.extend(_digest(x) for x in batch.inputs)
            labels.append(batch.labels)
            held += batch.inputs.numel() * batch.inputs.element_size()
            if held <= MEMORY_BYTES:
                inputs.append(batch.inputs)
            else:
                inputs.clear()
            bar.update(len(batch.labels))
    y = torch.cat(labels)
    if len(y) != count:
        raise DataError(
            f"the verified set has {count} samples, but batches of it hold {len(y)}; its collate_fn drops some"
        )
    if held <= MEMORY_BYTES and len({x.shape[1:] for x in inputs}) == 1:
        source = Source(TensorDataset(torch.cat(inputs), y))
    return Samples(source, own_size, y, tuple(digests))


def check_labels(labels: Tensor, outputs: int) -> None:
    """Check that labels name outputs of the model.

    Parameters
    ----------
    labels
        int64 ``[n]``.
    outputs
        Number of logits per sample; one means a binary classifier with labels 0 and 1.

    Raises
    ------
    DataError
        Naming the first label out of range.
    """
    classes = 2 if outputs == 1 else outputs
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(wrong):
        i = int(wrong[0])
        raise DataError(
            f"sample {i} has label {int(labels[i])}, but the model has {outputs} output{'s' * (outputs != 1)}, so "
            f"labels go from 0 to {classes - 1}; {len(wrong)} of {len(labels)} labels do not fit"
        )


def split_folds(samples: Samples, folds: int, seed: int) -> list[np.ndarray[Any, Any]]:
    """Split samples into folds: balanced by label, exact duplicates together.

    Parameters
    ----------
    samples
        The verified samples.
    folds
        How many, at least 2.
    seed
        Seed of the shuffle.

    Returns
    -------
    list of ndarray
        Sorted indices of each fold; together they are all samples.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups = _group_ids(samples.digests)
    if len(set(groups)) < folds:
        raise DataError(
            f"{len(samples)} samples have only {len(set(groups))} different inputs, too few for {folds} folds; "
            "verify more samples, or give alpha as a number"
        )
    labels = samples.labels.numpy()
    values, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    strata = np.where(counts < folds, -1, values)[inverse]  # rare classes are spread evenly as one
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with _quiet_about_rare_classes():
        return [np.sort(held) for _, held in splitter.split(np.zeros(len(labels)), strata, groups)]


def _group_ids(digests: Sequence[bytes]) -> list[int]:
    first: dict[bytes, int] = {}
    return [first.setdefault(digest, len(first)) for digest in digests]


@contextmanager
def _quiet_about_rare_classes() -> Iterator[None]:
    """Silence the warning about classes with fewer samples than folds, which are spread as far as they go."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        yield


def _source(verified: Any) -> Source:
    """Return how to read what the user gave."""
    if isinstance(verified, (tuple, list)) and len(verified) == 2:
        return Source(_from_pair(*verified))
    if isinstance(verified, DataLoader):
        return _from_loader(verified)
    if isinstance(verified, IterableDataset):
        return Source(_from_stream(DataLoader(verified, batch_size=None)))
    sequence = hasattr(verified, "__getitem__") and hasattr(verified, "__len__")
    if sequence and not isinstance(verified, (Mapping, str, bytes)):
        return Source(verified)
    raise UsageError(
        f"verified is a {type(verified).__name__}; it must be a DataLoader, a Dataset with __len__ and __getitem__, "
        "or a pair of tensors (inputs, labels)"
    )


def _from_loader(loader: DataLoader[Any]) -> Source:
    """Read the samples that a loader draws, each once and by index, so that its order does not matter."""
    streams = loader.batch_size is None and loader.batch_sampler is None
    if streams or isinstance(loader.dataset, IterableDataset):
        return Source(_from_stream(loader), batch_size=loader.batch_size)
    options: dict[str, Any] = {"num_workers": loader.num_workers, "worker_init_fn": loader.worker_init_fn}
    if loader.num_workers:
        options["multiprocessing_context"] = loader.multiprocessing_context
    indices = _drawn(loader)
    dataset = loader.dataset if indices is None else Subset(loader.dataset, indices)
    return Source(dataset, loader.collate_fn, loader.batch_size, options)


def _drawn(loader: DataLoader[Any]) -> list[int] | None:
    """Return the indices that a loader's sampler draws, sorted, or None for all of them."""
    sampler = loader.sampler
    if loader.batch_size is not None and _draws_all(sampler):
        return None
    batches: Any = loader.batch_sampler if loader.batch_size is None else [sampler]
    owners = (loader, sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    generators = [g for s in owners if isinstance(g := getattr(s, "generator", None), torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        return sorted({int(i) for batch in batches for i in batch})
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _draws_all(sampler: Any) -> bool:
    """Tell the samplers that draw every sample once; what `drop_last` would leave out by chance is read as well."""
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    return type(sampler) is SequentialSampler


def _from_pair(inputs: Any, labels: Any) -> TensorDataset:
    inputs, labels = _as_tensor(inputs, "inputs"), _as_tensor(labels, "labels")
    if inputs.ndim == 0 or labels.ndim == 0 or len(inputs) != len(labels):
        raise DataError(
            f"inputs of shape {list(inputs.shape)} and labels of shape {list(labels.shape)} do not pair up; "
            "give one label per input"
        )
    return TensorDataset(inputs, _as_labels(labels, len(inputs)))


def _from_stream(loader: DataLoader[Any]) -> TensorDataset:
    """Read a stream, which has no indices, into memory: batches, or single samples if it does not batch."""
    batches = []
    for item in loader:
        inputs, labels = _pair(item)
        labels = _as_tensor(labels, "labels")
        single = labels.ndim == 0 and isinstance(inputs, Tensor)
        batches.append(_batch((inputs.unsqueeze(0), labels[None]) if single else item))
    if not batches:
        raise DataError("the verified set is empty; it must hold at least 2 samples")
    shapes = sorted({tuple(b.inputs.shape[1:]) for b in batches})
    if len(shapes) > 1:
        raise DataError(f"inputs have the shapes {shapes[0]} and {shapes[1]}; bring them to one size")
    return TensorDataset(torch.cat([b.inputs for b in batches]), torch.cat([b.labels for b in batches]))


def _pair(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        what = f"{len(item)} parts" if isinstance(item, (tuple, list)) else type(item).__name__
        raise DataError(f"a batch of the verified set has {what}; it must be a pair (inputs, labels)")
    return item[0], item[1]


def _batch(item: Any) -> Batch:
    inputs, labels = _pair(item)
    if not isinstance(inputs, Tensor):
        raise DataError(f"the inputs of a batch are a {type(inputs).__name__}; they must be one tensor [n, ...]")
    return Batch(inputs, _as_labels(_as_tensor(labels, "labels"), len(inputs)))


def _as_tensor(values: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"the {what} cannot be made a tensor ({line}); give numbers in one array") from None


def _as_labels(labels: Tensor, count: int) -> Tensor:
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(f"labels are {labels.dtype}; they must be class indices (integers)")
    if labels.shape != (count,):
        raise DataError(
            f"labels have shape {list(labels.shape)} for {count} inputs; they must be class indices of shape [{count}]"
        )
    return labels.long()


def _check_finite(inputs: Tensor, start: int) -> None:
    if not inputs.is_floating_point():
        return
    finite = torch.isfinite(inputs.reshape(len(inputs), -1)).all(dim=1)
    if not finite.all():
        i = start + int((~finite).nonzero()[0])
        raise DataError(f"the input of sample {i} contains NaN or Inf; every input must be finite")


def _digest(x: Tensor) -> bytes:
    head = f"{x.dtype}{tuple(x.shape)}".encode()
    return hashlib.sha256(head + tensor_bytes(x)).digest()


def tensor_bytes(x: Tensor) -> bytes:
    """Return a tensor's values as bytes, the same wherever it lies in memory."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

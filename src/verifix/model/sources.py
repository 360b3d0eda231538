"""Read samples from whatever the user has: loaders, data sets, streams, tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from verifix.errors import DataError, UsageError, one_line
from verifix.model.labels import as_tensor, class_indices, parted
from verifix.model.rows import Rows, are_rows, rows_of
from verifix.model.tensors import tensors_in
from verifix.options import MOST_SAMPLES

DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True)
class Batch:
    """Inputs of n samples (a tensor ``[n, …]``, or a nest of them), their labels ``[n]`` (int64) and indices."""

    inputs: Any
    labels: Tensor
    indices: Sequence[int] = ()


def collate(items: list[Any]) -> Any:
    """Put samples into a batch as torch does, but lists of numbers as tensors, which torch would take apart."""
    return default_collate([_with_tensors(item) for item in items])


def _with_tensors(item: Any) -> Any:
    """Return a sample with its lists of numbers, as the datasets library has them, as tensors."""
    if isinstance(item, list):
        numbers = _first_leaf(item)
        try:
            return torch.tensor(item) if isinstance(numbers, (int, float)) else item
        except (ValueError, TypeError):  # of different lengths
            return item
    if isinstance(item, Mapping):
        return {name: _with_tensors(value) for name, value in item.items()}
    return tuple(map(_with_tensors, item)) if type(item) is tuple else item


def _first_leaf(item: Any) -> Any:
    while isinstance(item, list) and item:
        item = item[0]
    return item


@dataclass(frozen=True)
class Source:
    """How samples are read by index.

    Attributes
    ----------
    dataset
        Yields samples by index: ``(input, label)``, or whatever `collate` understands.
    collate
        Turns a list of those into a batch.
    batch_size
        The user's own, or None if it is free.
    options
        Further settings of the DataLoader that reads.
    picked_by
        How these samples were picked by their given labels, which nobody verified; empty if they were not.
    prepared
        How samples became inputs, in words; empty if whoever gave them did it.
    """

    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any] = collate
    batch_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    picked_by: str = ""
    prepared: str = ""

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
        own = [int(i) for i in indices]
        try:
            for i, item in enumerate(self._collated(own, batch_size)):
                yield replace(batch_of(item), indices=own[i * batch_size : (i + 1) * batch_size])
        except (RuntimeError, TypeError) as error:
            if "stack expects" in str(error) or "default_collate" in str(error):
                raise DataError(
                    f"inputs of different shape or type cannot be put into one batch ({one_line(error)}); "
                    "bring them to one shape, or give a DataLoader with a collate_fn"
                ) from None
            raise

    def _collated(self, indices: Sequence[int], batch_size: int) -> Iterator[Any]:
        if isinstance(self.dataset, Items) and not self.options:  # in memory: a loader takes longer than a small model
            rows = rows_of(self.dataset) if self.collate is collate else None
            for start in range(0, len(indices), batch_size):
                some = indices[start : start + batch_size]
                yield self.collate([self.dataset[i] for i in some]) if rows is None else rows.batch(some)
        else:
            own = Subset(self.dataset, indices)
            yield from DataLoader(own, batch_size=batch_size, collate_fn=self.collate, **self.options)

    def items(self, batch_size: int) -> Iterator[Any]:
        """Yield all samples as they are before they are put into batches."""
        yield from itertools.chain.from_iterable(
            DataLoader(self.dataset, batch_size=batch_size, collate_fn=_as_they_are, **self.options)
        )


def _as_they_are(items: list[Any]) -> list[Any]:
    return items


def ask_dataset(dataset: Any, index: int, question: str) -> Any:
    """Ask the data set beneath any subsets about one of its samples; None if it is none of ours or does not know."""
    while isinstance(dataset, Subset):
        index, dataset = int(dataset.indices[index]), dataset.dataset
    answer = getattr(dataset, question, None) if type(dataset).__module__.startswith("verifix.") else None
    return answer(index) if callable(answer) else None


def remark_of(dataset: Any) -> str:
    """Return what the data set beneath any subsets says of the samples that were read, if it is one of ours."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    remark = getattr(dataset, "remark", None) if type(dataset).__module__.startswith("verifix.") else None
    return str(remark()) if callable(remark) else ""


class Items(Dataset[Any]):
    """Samples in memory, and what the data set that they were read from knew about them."""

    def __init__(self, items: Sequence[Any], prints: Sequence[bytes] = (), origin: Any = None) -> None:
        self.items = items
        self.prints = prints
        self.origin = origin

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def place(self, index: int) -> Any:
        """Return where a sample stands, if the data set says so."""
        return ask_dataset(self.origin, index, "place")

    def group(self, index: int) -> Any:
        """Return the group of a sample, if the data set has been asked to read it."""
        return ask_dataset(self.origin, index, "group")

    def fingerprint(self, index: int) -> bytes | None:
        """Return the digest of what a sample was before it was prepared, if the data set knows."""
        return self.prints[index] if self.prints else None


def source_of(verified: Any, most: int = MOST_SAMPLES, stream: Callable[[list[Any]], Source] | None = None) -> Source:
    """Return how to read what the user gave.

    Parameters
    ----------
    verified
        As in `verifix.correct`.
    most
        How many items of a stream are read.
    stream
        Takes the items of a stream; `from_stream` by default.

    Returns
    -------
    Source
        The samples.
    """
    if isinstance(verified, Source):
        return verified
    _refuse_tables(verified)
    if isinstance(verified, (tuple, list)) and len(verified) == 2:
        if all(isinstance(part, (tuple, list)) and len(part) == 2 for part in verified) and isinstance(verified, list):
            raise UsageError(
                "verified is a list of two pairs, which may mean two samples, or inputs and labels; give tensors, or "
                "more samples"
            )
        return from_pair(*verified)
    if isinstance(verified, Mapping):
        return from_pair(*_pair(verified))
    if isinstance(verified, DataLoader):
        return _from_loader(verified, most, stream or from_stream)
    if isinstance(verified, IterableDataset):
        return (stream or from_stream)(_ended(DataLoader(verified, batch_size=None, collate_fn=_as_it_is), most))
    if hasattr(verified, "__getitem__") and hasattr(verified, "__len__") and not isinstance(verified, (str, bytes)):
        return Source(verified)
    raise UsageError(
        f"verified is a {type(verified).__name__}; it must be a DataLoader, a Dataset with __len__ and __getitem__, "
        "or a pair of tensors (inputs, labels)"
    )


def _refuse_tables(verified: Any) -> None:
    """Refuse a frame, a table or several splits as a whole: which columns are inputs is not known."""
    kind = type(verified).__name__
    if hasattr(verified, "columns") and (hasattr(verified, "to_numpy") or hasattr(verified, "to_pandas")):
        raise UsageError(
            f"verified is a {kind}, whose columns of inputs and labels are not told apart; give a pair such as "
            "(table[[inputs]], table[label])"
        )
    if isinstance(verified, Mapping) and verified and all(hasattr(x, "column_names") for x in verified.values()):
        splits = ", ".join(map(str, verified))
        raise UsageError(f"verified is a {kind} with the splits {splits}; give one of them, such as verified['test']")


def _ended(stream: Iterable[Any], most: int) -> list[Any]:
    """Read a stream to its end, or refuse it if there seems to be none."""
    items = list(itertools.islice(stream, most + 1))
    if len(items) > most:
        raise DataError(
            f"the stream goes on after {most:,} items, but verified samples are read as a whole; give a stream that "
            "ends, for example with itertools.islice, or set max_samples= (--max-samples) to more"
        )
    return items


def _as_it_is(item: Any) -> Any:
    return item


def _from_loader(loader: DataLoader[Any], most: int, stream: Callable[[list[Any]], Source]) -> Source:
    """Read the samples that a loader draws, each once and by index, so that its order does not matter."""
    options: dict[str, Any] = {"num_workers": loader.num_workers, "worker_init_fn": loader.worker_init_fn}
    if loader.num_workers:
        options["multiprocessing_context"] = loader.multiprocessing_context
    if loader.batch_size is None and loader.batch_sampler is None:
        return stream(_ended(loader, most))
    if isinstance(loader.dataset, IterableDataset):
        items = _ended(DataLoader(loader.dataset, batch_size=None, collate_fn=_as_it_is, **options), most)
        return Source(Items(items), _collate_of(loader), loader.batch_size)
    indices = _drawn(loader)
    dataset = loader.dataset if indices is None else Subset(loader.dataset, indices)
    return Source(dataset, _collate_of(loader), loader.batch_size, options)


def _collate_of(loader: DataLoader[Any]) -> Callable[[list[Any]], Any]:
    return collate if loader.collate_fn is default_collate else loader.collate_fn


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


def from_pair(inputs: Any, labels: Any) -> Source:
    """Read inputs ``[n, ...]``, or a dictionary or tuple of them, with labels ``[n]``."""
    labels = as_tensor(labels, "labels")
    several = isinstance(inputs, tuple) and all(isinstance(x, Tensor) and x.ndim > 0 for x in inputs)
    if isinstance(inputs, Mapping):
        inputs = {name: as_tensor(x, f"inputs {name!r}") for name, x in inputs.items()}
    elif not several:
        inputs = as_tensor(inputs, "inputs")
    for x in tensors_in(inputs):
        if x.ndim == 0 or labels.ndim == 0 or x.size(0) != len(labels):
            raise DataError(
                f"inputs of shape {_shape(x)} and labels of shape {list(labels.shape)} do not match; "
                "give one label per input"
            )
    labels = class_indices(labels, len(labels))
    if isinstance(inputs, Tensor) and inputs.is_nested:
        return Source(Items(list(zip(inputs.unbind(), labels, strict=True))), _jagged)
    if are_rows(inputs, labels):
        return Source(Items(Rows(inputs, labels)))
    return Source(Items([(tree_map(lambda x, i=i: x[i], inputs), y) for i, y in enumerate(labels)]))


def _shape(x: Tensor) -> list[Any]:
    return ["nested", x.size(0)] if x.is_nested else list(x.shape)


def _jagged(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Put samples of different length into one nested tensor."""
    nested = torch.nested.nested_tensor([x for x, _ in items], layout=torch.jagged)
    return nested, torch.stack([y for _, y in items])


def from_stream(items: list[Any]) -> Source:
    """Read a stream, which has no indices, into memory: single samples, or batches, which are taken apart."""
    if not items:
        raise DataError("the verified set is empty; it must hold at least 2 samples")
    _, labels = _pair(items[0])
    if as_tensor(labels, "labels").ndim == 0:
        return Source(Items(items))
    singles = []
    for item in items:
        batch = batch_of(item)
        singles += [
            (tree_map(lambda x, i=i: x[i] if isinstance(x, Tensor) else x, batch.inputs), y)
            for i, y in enumerate(batch.labels)
        ]
    return Source(Items(singles))


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        return parted(item)
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        what = f"{len(item)} parts" if isinstance(item, (tuple, list)) else type(item).__name__
        raise DataError(
            f"a batch of the verified set has {what}; it must be a pair (inputs, labels), where inputs may be a tuple "
            "or a dictionary of tensors, or a dictionary with the labels in it"
        )
    return item[0], item[1]


def batch_of(item: Any) -> Batch:
    """Tell inputs and labels of a batch apart.

    Parameters
    ----------
    item
        A pair ``(inputs, labels)``, or a dictionary that holds the labels as well.

    Returns
    -------
    Batch
        Inputs as a tensor, a tuple or a dictionary, and labels ``[n]``.

    Raises
    ------
    DataError
        If it is neither, or the labels are no class indices.
    """
    inputs, labels = _pair(item)
    labels = as_tensor(labels, "labels")
    inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    tensors = tensors_in(inputs)
    if not tensors or not isinstance(inputs, (Tensor, tuple, list, dict)):
        raise DataError(
            f"the inputs of a batch are a {type(inputs).__name__} without tensors; they must be a tensor [n, ...], or "
            "a tuple or dictionary of tensors"
        )
    count = tensors[0].size(0) if isinstance(inputs, Tensor) and inputs.ndim else len(labels) if labels.ndim else 1
    return Batch(inputs, class_indices(labels, count))

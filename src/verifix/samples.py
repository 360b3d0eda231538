"""The verified samples: read once, checked, split into folds, and handed out by index in a fixed order."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_map
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from verifix.borrow import Forward, tensors_in
from verifix.errors import DataError, UsageError, VerifixError
from verifix.progress import progress_bar

MEMORY_BYTES = 2**30
"""Samples are kept in memory after the first reading if they take no more than this."""

DEFAULT_BATCH_SIZE = 64


LABEL_KEYS = ("labels", "label", "targets", "target", "y")
"""Where the labels of a batch that is a dictionary stand."""


@dataclass(frozen=True)
class Batch:
    """Inputs of n samples (a tensor ``[n, …]``, or a nest of them), their labels ``[n]`` (int64) and indices."""

    inputs: Any
    labels: Tensor
    indices: Sequence[int] = ()


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
    """

    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any] = default_collate
    batch_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    picked_by: str = ""

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
        loader = DataLoader(Subset(self.dataset, own), batch_size=batch_size, collate_fn=self.collate, **self.options)
        try:
            for i, item in enumerate(loader):
                yield replace(batch_of(item), indices=own[i * batch_size : (i + 1) * batch_size])
        except (RuntimeError, TypeError) as error:
            if "stack expects" in str(error) or "default_collate" in str(error):
                line = " ".join(str(error).split())
                raise DataError(
                    f"inputs of different shape or kind cannot be put into one batch ({line}); "
                    "bring them to one size, or give a DataLoader with a collate_fn"
                ) from None
            raise

    def items(self, batch_size: int) -> Iterator[Any]:
        """Yield all samples as they are before they are put into batches."""
        yield from itertools.chain.from_iterable(
            DataLoader(self.dataset, batch_size=batch_size, collate_fn=_as_they_are, **self.options)
        )


def _as_they_are(items: list[Any]) -> list[Any]:
    return items


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
        One SHA-256 per sample, of its input as the model gets it in a batch of one, which has no padding.
    forward
        ``(model, inputs) → output``, where calling the model is not all; None for calling it.
    prints
        One SHA-256 per sample, of what it was before it was prepared (the pixels of an image, upright), where the
        data set knows; else empty.
    origin
        The data set that knows where its samples stand, for messages, and which sample of it each one is.
    """

    source: Source
    batch_size: int | None
    labels: Tensor
    digests: tuple[bytes, ...]
    forward: Forward | None = None
    prints: tuple[bytes, ...] = ()
    origin: tuple[Any, Sequence[int]] = (None, ())

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    @property
    def fingerprints(self) -> tuple[bytes, ...]:
        """What tells copies: `prints`, or where there are none `digests`."""
        return self.prints or self.digests

    def where(self, index: int) -> str:
        """Return the file, row or line of a sample; empty if that is not known."""
        dataset, numbers = self.origin
        return (_ask(dataset, numbers[index], "place") if dataset is not None else None) or ""

    def text(self, index: int) -> str | None:
        """Return the text that a sample was made from; None if it was none."""
        dataset, numbers = self.origin
        text: str | None = None if dataset is None else _ask(dataset, numbers[index], "text")
        return text

    def place(self, index: int) -> str:
        """Return which sample it is, and where it stands if that is known."""
        where = self.where(index)
        return f"sample {index}" + (f" ({where})" if where else "")

    def subset(self, indices: Sequence[int]) -> Samples:
        """Return some of the samples, in the order of `indices`."""
        dataset, numbers = self.origin
        return replace(
            self,
            source=replace(self.source, dataset=Subset(self.source.dataset, list(indices))),
            labels=self.labels[list(indices)],
            digests=tuple(self.digests[i] for i in indices),
            prints=tuple(self.prints[i] for i in indices) if self.prints else (),
            origin=(dataset, [numbers[i] for i in indices] if dataset is not None else ()),
        )

    def batches(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Yield the samples at `indices`, in that order, `batch_size` at a time."""
        yield from self.source.read(indices, batch_size)

    def digest(self) -> str:
        """Return one SHA-256 (hexadecimal) of all inputs and labels, whatever their order."""
        rows = sorted(
            d + int(y).to_bytes(8, "little", signed=True) for d, y in zip(self.digests, self.labels, strict=True)
        )
        return hashlib.sha256(b"".join(rows)).hexdigest()


def read_samples(
    verified: Any, batch_size: int | str = "auto", show: bool = False, forward: Forward | None = None
) -> Samples:
    """Read all samples once: check them, fingerprint them, and keep them in memory if they are small.

    Parameters
    ----------
    verified
        A DataLoader (its dataset is re-read by index in order, so its shuffling does not matter), a Dataset, or a
        pair of tensors ``inputs [n, ...]``, ``labels [n]``; inputs may be a dictionary or a tuple of tensors. Samples
        that have been read are taken as they are.
    batch_size
        A number, or "auto": the DataLoader's own if there is one.
    show
        Whether to show progress.
    forward
        As in `Samples`.

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
    if isinstance(verified, Samples):
        own_size = verified.batch_size if batch_size == "auto" else int(batch_size)
        return replace(verified, batch_size=own_size, forward=forward or verified.forward)
    source = _source(verified)
    dataset, own_size = source.dataset, source.batch_size
    if batch_size != "auto":
        own_size = int(batch_size)
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise DataError("the verified set is empty; it must hold at least 2 samples")
    items: list[Any] = []
    labels: list[Tensor] = []
    digests: list[bytes] = []
    prints: list[bytes | None] = []
    held = 0
    with progress_bar("reading samples", count, show) as bar:
        for item in source.items(own_size or DEFAULT_BATCH_SIZE):
            batch = _alone(source, item, len(digests))
            prints.append(_ask(dataset, len(digests), "fingerprint"))
            digests.append(_digest(batch.inputs))
            labels.append(batch.labels)
            held += sum(x.numel() * x.element_size() for x in tensors_in(batch.inputs))
            if held <= MEMORY_BYTES:
                items.append(item)
            else:
                items.clear()
            bar.update()
    known = tuple(each for each in prints if each is not None)
    known = known if len(known) == count else ()
    if held <= MEMORY_BYTES:
        source = Source(_Items(items, known, dataset), source.collate, picked_by=source.picked_by)
    return Samples(source, own_size, torch.cat(labels), tuple(digests), forward, known, (dataset, range(count)))


def _ask(dataset: Any, index: int, question: str) -> Any:
    """Ask the data set beneath any subsets about one of its samples; None if it is none of ours or does not know."""
    while isinstance(dataset, Subset):
        index, dataset = int(dataset.indices[index]), dataset.dataset
    answer = getattr(dataset, question, None) if type(dataset).__module__.startswith("verifix.") else None
    return answer(index) if callable(answer) else None


def _alone(source: Source, item: Any, number: int) -> Batch:
    """Return one sample as a batch of its own, checked."""
    try:
        batch = batch_of(source.collate([item]))
    except VerifixError as error:
        raise type(error)(f"sample {number}: {error}") from None
    except Exception as error:  # the user's own code, or that of torch on items it cannot put together
        line = " ".join(str(error).split())
        raise DataError(
            f"sample {number} cannot be made a batch of its own ({type(error).__name__}: {line}); give samples of "
            "tensors and numbers, or a DataLoader with a collate_fn that takes any number of them"
        ) from error
    if len(batch.labels) != 1:
        raise DataError(
            f"sample {number} alone gives a batch of {len(batch.labels)}; the collate_fn must keep every sample, once"
        )
    for x in tensors_in(batch.inputs):
        if x.is_floating_point() and not all(torch.isfinite(part).all() for part in _parts(x)):
            raise DataError(f"the input of sample {number} contains NaN or Inf; every input must be finite")
    return batch


def _parts(x: Tensor) -> Sequence[Tensor]:
    return x.unbind() if x.is_nested else [x]


class _Items(Dataset[Any]):
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
        return _ask(self.origin, index, "place")

    def fingerprint(self, index: int) -> bytes | None:
        return self.prints[index] if self.prints else None


def check_labels(labels: Tensor, outputs: int, where: Callable[[int], str] | None = None) -> None:
    """Check that labels name outputs of the model.

    Parameters
    ----------
    labels
        int64 ``[n]``.
    outputs
        Number of logits per sample; one means a binary classifier with labels 0 and 1.
    where
        Says where a sample stands, by its index, or nothing if that is not known.

    Raises
    ------
    DataError
        Naming the first label out of range.
    """
    classes = 2 if outputs == 1 else outputs
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(wrong):
        i = int(wrong[0])
        place = f" ({where(i)})" if where is not None and where(i) else ""
        raise DataError(
            f"sample {i} has label {int(labels[i])}{place}, but the model has {outputs} "
            f"output{'s' * (outputs != 1)}, so labels go from 0 to {classes - 1}; {len(wrong)} of {len(labels)} labels "
            "do not fit"
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

    groups = _group_ids(samples.fingerprints)
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
    if isinstance(verified, Source):
        return verified
    if isinstance(verified, (tuple, list)) and len(verified) == 2:
        if all(isinstance(part, (tuple, list)) and len(part) == 2 for part in verified) and isinstance(verified, list):
            raise UsageError(
                "verified is a list of two pairs, which may be two samples, or inputs and labels; give tensors, or "
                "more samples"
            )
        return _from_pair(*verified)
    if isinstance(verified, Mapping):
        return _from_pair(*_pair(verified))
    if isinstance(verified, DataLoader):
        return _from_loader(verified)
    if isinstance(verified, IterableDataset):
        return _from_stream(list(DataLoader(verified, batch_size=None, collate_fn=_as_it_is)))
    if hasattr(verified, "__getitem__") and hasattr(verified, "__len__") and not isinstance(verified, (str, bytes)):
        return Source(verified)
    raise UsageError(
        f"verified is a {type(verified).__name__}; it must be a DataLoader, a Dataset with __len__ and __getitem__, "
        "or a pair of tensors (inputs, labels)"
    )


def _as_it_is(item: Any) -> Any:
    return item


def _from_loader(loader: DataLoader[Any]) -> Source:
    """Read the samples that a loader draws, each once and by index, so that its order does not matter."""
    options: dict[str, Any] = {"num_workers": loader.num_workers, "worker_init_fn": loader.worker_init_fn}
    if loader.num_workers:
        options["multiprocessing_context"] = loader.multiprocessing_context
    if loader.batch_size is None and loader.batch_sampler is None:
        return _from_stream(list(loader))
    if isinstance(loader.dataset, IterableDataset):
        items = list(DataLoader(loader.dataset, batch_size=None, collate_fn=_as_it_is, **options))
        return Source(_Items(items), loader.collate_fn, loader.batch_size)
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


def _from_pair(inputs: Any, labels: Any) -> Source:
    labels = _as_tensor(labels, "labels")
    several = isinstance(inputs, tuple) and all(isinstance(x, Tensor) and x.ndim > 0 for x in inputs)
    if isinstance(inputs, Mapping):
        inputs = {name: _as_tensor(x, f"inputs {name!r}") for name, x in inputs.items()}
    elif not several:
        inputs = _as_tensor(inputs, "inputs")
    for x in tensors_in(inputs):
        if x.ndim == 0 or labels.ndim == 0 or x.size(0) != len(labels):
            raise DataError(
                f"inputs of shape {_shape(x)} and labels of shape {list(labels.shape)} do not pair up; "
                "give one label per input"
            )
    labels = _as_labels(labels, len(labels))
    if isinstance(inputs, Tensor) and inputs.is_nested:
        return Source(_Items(list(zip(inputs.unbind(), labels, strict=True))), _jagged)
    return Source(_Items([(tree_map(lambda x, i=i: x[i], inputs), y) for i, y in enumerate(labels)]))


def _shape(x: Tensor) -> list[Any]:
    return ["nested", x.size(0)] if x.is_nested else list(x.shape)


def _jagged(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Put samples of different length into one nested tensor."""
    nested = torch.nested.nested_tensor([x for x, _ in items], layout=torch.jagged)
    return nested, torch.stack([y for _, y in items])


def _from_stream(items: list[Any]) -> Source:
    """Read a stream, which has no indices, into memory: single samples, or batches, which are taken apart."""
    if not items:
        raise DataError("the verified set is empty; it must hold at least 2 samples")
    _, labels = _pair(items[0])
    if _as_tensor(labels, "labels").ndim == 0:
        return Source(_Items(items))
    singles = []
    for item in items:
        batch = batch_of(item)
        singles += [
            (tree_map(lambda x, i=i: x[i] if isinstance(x, Tensor) else x, batch.inputs), y)
            for i, y in enumerate(batch.labels)
        ]
    return Source(_Items(singles))


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        keys = [key for key in LABEL_KEYS if key in item]
        if len(keys) != 1:
            raise DataError(
                f"a batch of the verified set has the keys {', '.join(map(str, item))}; the labels must stand under "
                f"one of {', '.join(LABEL_KEYS)}"
            )
        return {key: value for key, value in item.items() if key != keys[0]}, item[keys[0]]
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
    labels = _as_tensor(labels, "labels")
    inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    tensors = tensors_in(inputs)
    if not tensors or not isinstance(inputs, (Tensor, tuple, list, dict)):
        raise DataError(
            f"the inputs of a batch are a {type(inputs).__name__} without tensors; they must be a tensor [n, ...], or "
            "a tuple or dictionary of tensors"
        )
    count = tensors[0].size(0) if isinstance(inputs, Tensor) and inputs.ndim else len(labels) if labels.ndim else 1
    return Batch(inputs, _as_labels(labels, count))


def _as_tensor(values: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"the {what} cannot be made a tensor ({line}); give numbers in one array") from None


def _as_labels(labels: Tensor, count: int) -> Tensor:
    if labels.is_floating_point() or labels.is_complex():
        broken = torch.isfinite(labels).logical_not().reshape(-1).nonzero().flatten().tolist()
        first = f", and number {broken[0]} of them is {labels.reshape(-1)[broken[0]].item()}" if broken else ""
        raise DataError(f"labels are {labels.dtype}{first}; they must be class indices (integers)")
    if labels.shape != (count,):
        raise DataError(
            f"labels have shape {list(labels.shape)} for {count} inputs; they must be class indices of shape [{count}]"
        )
    return labels.long()


def _digest(inputs: Any) -> bytes:
    """Return the SHA-256 of one sample's inputs, by the names they have in a dictionary."""
    if isinstance(inputs, Tensor) and not inputs.is_nested:
        return _tensor_digest(inputs[0])
    total = hashlib.sha256()
    for path, leaf in sorted(tree_flatten_with_path(inputs)[0], key=lambda pair: str(pair[0])):
        if isinstance(leaf, Tensor):
            total.update(f"{path}".encode() + b"".join(_tensor_digest(part) for part in leaf.unbind()))
        else:
            total.update(f"{path}{leaf!r}".encode())
    return total.digest()


def _tensor_digest(x: Tensor) -> bytes:
    head = f"{x.dtype}{tuple(x.shape)}".encode()
    return hashlib.sha256(head + tensor_bytes(x)).digest()


def tensor_bytes(x: Tensor) -> bytes:
    """Return a tensor's values as bytes, the same wherever it lies in memory."""
    x = x if x.layout is torch.strided else x.to_dense()
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

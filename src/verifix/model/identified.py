"""What tells samples apart, and whether they are usable: looked at one by one, or where they are rows, in blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path
from torch.utils.data import Subset

from verifix.errors import DataError, VerifixError, one_line
from verifix.model.rows import Rows, blocks, rows_of
from verifix.model.sources import Batch, Source, ask_dataset, batch_of, collate
from verifix.model.tensors import tensor_bytes, tensor_sha256, tensors_in


@dataclass(frozen=True)
class Identified:
    """What is known of samples once they have been read.

    Attributes
    ----------
    labels
        Given classes.
    digests, prints, columns
        As in `Samples`.
    """

    labels: list[int]
    digests: tuple[bytes, ...]
    prints: tuple[bytes, ...]
    columns: list[Mapping[str, bytes]]


def identified(
    source: Source,
    chunk: range,
    batch_size: int,
    keep: Callable[[int, Any], None],
    done: Callable[[int], object],
) -> Identified:
    """Read samples, check them, and take their digests.

    Parameters
    ----------
    source
        Where they are read from.
    chunk
        Which.
    batch_size
        How many are read at a time.
    keep
        Is given each sample with its index, unless they are rows in memory.
    done
        Is told how many more are read.

    Returns
    -------
    Identified
        In the order of `chunk`.

    Raises
    ------
    DataError
        Naming the first sample that cannot be used.
    """
    rows = rows_of(source.dataset) if source.collate is collate else None
    labels, digests, prints, columns = list[int](), list[bytes](), list[Any](), list[Mapping[str, bytes]]()
    if rows is not None and isinstance(rows.inputs, Tensor):
        for own, found in _blockwise(source, rows, chunk):
            labels += own
            digests += found
            prints += [ask_dataset(source.dataset, i, "fingerprint") for i in range(len(prints), len(labels))]
            done(len(own))
    else:
        part = replace(source, dataset=Subset(source.dataset, chunk))
        for index, item in zip(chunk, part.items(batch_size), strict=True):
            batch = alone(source, item, index)
            labels.append(int(batch.labels[0]))
            digests.append(input_digest(batch.inputs))
            prints.append(ask_dataset(source.dataset, index, "fingerprint"))
            if isinstance(batch.inputs, Mapping):
                columns.append(columns_of(batch.inputs))
            if rows is None:
                keep(index, item)
            done(1)
    known = tuple(each for each in prints if each is not None)
    return Identified(labels, tuple(digests), known if len(known) == len(chunk) else (), columns)


def _blockwise(source: Source, rows: Rows, chunk: range) -> Iterator[tuple[list[int], list[bytes]]]:
    """Yield labels and digests of rows, block by block: the same as one by one, but a hundred times faster."""
    for block in blocks(len(chunk)):
        own = slice(chunk.start + block.start, chunk.start + block.stop)
        x, labels = rows.batch(own)
        try:
            batch = batch_of((x, labels))
            usable = len(batch.labels) == len(labels) and not _broken(x)
        except VerifixError:
            usable = False
        if not usable:  # one by one, to say which
            alones = [alone(source, rows[i], i) for i in range(own.start, own.stop)]
            yield [int(each.labels[0]) for each in alones], [input_digest(each.inputs) for each in alones]
            continue
        head = f"{x.dtype}{tuple(x.shape[1:])}".encode()
        size = x[0].numel() * x.element_size()
        content = memoryview(tensor_bytes(x))
        pieces = (content[i * size : (i + 1) * size] for i in range(len(x)))
        yield batch.labels.tolist(), [hashlib.sha256(head + piece).digest() for piece in pieces]


def _broken(x: Tensor) -> bool:
    return x.is_floating_point() and not bool(torch.isfinite(x).all())


def alone(source: Source, item: Any, number: int) -> Batch:
    """Return one sample as a batch of its own, checked."""
    try:
        batch = batch_of(source.collate([item]))
    except VerifixError as error:
        raise type(error)(f"sample {number}: {error}") from None
    except Exception as error:  # the user's own code, or that of torch on items it cannot put together
        line = one_line(error)
        raise DataError(
            f"sample {number} cannot be batched on its own ({type(error).__name__}: {line}); give samples of tensors "
            "and numbers, or a DataLoader with a collate_fn that accepts any number of samples"
        ) from error
    if len(batch.labels) != 1:
        raise DataError(
            f"sample {number} alone gives a batch of {len(batch.labels)}; the collate_fn must keep each sample, once"
        )
    for x in tensors_in(batch.inputs):
        if x.is_floating_point() and not all(torch.isfinite(part).all() for part in _parts(x)):
            raise DataError(f"the input of sample {number} contains NaN or Inf; every input must be finite")
    return batch


def _parts(x: Tensor) -> Sequence[Tensor]:
    return x.unbind() if x.is_nested else [x]


def columns_of(inputs: Mapping[str, Any]) -> dict[str, bytes]:
    """Return what identifies each part of one sample's inputs."""
    return {name: _content(inputs[name], name) for name in inputs}


def combined(columns: Mapping[str, bytes]) -> bytes:
    """Return one SHA-256 of the parts of a sample's inputs."""
    return hashlib.sha256(b"".join(columns[name] for name in sorted(columns))).digest()


def input_digest(inputs: Any) -> bytes:
    """Return the SHA-256 of one sample's inputs, by the names they have in a dictionary."""
    if isinstance(inputs, Tensor) and not inputs.is_nested:
        return tensor_sha256(inputs[0])
    return combined(columns_of(inputs)) if isinstance(inputs, Mapping) else hashlib.sha256(_content(inputs)).digest()


def _content(inputs: Any, name: str = "") -> bytes:
    """Return what identifies a nest of tensors of one sample, and whatever else is in it, by its place in the nest."""
    parts = []
    for path, leaf in sorted(tree_flatten_with_path(inputs)[0], key=lambda pair: str(pair[0])):
        if isinstance(leaf, Tensor):
            parts.append(f"{name}{path}".encode() + b"".join(tensor_sha256(part) for part in leaf.unbind()))
        else:
            parts.append(f"{name}{path}{leaf!r}".encode())
    return b"".join(parts)

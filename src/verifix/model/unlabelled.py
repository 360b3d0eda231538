"""Inputs whose true labels are not known, beside the verified samples: some with given labels, some with none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import ConcatDataset, Dataset

from verifix.errors import DataError, UsageError, VerifixError
from verifix.model.labels import LABEL_KEYS, UNKNOWN
from verifix.model.run import Forward, named_arguments
from verifix.model.samples import Samples, apart_from, check_labels, read_samples, together
from verifix.model.sources import Items, Source, collate, from_pair, from_stream, source_of
from verifix.model.tensors import tensors_in
from verifix.options import MOST_SAMPLES, CorrectOptions


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Inputs without verified labels.

    Attributes
    ----------
    samples
        The inputs. All of their labels are `UNKNOWN`, also in batches.
    given
        int64 ``[n]``, the labels that nobody verified, `UNKNOWN` where there is none; None if no sample has one.
    """

    samples: Samples
    given: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def about(self) -> dict[str, Any]:
        """Return how many there are, how many of them have a given label, and the SHA-256 of all, as plain data."""
        known = self.samples if self.given is None else replace(self.samples, labels=self.given)
        noisy = 0 if self.given is None else int((self.given != UNKNOWN).sum())
        return {"unlabelled": len(self), "unlabelled_noisy": noisy, "unlabelled_sha256": known.digest()}

    def check_given(self, outputs: int) -> None:
        """Refuse given labels that name no output of the model; `outputs` is the number of its logits."""
        if self.given is not None:
            known = (self.given != UNKNOWN).nonzero().flatten()
            with named("noisy"):
                check_labels(self.given[known], outputs, lambda i: self.samples.where(int(known[i])))


def read_unlabelled(
    options: CorrectOptions, forward: Forward | None, model: nn.Module, verified: Samples, digests: frozenset[bytes]
) -> tuple[Unlabelled | None, list[str]]:
    """Read all inputs beside the verified samples, and leave out what is verified: it counts already where it may.

    Parameters
    ----------
    options
        What to read, and how.
    forward
        As in `Samples`.
    model
        What they are for.
    verified
        The verified samples.
    digests
        SHA-256 of verified samples that are known by their moments alone; see `Samples.digests`.

    Returns
    -------
    unlabelled : Unlabelled or None
        None if there are none, or none is left.
    remarks : list of str
        How many were left out.

    Raises
    ------
    DataError
        If they are not usable, or have another form than the verified samples; names the first such sample.
    """
    inputs, noisy = (
        None if data is None else _read(data, what, options, forward).reaching(model)
        for what, data in (("unlabelled", options.unlabelled), ("noisy", options.noisy))
    )
    remarks: list[str] = []
    if noisy is not None:
        noisy = _left(noisy, "noisy", [verified], digests, remarks, model)
    if inputs is not None:
        inputs = _left(inputs, "unlabelled", [verified], digests, remarks, model)
    if inputs is not None and noisy is not None:
        inputs = left_of(inputs, [noisy], frozenset(), "unlabelled inputs are also noisy samples", remarks)
    return combined(inputs, noisy), remarks


def _read(data: Any, what: str, options: CorrectOptions, forward: Forward | None) -> Samples:
    with named(what):
        if what == "unlabelled":
            data = _blank(data) if isinstance(data, Samples) else inputs_source(data, options.max_samples)
        elif not isinstance(data, Samples):
            data = source_of(data, options.max_samples)
        return read_samples(data, options.batch_size, options.progress, forward, options.max_samples)


def _left(
    samples: Samples,
    what: str,
    verified: Sequence[Samples],
    digests: frozenset[bytes],
    remarks: list[str],
    model: nn.Module,
) -> Samples | None:
    with named(what):
        check_like(samples, verified[0], model)
    return left_of(samples, verified, digests, f"{what} samples are verified as well", remarks)


def left_of(
    samples: Samples, used: Sequence[Samples], digests: frozenset[bytes], why: str, remarks: list[str]
) -> Samples | None:
    """Return the samples that are not among others, or None if all are, and add a remark on how many were left out."""
    kept = apart_from(samples, used, digests)
    if len(kept) < len(samples):
        remarks.append(f"{len(samples) - len(kept)} of the {len(samples)} {why}, and were left out.")
        return part_of(samples, kept) if kept else None
    return samples


def inputs_source(data: Any, most: int = MOST_SAMPLES) -> Source:
    """Return how to read inputs alone.

    Parameters
    ----------
    data
        A tensor or array ``[n, ...]``, or a dictionary of them; a Dataset or a DataLoader of inputs; or samples with
        labels in any form that `verifix.correct` takes, of which the labels are ignored. Of a pair, or an item that is
        one, the second part is taken for the labels, and may be None.
    most
        How many items of a stream are read.

    Returns
    -------
    Source
        Its batches have the label `UNKNOWN`.

    Raises
    ------
    DataError
        If the second part of a pair cannot be labels, or inputs differ in number.
    UsageError
        If it is none of these.
    """
    if isinstance(data, Source):
        return without_labels(data)
    if isinstance(data, Mapping) and not any(hasattr(x, "column_names") for x in data.values()):
        return _from_inputs({name: x for name, x in data.items() if name not in LABEL_KEYS})
    pair = isinstance(data, (tuple, list)) and len(data) == 2
    if pair and not (isinstance(data, list) and all(isinstance(x, (tuple, list)) and len(x) == 2 for x in data)):
        inputs, labels = data
        _check_ignored(labels, _count(inputs))
        return _from_inputs(inputs)
    if isinstance(data, tuple):
        if len(data) != 1:
            raise UsageError(
                f"unlabelled is a tuple of {len(data)}; give inputs alone, or a pair (inputs, labels), where inputs "
                "may be a tuple of tensors and labels None"
            )
        return _from_inputs(data[0])
    if hasattr(data, "__array__") and not hasattr(data, "columns"):
        return _from_inputs(data)
    return without_labels(source_of(data, most, _stream))


def without_labels(source: Source) -> Source:
    """Return the same samples with the label `UNKNOWN`, whether items have labels or not."""
    if getattr(source.collate, "func", None) is _inputs_alone:
        return source
    return replace(source, collate=partial(_inputs_alone, source.collate))


def _blank(samples: Samples) -> Samples:
    labels = torch.full_like(samples.labels, UNKNOWN)
    return replace(samples, labels=labels, source=without_labels(samples.source))


@contextmanager
def named(what: str) -> Iterator[None]:
    """Let errors say which samples are meant: "unlabelled sample 3" where they would say "sample 3"."""
    try:
        yield
    except VerifixError as error:
        text = re.sub(r"\bverified (?=set\b|is a\b)", f"{what} ", str(error).replace(" (--limit draws some)", ""))
        text = text.replace("; it must hold at least 2 samples", "")
        told = re.sub(r"\bsample (?=\d)", f"{what} sample ", text)
        raise type(error)(told if what in told else f"{what} samples: {told}") from error


def check_like(samples: Samples, verified: Samples, model: nn.Module) -> None:
    """Refuse inputs of another form than those of verified samples: other names, dtypes or numbers of dimensions."""
    own, other = (_form(each.alone(0).inputs, verified, model) for each in (samples, verified))
    if own != other:
        raise DataError(f"sample 0 is {own}, but verified samples are {other}; prepare both in the same way")


def _form(inputs: Any, verified: Samples, model: nn.Module) -> str:
    """Describe one sample's inputs, as far as they reach the model."""
    if isinstance(inputs, Mapping):
        named = None if verified.forward is not None else named_arguments(model, inputs)
        parts = {name: x for name, x in (named or inputs).items() if isinstance(x, Tensor)}
        return "; ".join(f"{name}: {_one(parts[name])}" for name in sorted(parts))
    return "; ".join(map(_one, tensors_in(inputs)))


def _one(x: Tensor) -> str:
    return f"{x.dtype} with {x.ndim - 1} dimension{'s' * (x.ndim != 2)}"


def part_of(samples: Samples, indices: Sequence[int]) -> Samples:
    """Return some of the samples; in memory, where they are."""
    part, dataset = samples.subset(indices), samples.source.dataset
    if isinstance(dataset, Items):
        part = replace(part, source=replace(part.source, dataset=Items([dataset[i] for i in indices])))
    return part


def combined(inputs: Samples | None, noisy: Samples | None) -> Unlabelled | None:
    """Return inputs without labels, and those with labels that nobody verified, as one.

    Parameters
    ----------
    inputs
        Inputs alone; None if there are none.
    noisy
        Samples whose labels nobody verified; None if there are none.

    Returns
    -------
    Unlabelled or None
        Inputs alone first; None if there are none of either kind.
    """
    if noisy is None:
        return None if inputs is None else Unlabelled(inputs)
    given, bare = noisy.labels, _blank(noisy)
    if inputs is None:
        return Unlabelled(bare, given)
    return Unlabelled(_joined(inputs, bare), torch.cat([inputs.labels, given]))


def _joined(first: Samples, second: Samples) -> Samples:
    """Return both as one, whose batches may hold samples of both."""
    sources = (first.source, second.source)
    both = together(first, second)
    if _inner(sources[0]) == _inner(sources[1]):
        dataset: Any = both.source.dataset
    else:
        dataset = ConcatDataset([_Numbered(source.dataset, k) for k, source in enumerate(sources)])
        how = partial(_collate_apart, tuple(source.collate for source in sources))
        both = replace(both, source=replace(both.source, collate=how))
    if all(isinstance(source.dataset, Items) for source in sources):
        dataset = Items([dataset[i] for i in range(len(both))])
    options = first.source.options or second.source.options
    return replace(both, source=replace(both.source, dataset=dataset, options=options))


def _inner(source: Source) -> Any:
    """Return what puts the samples of a source into batches, without what it is bound to."""
    inner = source.collate.args[0]  # type: ignore[attr-defined]  # see `without_labels`
    return getattr(inner, "func", inner)


class _Numbered(Dataset[Any]):
    """Samples that know which source they are from."""

    def __init__(self, dataset: Any, number: int) -> None:
        self.dataset, self.number = dataset, number

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return self.number, self.dataset[index]


def _collate_apart(collates: Sequence[Callable[[list[Any]], Any]], items: list[tuple[int, Any]]) -> Any:
    """Put samples into one batch by the function of their source; where they are of both sources, each alone."""
    if len({number for number, _ in items}) == 1:
        return collates[items[0][0]]([item for _, item in items])
    singles = [collates[number]([item]) for number, item in items]
    try:
        inputs = tree_map(lambda *x: torch.cat(x) if isinstance(x[0], Tensor) else x[0], *(x for x, _ in singles))
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(
            "samples of unlabelled and noisy cannot be put into one batch; give both the same collate_fn, or one alone"
        ) from error
    return inputs, torch.full((len(items),), UNKNOWN)


def _inputs_alone(inner: Callable[[list[Any]], Any], items: list[Any]) -> tuple[Any, Tensor]:
    """Put samples into a batch without their labels, which only a function of the user's own may need to see."""
    if inner is collate:
        return collate([_inputs_in(item, 1) for item in items]), torch.full((len(items),), UNKNOWN)
    inputs = _inputs_in(inner(items), len(items))
    count = inputs.size(0) if isinstance(inputs, Tensor) and inputs.ndim else len(items)
    return inputs, torch.full((count,), UNKNOWN)


def _inputs_in(item: Any, count: int) -> Any:
    """Return the inputs of a sample or a batch, with or without labels."""
    if isinstance(item, Mapping):
        return {name: x for name, x in item.items() if name not in LABEL_KEYS}
    if not isinstance(item, (tuple, list)) or (isinstance(item, list) and item and _is_number(item[0])):
        return item
    if len(item) not in (1, 2):
        raise DataError(
            f"a sample of the unlabelled set has {len(item)} parts; it must be inputs alone, or a pair (inputs, labels)"
        )
    if len(item) == 2:
        _check_ignored(item[1], count)
    return item[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _check_ignored(labels: Any, count: int) -> None:
    """Refuse what cannot be labels: it may be inputs that must not be ignored."""
    shape = getattr(labels, "shape", None)
    if shape is None and isinstance(labels, (list, tuple)):
        shape = (len(labels),)
    if shape is not None and tuple(shape) not in ((count,), (count, 1), *([()] if count == 1 else [])):
        raise DataError(
            f"the second part of a pair has the shape {list(shape)} for {count} input{'s' * (count != 1)}; a pair is "
            "(inputs, labels), whose labels are ignored, so give one label per input, None, or inputs alone"
        )


def _from_inputs(inputs: Any) -> Source:
    return without_labels(from_pair(inputs, torch.full((_count(inputs),), UNKNOWN)))


def _count(inputs: Any) -> int:
    """Return how many samples there are in tensors, or in arrays that may become some."""
    first = inputs
    while isinstance(first, (Mapping, tuple)) and len(first):
        first = next(iter(first.values() if isinstance(first, Mapping) else first))
    if isinstance(first, Tensor):
        return first.size(0) if first.ndim else 1
    if not hasattr(first, "__len__") or isinstance(first, (str, bytes, Mapping, tuple)):
        raise UsageError(f"the inputs are a {type(first).__name__}; give a tensor [n, ...], or a dictionary of tensors")
    return len(first)


def _stream(items: list[Any]) -> Source:
    """Read a stream: samples or batches with labels as verified ones, and else single samples."""
    if not items:
        raise DataError("the verified set is empty")
    first = items[0]
    if isinstance(first, Mapping):
        labelled = any(key in first for key in LABEL_KEYS)
    else:
        labelled = isinstance(first, (tuple, list)) and len(first) == 2 and not _is_number(first[0])
    return from_stream(items) if labelled else Source(Items(items))

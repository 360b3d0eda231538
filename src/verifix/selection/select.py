"""Select the samples to verify next: a random part that proves a gain, and those that a strategy finds worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from verifix.capture.first_runs import check_runs
from verifix.io.data.identity import files_of, fingerprint_of
from verifix.io.data.records import Header
from verifix.model.borrow import check_model
from verifix.model.call import own_call
from verifix.model.labels import UNKNOWN
from verifix.model.outputs import understood
from verifix.model.reading import read_in_parts
from verifix.model.samples import Samples, opened, read_samples
from verifix.model.sources import Source
from verifix.model.threads import threads_for
from verifix.model.work import work_of
from verifix.model.working_copy import working_copy
from verifix.model.wrappers import unwrapped
from verifix.options import ForwardArguments
from verifix.progress import note
from verifix.selection.draw import Draw, draw
from verifix.selection.options import SelectOptions
from verifix.selection.queue import RANDOM, Entry, Queue, order_of
from verifix.selection.score_files import begin_chunks, finish_chunks, run_through
from verifix.selection.spreading import Spool, spread
from verifix.selection.strategies import balanced, lowest, scoring
from verifix.settings import takes
from verifix.storage.chunks import Arrays, Chunks


@dataclass(frozen=True, kw_only=True)
class SelectArguments(ForwardArguments, SelectOptions):
    """What `verifix.select` takes."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Samples to verify.

    Attributes
    ----------
    entries
        The samples, in the order in which they are to be verified: both parts evenly mixed.
    header
        The data set, the strategy, and all samples of the random part, those of earlier rounds included.
    """

    entries: tuple[Entry, ...]
    header: Header = field(repr=False)

    @property
    def indices(self) -> list[int]:
        """Indices of the samples, in the order in which they are to be verified."""
        return [entry.id for entry in self.entries]

    @property
    def weights(self) -> Any:
        """How much each sample counts where a gain is measured, float64 ``[len(indices)]``.

        One over the probability of its draw, and 0 if it was not drawn at random: for ``verifix.prove(…,
        drawn="mixed", weights=…)``.
        """
        return np.array([0.0 if entry.probability is None else 1 / entry.probability for entry in self.entries])

    def summary(self) -> str:
        """Describe what was selected in a line of text."""
        random = sum(entry.part == RANDOM for entry in self.entries)
        others = f" and {len(self.entries) - random} by {self.header.strategy}" if random < len(self.entries) else ""
        return (
            f"{len(self.entries)} of {self.header.length:,} samples to verify: {random} drawn at random (of "
            f"{len(self.header.random)} in all, each with probability {self.header.probability:.3g}){others}."
        )

    def queue(
        self, data: str = "", classes: Sequence[str] | None = None, opening: Mapping[str, Any] | None = None
    ) -> Queue:
        """Return the queue, as `verifix review` reads it.

        Parameters
        ----------
        data
            The data set, as ``--data`` names it.
        classes
            Names of the classes, in the order of the model's outputs; None for numbers.
        opening
            What it takes to open the data set again; by default, the class names.

        Returns
        -------
        Queue
            The queue.
        """
        names = self.header.classes if classes is None else tuple(classes)
        options = {"classes": None if classes is None else list(classes)} if opening is None else dict(opening)
        return Queue(replace(self.header, data=data, classes=names, options=options), self.entries)


@takes(SelectArguments)
def select(model: nn.Module, data: Any, settings: SelectArguments) -> Selection:
    """Select the samples to verify next.

    Parameters
    ----------
    model
        The trained classifier, as `verifix.correct` takes it. It is borrowed: a copy is run, in eval mode.
    data
        The samples to select from, with their given labels: a DataLoader, a Dataset, or a pair of tensors
        ``inputs [n, ...]``, ``labels [n]``; −1 stands for no label.
    settings
        Each is a keyword argument.

    Returns
    -------
    Selection
        The samples.

    Raises
    ------
    UsageError
        If an argument is invalid, nothing is left to verify, or cleanlab is missing.
    DataError
        If samples do not fit the model, or `verified` is about another data set.

    Notes
    -----
    The samples of the random part are drawn without regard to anything, so each sample of the data set has the same
    known probability of being among them. Only they estimate how good the model is on the data, because whatever else
    was selected was selected for how it looked. A later round continues the same random order.

    Examples
    --------
    >>> import torch, verifix
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> data = torch.randn(500, 4), torch.arange(500) % 2
    >>> selection = verifix.select(model, data, strategy="uncertain", count=100, random_share=0.4, progress=False)
    >>> print(selection.summary())
    100 of 500 samples to verify: 40 drawn at random (of 40 in all, each with probability 0.08) and 60 by uncertain.
    """
    return selected(model, data, settings)


def selected(model: nn.Module, data: Any, settings: SelectArguments, folder: str | None = None) -> Selection:
    """Select samples; `folder` is what the names of their files are relative to. See `select`."""
    model, chunks = unwrapped(model), Chunks(settings.scores)
    check_model(model)
    with own_call(settings.seed), Spool() as spool:
        source, _ = opened(data, settings.batch_size, settings.max_samples)
        if settings.scored:
            begin_chunks(chunks, model, settings, strategy=settings.by)
        labels, samples = _read(source, chunks, settings)
        files = files_of(source.dataset, len(labels), folder)
        fingerprint = fingerprint_of(files, labels.tolist())
        drawn = draw(len(labels), fingerprint, settings)
        if samples is None:
            order = order_of(drawn.now, _chosen(drawn, labels, {}, spool, settings))
            few = replace(source, dataset=Subset(source.dataset, order))
            samples = read_samples(few, settings.batch_size, False, settings.forward)
            found, outputs = _run(model, samples, Chunks(None), None, settings)
        else:
            found, outputs = _run(model, samples, chunks, spool if settings.by == "spread" else None, settings)
            order = order_of(drawn.now, _chosen(drawn, labels, found, spool, settings))
            _finish(chunks, samples, found, order)
            found = {name: values[order] for name, values in found.items()}
    if len(order) < settings.count:
        note(f"{len(order)} samples are selected in place of {settings.count}: the others have been looked at before")
    header = Header(
        data="",
        classes=tuple(map(str, range(outputs))),
        length=len(labels),
        fingerprint=fingerprint,
        strategy=settings.by,
        seed=settings.seed,
        random=drawn.random,
        probability=drawn.probability,
        earlier=drawn.earlier,
    )
    return Selection(_entries(order, found, files, labels, drawn, settings.by), header)


def _entries(
    order: Sequence[int], found: Arrays, files: Sequence[str | None], labels: Tensor, drawn: Draw, by: str
) -> tuple[Entry, ...]:
    now = set(drawn.now)
    return tuple(
        Entry(
            id=i,
            file=files[i],
            label=None if int(labels[i]) == UNKNOWN else int(labels[i]),
            guesses=tuple((int(k), round(float(share), 6)) for k, share in zip(*guesses, strict=True)),
            probability=drawn.probability if i in now else None,
            part=RANDOM if i in now else by,
        )
        for i, *guesses in zip(order, found["guesses"], found["shares"], strict=True)
    )


def _read(source: Source, chunks: Chunks, settings: SelectArguments) -> tuple[Tensor, Samples | None]:
    """Return the given labels ``[n]``, and the samples if the model is to be run over all of them."""
    if not settings.scored:
        known = labels_of(source)
        if known is not None:
            return known, None
        return read_samples(source, settings.batch_size, settings.progress, settings.forward).labels, None
    how = settings.batch_size, settings.progress, settings.forward, settings.max_samples
    samples = read_in_parts(source, chunks, *how)
    return samples.labels, samples


def labels_of(source: Source) -> Tensor | None:
    """Return the labels of a data set that knows them before its samples are read, int64 ``[n]``; else None."""
    dataset = source.dataset
    labels = getattr(dataset, "labels", None) if type(dataset).__module__.startswith("verifix.") else None
    return None if labels is None else torch.as_tensor(labels)


def _run(
    model: nn.Module, samples: Samples, chunks: Chunks, spool: Spool | None, settings: SelectArguments
) -> tuple[Arrays, int]:
    """Run the model over samples; return what was computed of each, and the number of classes."""
    with working_copy(model, settings) as (work, where):
        labels = samples.labels
        runnable = replace(samples, labels=torch.where(labels == UNKNOWN, 0, labels))
        runnable, outputs, _ = check_runs(model, work, where, runnable)
        runnable, _ = understood(work, runnable, where, settings.outputs)
        with threads_for(partial(work_of, work, runnable, where)):
            by = settings.by if settings.scored else "uncertain"  # whose scores are not used: guesses are
            score = scoring(by, work, where, runnable, labels, settings.seed)
            return run_through(score, runnable, settings, chunks, spool), max(outputs, 2)


def _chosen(drawn: Draw, labels: Tensor, found: Arrays, spool: Spool, settings: SelectArguments) -> list[int]:
    """Return the samples that the strategy selects, beside those that are drawn."""
    count = min(settings.count - len(drawn.now), len(drawn.free))
    if settings.by == "random" or count < 1:
        return []
    if settings.by == "balanced":
        return balanced(labels.numpy(), drawn.free, count)
    if settings.by == "spread":
        return spread(spool, drawn.free, count, settings.seed)
    return lowest(found["scores"], drawn.free, count)


def _finish(chunks: Chunks, samples: Samples, found: Arrays, order: Sequence[int]) -> None:
    """Write the numbers of all samples, if a folder for them was given."""
    picked = np.zeros(len(samples), bool)
    picked[order] = True
    columns = found | {"picked": picked}
    finish_chunks(chunks, samples, {name: torch.from_numpy(values) for name, values in columns.items()})

"""Folders with the scores of all samples: one Parquet file per process, and what a killed run leaves until then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from verifix.model import ranks
from verifix.model.batching import with_smaller_batches
from verifix.model.samples import Samples
from verifix.model.sources import DEFAULT_BATCH_SIZE
from verifix.model.tensors import model_digest
from verifix.options import RunOptions
from verifix.progress import progress_bar
from verifix.selection.spreading import Spool
from verifix.storage.chunks import Arrays, Chunks

ROWS = 2**16
"""Rows of a file that are put together at once."""


def begin_chunks(chunks: Chunks, model: nn.Module, options: RunOptions, **further: Any) -> None:
    """Begin a folder of scores, or go on in it; refuse one that is of something else, and other models elsewhere.

    Parameters
    ----------
    chunks
        The folder.
    model
        The model.
    options
        How it is run.
    **further
        What else the scores depend on, as plain data.
    """
    if ranks.size() == 1 and chunks.folder is None:
        return
    digest = model_digest(model)
    ranks.check_alike({"weights": digest, "settings": further})
    if chunks.folder is None:
        return
    about = {
        "verifix": version("verifix"),
        "torch": str(torch.__version__),
        "model_sha256": digest,
        "batch_size": options.batch_size,
        "outputs": options.outputs,
        "seed": options.seed,
        **further,
    }
    ranks.only_first(chunks.check)
    ranks.only_first(lambda: chunks.begin(about))
    if ranks.rank() > 0:  # the folder may be on a disk of this machine
        chunks.begin(about)


def run_through(
    work: Callable[[Sequence[int], int], Arrays],
    samples: Samples,
    options: RunOptions,
    chunks: Chunks,
    spool: Spool | None = None,
) -> Arrays:
    """Do some work on all samples, each process its part; in smaller batches if memory runs out.

    Parameters
    ----------
    work
        Computes numbers of a batch: ``(indices, batch size) → arrays [batch, ...] by name``.
    samples
        The samples.
    options
        How the model is run.
    chunks
        Where numbers are kept in the meantime.
    spool
        What takes the features of the samples, if there are any.

    Returns
    -------
    dict
        Arrays ``[n, ...]`` by name, in the order of the samples, in every process.
    """
    parts = chunks.split(len(samples), samples.batch_size or DEFAULT_BATCH_SIZE)
    sizes = [len(part) for part in parts]

    def run(size: int) -> Arrays:
        if spool is not None:
            spool.clear()
        with progress_bar("scoring samples", sum(map(len, ranks.mine(parts))), options.progress) as bar:

            def scored(part: range) -> Arrays:
                batches = [list(part[start : start + size]) for start in range(0, len(part), size)]
                found = joined([work(batch, size) for batch in batches])
                bar.update(len(part))
                return found

            once = chunks.through("scores", scored)

            def kept(part: range) -> Arrays:
                found = once(part)
                if spool is not None:
                    spool.take(part, found)
                return found

            return joined(ranks.spread(kept, parts, sizes))

    return with_smaller_batches(run, samples.batch_size, options)[0]


def joined(parts: Sequence[Arrays]) -> Arrays:
    """Return arrays by name, each put together from those of some parts."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def finish_chunks(chunks: Chunks, samples: Samples, columns: Mapping[str, Tensor]) -> None:
    """Write what was found of this process's samples to its Parquet file; then remove the chunks of all.

    Parameters
    ----------
    chunks
        The folder.
    samples
        All samples.
    columns
        By name, a value or a row of values for each sample.
    """
    if chunks.folder is None:
        return
    parts = ranks.mine(chunks.split(len(samples), samples.batch_size or DEFAULT_BATCH_SIZE))
    own = range(parts[0].start, parts[-1].stop) if parts else range(0)  # parts of a process are neighbours
    every = {"label": samples.labels, **columns}

    def table(start: int) -> dict[str, Any]:
        part = own[start : start + ROWS]
        found: dict[str, Any] = {"sample": np.array(part, np.int64), "name": list(map(samples.where, part))}
        return found | {name: values[part.start : part.stop].numpy() for name, values in every.items()}

    with ranks.sharing():
        chunks.finish(map(table, range(0, max(len(own), 1), ROWS)), ranks.rank(), ranks.size())
    chunks.clear()

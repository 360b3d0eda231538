"""Run a model that the user gave over labelled samples, and read what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from verifix.capture.first_runs import check_runs
from verifix.model.answers import predicted
from verifix.model.borrow import check_model
from verifix.model.call import own_call
from verifix.model.given import check_count, given_samples
from verifix.model.outputs import understood
from verifix.model.samples import Samples, read_samples
from verifix.model.threads import threads_for
from verifix.model.work import work_of
from verifix.model.working_copy import working_copy
from verifix.model.wrappers import unwrapped
from verifix.options import ForwardArguments, GivenArguments, RunOptions
from verifix.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class RunArguments(GivenArguments, ForwardArguments, RunOptions):
    """What a call takes that runs a model over labelled samples."""


@dataclass(frozen=True)
class Answered:
    """What a model answered.

    Attributes
    ----------
    samples
        The samples, with their labels.
    logits
        float64 ``[n, outputs]``.
    names
        Class names; None if they are not known.
    remarks
        What was noticed about the model's outputs.
    """

    samples: Samples
    logits: Tensor
    names: tuple[str, ...] | None
    remarks: tuple[str, ...]


def answered(model: nn.Module, data: Any, settings: RunArguments, title: str) -> Answered:
    """Run a copy of a model over samples.

    Parameters
    ----------
    model
        The model; it is not changed.
    data
        The samples, in any form that `verifix.correct` takes, or inputs if there are labels in the settings.
    settings
        How it is run.
    title
        What the progress is of.

    Returns
    -------
    Answered
        Samples and logits.
    """
    model = unwrapped(model)
    check_model(model)
    data, names = given_samples(model, data, settings.labels, settings.classes)
    with own_call(settings.seed):
        size = settings.predicting_size
        samples = read_samples(data, size, settings.progress, settings.forward, settings.max_samples).reaching(model)
        with working_copy(model, settings) as (work, where):
            samples, outputs, steady = check_runs(model, work, where, samples)
            check_count(names, outputs)
            samples, remark = understood(work, samples, where, settings.outputs)
            threads = threads_for(partial(work_of, work, samples, where))
            with threads, progress_bar(title, len(samples), settings.progress) as bar:
                logits = predicted(work, samples, done=bar.update)
    return Answered(samples, logits, names, tuple(filter(None, (remark, *steady))))

"""One pass over the inputs whose labels are not known: their moments beside those of the verified samples."""

from __future__ import annotations

from dataclasses import replace

from verifix.capture.collect import Collected
from verifix.capture.input_statistics import watching_first_norm
from verifix.model.batching import with_smaller_batches
from verifix.model.unlabelled import Unlabelled, named
from verifix.options import CorrectOptions
from verifix.recipe.context import Context


def with_unlabelled(whole: Context, unlabelled: Unlabelled, options: CorrectOptions) -> tuple[Context, str]:
    """Add inputs whose labels are not known, and their moments, to a context that no stage has changed.

    Parameters
    ----------
    whole
        The context.
    unlabelled
        The inputs, none of which is a verified sample.
    options
        The settings.

    Returns
    -------
    whole : Context
        With `Run.unlabelled` and `Run.beside`.
    doubt : str
        What is odd about the inputs; empty if nothing is.

    Raises
    ------
    DataError
        If the model cannot run on the inputs, or something is not finite.
    """
    run = whole.run
    samples = replace(unlabelled.samples, forward=run.samples.forward, outputs=run.samples.outputs)

    def passed(size: int) -> Collected:
        return run.collect(samples, [range(len(samples))], size, show=options.progress, shared=True, answered=False)

    with named("unlabelled"), watching_first_norm(run.model) as seen:
        collected, _ = with_smaller_batches(passed, run.batch_size, options)
        doubt = seen.gathered(run.model).remark()
    known = replace(unlabelled, samples=samples)
    return replace(whole, run=replace(run, unlabelled=known, beside=collected.folds[0])), doubt

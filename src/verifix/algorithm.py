"""`verifix.correct`: the algorithm, read top to bottom.

1. Read the verified samples once and split them into folds.
2. Run a copy of the model over them once: moments of every layer, per fold.
3. Walk the paths of the recipe. For each stage of a path choose a strength by cross-fitting: each fold is scored by a
   correction made from the other folds only, earlier stages included.
4. Decide once: the path with the lowest loss, or no change, which wins unless it is clearly beaten.
5. Fit the stages of that path on all samples, each on what the one before it left: the new weights of the copy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from verifix.correction import Correction
from verifix.errors import DataError
from verifix.evaluation.near_copies import remark_between_folds
from verifix.model.call import own_call
from verifix.model.corrected import remember_corrected
from verifix.model.given import Made
from verifix.model.weights import tensors_of
from verifix.options import CorrectArguments
from verifix.preflight import begin
from verifix.progress import one_bar, tell
from verifix.projection import eigenvalues
from verifix.recipe.context import Context
from verifix.recipe.crossfit import Rules
from verifix.recipe.forecast import foresee, seconds_of
from verifix.recipe.outcome import LayerReport, LayerStatus, remarks_on_gradients, remarks_on_zeros
from verifix.recipe.plan import is_choosing
from verifix.recipe.search import Course, search
from verifix.recipe.summary import UNSAID_NOTE
from verifix.settings import takes


@takes(CorrectArguments)
def correct(model: nn.Module, verified: Any, settings: CorrectArguments) -> Correction:
    """Correct a trained classifier from a small set of samples with verified labels.

    Parameters
    ----------
    model
        The trained classifier. It returns logits ``[n, classes]``, or one logit per sample if it is binary; they may
        also be the ``logits`` of a mapping, or an entry of a tuple: found out if that is certain, else picked by
        `forward`. A copy is corrected, and the model itself is not changed. A compiled, DataParallel or averaged model
        is unwrapped.
    verified
        The verified samples: a DataLoader, a Dataset, or a pair ``inputs [n, ...]``, ``labels [n]``, which may also be
        two arguments: ``correct(model, inputs, labels)``. Tensors, NumPy arrays, lists, and columns of pandas and
        polars are taken. Inputs may be a dictionary (keyword arguments of the model) or a tuple of tensors; a batch
        that is a dictionary may hold the labels as well. Padding is left out of the moments if an ``attention_mask``,
        ``src_key_padding_mask`` or ``padding_mask`` reaches the model or a module in it.
    settings
        The settings of the correction; each is a keyword argument.

    Returns
    -------
    Correction
        The corrected model and what was done; `Correction.alpha` is None if no change won.

    Raises
    ------
    UsageError
        If an argument is invalid, or a pattern matches nothing.
    DataError
        If there are too few samples, if samples do not fit the model or labels do not fit its predictions, or if
        anything is not finite.
    NoLayersError
        If no layer of the model can be corrected.
    CheckpointError
        If the weights are corrected already, or `moments` belong to other weights.

    Notes
    -----
    The method is Verifix (arXiv 2403.08618). Strengths are chosen by cross-fitted scores, which `Correction.curve`
    holds. These scores chose the strength, so they overstate the gain: measure the gain on other samples.

    Nothing here proves that the correction helps: call `verifix.prove` before using a correction, as the command
    ``verifix correct`` does before it writes one.

    Examples
    --------
    >>> import torch, verifix
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> inputs, labels = torch.randn(60, 4), torch.arange(60) % 2
    >>> fixed = verifix.correct(model, (inputs, labels), alpha=100.0, progress=False)
    >>> fixed.alpha
    100.0
    """
    choosing, began = is_choosing(settings), time.perf_counter()
    with own_call(settings.seed), one_bar("correction", settings.progress) as work:
        with begin(model, verified, settings, folds=settings.folds if choosing else None) as start:
            whole = start.whole
            doubt = remark_between_folds(whole) if choosing and settings.origin == "unseen" else None
            start.provenance["notes"] += [doubt] * (doubt is not None)
            parts = [whole.without(fold) for fold in whole.folds] if choosing else []
            course, rules = Course(whole, parts), Rules(settings, settings.score, settings.loss)
            foresee(start.plan, settings.folds, work)
            search(start.plan, [course], rules, show=settings.progress, title="correction")
            work.times.update(seconds_of(course.paths, settings.folds))
            tell(course.reason, settings.progress and choosing)
            if choosing and settings.verified_from is None:
                tell(UNSAID_NOTE, settings.progress)
            whole = course.whole
            start.provenance["notes"] += remarks_on_gradients(start.work, whole)
            original, corrected = _outcome(start.work, whole)
            start.provenance["notes"] += remarks_on_zeros(original, corrected)
            reports = tuple(_report(whole, original, corrected))
            spectra = _spectra(whole, corrected) if settings.spectra else {}
        tensors = tensors_of(start.work)
        for name, value in corrected.items():  # only now: whoever borrows a model gives its buffers back
            tensors[name].data.copy_(value)
        remember_corrected(start.work, original, corrected)
        weights, tried = (original, corrected), (tuple(course.paths), course.reason)
        made = Made(model, start.read, replace(settings, labels=None), time.perf_counter() - began)
        found = (*weights, course.choices, reports, start.provenance, start.work, spectra)
        return Correction(*found, *tried, class_names=start.class_names, made=made)


def _outcome(work: nn.Module, whole: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the values before and after of all that was changed, on the CPU; refuse what is not finite."""
    tensors = tensors_of(work)
    original = {name: tensors[name].detach().cpu().clone() for name in whole.update}
    corrected = {k: v.detach().to(tensors[k].dtype).cpu().clone() for k, v in whole.update.items()}
    for name, value in corrected.items():
        if not torch.isfinite(value).all():
            raise DataError(f"the corrected {name!r} is not finite in {value.dtype}; correct the model in float32")
    return original, corrected


def _report(whole: Context, original: dict[str, Tensor], corrected: dict[str, Tensor]) -> Iterator[LayerReport]:
    collected = whole.run.collected
    for account in collected.accounts:
        name, rows, ranks = account.parameter, 0, []
        if account.status == "corrected":
            for layer in account.layers:
                seen = collected.moments(layer, whole.folds, whole.run.earlier)
                rows += seen.n
                ranks += [rank for rank in seen.effective_rank.tolist() if rank > 0]
        kept = account.status == "corrected" and name not in corrected
        status: LayerStatus = "corrected" if name in corrected else "kept" if kept else account.status
        yield LayerReport(
            name,
            account.kind,
            status,
            "no change won" if kept else account.reason if status != "corrected" else "",
            rows,
            sum(ranks) / max(len(ranks), 1) if account.status == "corrected" and account.layers else None,
            _relative_change(original[name], corrected[name]) if name in corrected else None,
        )


def _spectra(whole: Context, corrected: Mapping[str, Tensor]) -> dict[str, tuple[float, ...]]:
    """Return the eigenvalues of C, descending, of the first layer of every corrected parameter, all groups together."""
    found: dict[str, tuple[float, ...]] = {}
    collected = whole.run.collected
    for layer in collected.layers:
        if layer.parameter in corrected and layer.parameter not in found:
            values = eigenvalues(collected.moments(layer, whole.folds, {}))
            found[layer.parameter] = tuple(values.flatten().sort(descending=True).values.tolist())
    return found


def _relative_change(before: Tensor, after: Tensor) -> float:
    size = float(before.double().norm())
    return float((after.double() - before.double()).norm()) / size if size else 0.0

"""`verifix.correct`: the algorithm, read top to bottom.

1. Read the verified samples once and split them into folds.
2. Run a copy of the model over them once: moments of every layer, per fold.
3. For each stage of the recipe, in order, choose a strength by cross-fitting: each fold is scored by a correction
   made from the other folds only, earlier stages included. No change is a candidate, and it wins unless it is clearly
   beaten.
4. Fit each chosen stage on all samples, each on what the one before it left, and put the new weights into the copy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from verifix.capture.saved_moments import SavedMoments
from verifix.correction import Correction
from verifix.errors import DataError
from verifix.losses import Score
from verifix.model.borrow import seeded
from verifix.model.corrected import remember_corrected
from verifix.model.run import Forward
from verifix.model.weights import tensors_of
from verifix.options import CorrectOptions
from verifix.preflight import begin
from verifix.progress import tell
from verifix.recipe.budget import Pace, measure
from verifix.recipe.context import Context
from verifix.recipe.crossfit import Rules, run_stage, trying
from verifix.recipe.decision import Choice
from verifix.recipe.outcome import LayerReport
from verifix.recipe.plan import is_choosing


def correct(
    model: nn.Module,
    verified: Any,
    *,
    alpha: float | Literal["auto"] = "auto",
    recipe: str = "auto",
    budget: str | float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    device: str | torch.device = "auto",
    batch_size: int | Literal["auto"] = "auto",
    verified_from: Literal["unseen", "training", "trusted"] = "unseen",
    score: Score | None = None,
    loss: Score | None = None,
    moments: str | Path | SavedMoments | None = None,
    forward: Forward | None = None,
    padding: bool = True,
    check_labels: bool = True,
    stored_as: Mapping[str, torch.dtype] | None = None,
    progress: bool = True,
) -> Correction:
    """Correct a trained classifier from a small set of samples with verified labels.

    Parameters
    ----------
    model
        The trained classifier; it returns logits ``[n, classes]``, or one logit per sample if it is binary, also as
        ``logits`` of a mapping or first in a tuple. It is borrowed: a copy is corrected, and the model itself is not
        changed. A compiled, DataParallel or averaged model is unwrapped.
    verified
        The verified samples: a DataLoader, a Dataset, or a pair of tensors ``inputs [n, ...]``, ``labels [n]``. Inputs
        may be a dictionary (keyword arguments of the model) or a tuple of tensors; a batch that is a dictionary may
        hold the labels as well. Padding is left out of the moments if an ``attention_mask``,
        ``src_key_padding_mask`` or ``padding_mask`` reaches the model or a module in it.
    alpha
        Strength of the projection. "auto" lets the verified samples choose among about ten strengths and no change
        (at least 50 samples, and 2 per fold). A number means exactly the projection of every included layer with
        that strength: no choice, even if it harms, and no other stage unless `recipe` names some (at least 2 samples).
    recipe
        Stages to run, in order: "auto" is all of verifix's own, each kept only if the verified samples clearly
        support it; "verifix" is the paper's method, the projection alone; or names of stages joined by commas, of
        which `verifix.register_stage` adds more.
    budget
        Time that choosing may take: seconds, or a text such as "5min". A stage that is expected to take longer than
        what is left is not tried, and `Correction.summary` says so. The first pass over the samples is not counted.
    include, exclude
        Parameter-name globs or layer kinds ("linear", "conv2d", …) to correct, and to leave alone.
    folds
        Folds of the cross-fitting.
    seed
        Seed of the folds.
    device
        Where to compute; "auto" is where the model is.
    batch_size
        Samples per batch; "auto" takes the DataLoader's own, or 64, and halves it when memory runs out.
    verified_from
        "unseen" if the model has not been trained on these samples, which is what to prefer; "training" if it has.
        A network remembers its training samples with their wrong labels, so that scores on them are no estimate
        for new data. "trusted" if nobody verified them: samples that `verifix.trust` picked, or any other rule.
    score
        ``(logits [n, k], labels [n]) → [n]`` or a scalar, higher is better; default: accuracy.
    loss
        ``(logits, labels) → [n]``, lower is better; default: cross-entropy at each candidate's best temperature.
    moments
        Moments of earlier verified samples of the same model: a file, or a loaded `SavedMoments`.
    forward
        ``(model, inputs) → output`` for models that are not called with the inputs of a batch alone.
    padding
        Whether token ids that contain the model's pad id need a mask of the padding; False if they need none.
    check_labels
        Whether to stop if the model's predictions fit another order of the labels far better, or the same input has
        two labels; False if the labels are right all the same.
    stored_as
        Dtypes, by parameter name, in which the weights will be stored, if these are narrower than the model's own:
        corrected weights are then rounded once, to what such a file can hold, before anything is scored.
    progress
        Show progress on stderr.

    Returns
    -------
    Correction
        The corrected model and what was done; `Correction.alpha` is None if no change won.

    Raises
    ------
    UsageError
        If an argument is not usable, or a pattern matches nothing.
    DataError
        If samples are too few, or do not fit the model, or their labels its predictions, or anything is not finite.
    NoLayersError
        If no layer of the model can be corrected.
    CheckpointError
        If the weights are corrected already, or `moments` belong to other weights.

    Notes
    -----
    The method is Verifix (arXiv 2403.08618). Strengths are chosen on cross-fitted scores; `Correction.curve` holds
    them. They chose the strength, so they overstate the gain: measure that on other samples.

    Examples
    --------
    >>> import torch, verifix
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> inputs, labels = torch.randn(60, 4), torch.arange(60) % 2
    >>> fixed = verifix.correct(model, (inputs, labels), alpha=100.0, progress=False)
    >>> fixed.alpha
    100.0
    """
    options = CorrectOptions.of_arguments(locals())
    given: dict[str, Any] = {"moments": moments, "forward": forward, "stored_as": stored_as}
    choosing = is_choosing(options)
    with torch.inference_mode(False), seeded(options.seed):
        with begin(model, verified, options, folds=folds if choosing else None, **given) as start:
            whole = start.whole
            parts = [whole.without(fold) for fold in whole.folds] if choosing else []
            pace = measure(whole) if choosing else Pace(math.inf, math.inf)
            rules, begun = Rules(options, pace, score, loss), time.perf_counter()
            choices: dict[str, Choice] = {}
            for stage in start.stages:
                left, last = options.budget_seconds - (time.perf_counter() - begun), stage is start.stages[-1]
                with trying(stage) as trials:
                    choice, whole, parts = run_stage(trials, whole, parts, rules, left, last=last)
                choices[stage.name] = choice
                tell(f"{stage.name}: {choice.reason}", options.progress)
            original, corrected = _outcome(start.work, whole)
            reports = tuple(_report(whole, original, corrected))
        tensors = tensors_of(start.work)
        for name, value in corrected.items():  # only now: whoever borrows a model gives its buffers back
            tensors[name].data.copy_(value)
        remember_corrected(start.work, original, corrected)
        return Correction(original, corrected, choices, reports, start.provenance, start.work)


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
        status = "corrected" if name in corrected else "kept" if kept else account.status
        yield LayerReport(
            name,
            account.kind,
            status,
            "no change won" if kept else account.reason if status != "corrected" else "",
            rows,
            sum(ranks) / max(len(ranks), 1) if account.status == "corrected" and account.layers else None,
            _relative_change(original[name], corrected[name]) if name in corrected else None,
        )


def _relative_change(before: Tensor, after: Tensor) -> float:
    size = float(before.double().norm())
    return float((after.double() - before.double()).norm()) / size if size else 0.0

"""`verifix.correct`: the algorithm, read top to bottom.

1. Read the verified samples once and split them into folds.
2. Run a copy of the model over them once: moments of every layer, per fold.
3. For each stage of the recipe, choose a strength by cross-fitting: each fold is scored by a correction made from
   the other folds only. No change is a candidate, and it wins unless it is clearly beaten.
4. Fit each chosen stage on all samples and put the new weights into the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from verifix.capture import (
    Layer,
    borrowed,
    check_model,
    copy_model,
    intercepting,
    out_of_memory,
    run_model,
    seeded,
    selection_of,
)
from verifix.collect import Collected, SavedMoments, collect
from verifix.correction import Correction, LayerReport, refuse_corrected, remember_corrected
from verifix.errors import DataError, NoLayersError, UsageError, VerifixError
from verifix.moments import Moments
from verifix.options import CorrectOptions, patterns
from verifix.progress import progress_bar
from verifix.provenance import describe
from verifix.samples import DEFAULT_BATCH_SIZE, Samples, check_labels, read_samples, split_folds
from verifix.scoring import (
    Score,
    apply_score,
    as_logits,
    correct_or_not,
    device_named,
    tempered_cross_entropy,
)
from verifix.stages import Context, Stage, stages_of
from verifix.strength import Choice, Scores, choose, given

T = TypeVar("T")


def correct(
    model: nn.Module,
    verified: Any,
    *,
    alpha: float | Literal["auto"] = "auto",
    recipe: str = "verifix",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    device: str | torch.device = "auto",
    batch_size: int | Literal["auto"] = "auto",
    verified_from: Literal["unseen", "training"] = "unseen",
    score: Score | None = None,
    loss: Score | None = None,
    moments: str | Path | SavedMoments | None = None,
    progress: bool = True,
) -> Correction:
    """Correct a trained classifier from a small set of samples with verified labels.

    Parameters
    ----------
    model
        The trained classifier; it returns logits ``[n, classes]``, or one logit per sample if it is binary. It is
        borrowed: a copy is corrected, and the model itself is not changed.
    verified
        The verified samples: a DataLoader, a Dataset, or a pair of tensors ``inputs [n, ...]``, ``labels [n]``.
    alpha
        Strength of the projection. "auto" lets the verified samples choose among about ten strengths and no change
        (at least 50 samples, and 2 per fold). A number means exactly the projection of every included layer with
        that strength: no choice, no other stage, even if it harms (at least 2 samples).
    recipe
        Stages to run, in order; "verifix" is the paper's method, the projection alone.
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
        for new data.
    score
        ``(logits [n, k], labels [n]) → [n]`` or a scalar, higher is better; default: accuracy.
    loss
        ``(logits, labels) → [n]``, lower is better; default: cross-entropy at each candidate's best temperature.
    moments
        Moments of earlier verified samples of the same model: a file, or a loaded `SavedMoments`.
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
        If samples are too few, or do not fit the model, or anything is not finite.
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
    options = CorrectOptions(
        alpha=alpha,
        recipe=recipe,
        include=patterns(include),
        exclude=patterns(exclude),
        folds=folds,
        seed=seed,
        device=str(device),
        batch_size=batch_size,
        verified_from=verified_from,
        moments=str(moments) if isinstance(moments, (str, Path)) else None,
        progress=progress,
    )
    stages = stages_of(options.recipe)
    check_model(model)
    refuse_corrected(dict(model.named_parameters()))
    saved = SavedMoments.load(moments) if isinstance(moments, (str, Path)) else moments
    with torch.inference_mode(False), seeded(options.seed):
        samples = read_samples(verified, options.batch_size, progress)
        _check_enough(samples, options)
        with _working_copy(model, options) as (work, where):
            provenance = describe(work, samples, options, earlier=saved is not None)
            _check_outputs(model, work, where, samples)
            whole, parts = _prepare(work, where, samples, options, saved, provenance["model_sha256"])
            choices: dict[str, Choice] = {}
            for stage in stages:
                choices[stage.name] = _choose(stage, parts, samples, options, score, loss)
                whole, parts = _advance(stage, choices[stage.name].strength, whole, parts, last=stage is stages[-1])
            return _finish(work, whole, choices, provenance)


def _prepare(
    work: nn.Module,
    where: torch.device,
    samples: Samples,
    options: CorrectOptions,
    saved: SavedMoments | None,
    digest: str,
) -> tuple[Context, list[Context]]:
    """Run the one pass; return the context of all samples, and one per fold that leaves the fold out."""
    choosing = options.alpha == "auto"
    folds: list[Any] = split_folds(samples, options.folds, options.seed) if choosing else [range(len(samples))]
    selection = selection_of(options.include, options.exclude)

    def run(size: int) -> Collected:
        return collect(work, samples, folds, batch_size=size, device=where, selection=selection, show=options.progress)

    collected, size = _with_smaller_batches(run, samples.batch_size, options)
    if not collected.layers:
        raise NoLayersError(_nothing_to_correct(collected))
    earlier: dict[Layer, Moments] = {}
    if saved is not None:
        earlier = saved.checked(options.moments or "the saved moments", digest, collected, where)

    def context(without: int | None) -> Context:
        kept = [k for k in range(len(folds)) if k != without]
        indices = sorted(int(i) for k in kept for i in folds[k])
        return Context(work, samples, indices, kept, collected, earlier, size, where, selection)

    return context(None), [context(k) for k in range(len(folds))] if choosing else []


def _choose(
    stage: Stage,
    parts: Sequence[Context],
    samples: Samples,
    options: CorrectOptions,
    score: Score | None,
    loss: Score | None,
) -> Choice:
    """Choose a stage's strength by cross-fitting: every sample is scored by a correction that never saw it."""
    if options.alpha != "auto":
        return given(float(options.alpha))

    def scores(logits: Tensor) -> Scores:
        losses = apply_score(loss or tempered_cross_entropy, logits, samples.labels, "loss", per_sample=True)
        values = apply_score(score or correct_or_not, logits, samples.labels, "score", per_sample=False)
        return Scores(losses, float(values.mean()))

    def cross_fitted(strengths: Sequence[float]) -> list[Scores]:
        return [scores(logits) for logits in _cross_fit(stage, strengths, parts, len(samples), options.progress)]

    baseline = scores(_held_out(parts, len(samples)))
    return choose(baseline, cross_fitted, stage.candidates(parts[0]))


def _cross_fit(
    stage: Stage, strengths: Sequence[float], parts: Sequence[Context], count: int, show: bool
) -> list[Tensor]:
    """Return, per strength, the logits ``[n, outputs]`` of all samples, each from the fit that left it out."""
    results: list[dict[int, Tensor]] = [{} for _ in strengths]
    with progress_bar(f"strength of {stage.name}", len(parts) * len(strengths), show, unit="fit") as bar:
        for part in parts:
            held_out = _left_out(part, count)
            fresh = part.after({})  # what the stage remembers for this fold is freed with it
            for i, strength in enumerate(strengths):
                logits = part.predict(held_out, stage.fit(fresh, strength))
                results[i].update(zip(held_out, logits, strict=True))
                bar.update()
    return [torch.stack([rows[i] for i in range(count)]) for rows in results]


def _held_out(parts: Sequence[Context], count: int) -> Tensor:
    """Return the logits of all samples without this stage, each under the earlier stages that left it out."""
    order = [i for part in parts for i in _left_out(part, count)]
    logits = torch.cat([part.predict(_left_out(part, count), {}) for part in parts])
    return logits[torch.tensor(order).argsort()]


def _left_out(part: Context, count: int) -> list[int]:
    return sorted(set(range(count)) - set(part.indices))


def _advance(
    stage: Stage, strength: float | None, whole: Context, parts: list[Context], last: bool
) -> tuple[Context, list[Context]]:
    """Fit the chosen strength on all samples, and on each fold's others if a later stage needs them."""
    if strength is None:
        return whole, parts
    further = [] if last else [part.after(stage.fit(part.after({}), strength)) for part in parts]
    return whole.after(stage.fit(whole, strength)), further


def _finish(work: nn.Module, whole: Context, choices: dict[str, Choice], provenance: dict[str, Any]) -> Correction:
    """Put the new weights into the copy and describe what was done."""
    parameters = dict(work.named_parameters())
    original = {name: parameters[name].detach().cpu().clone() for name in whole.update}
    corrected = {name: value.detach().cpu().clone() for name, value in whole.update.items()}
    for name, value in corrected.items():
        if not torch.isfinite(value).all():
            raise DataError(f"the corrected {name!r} is not finite in {value.dtype}; correct the model in float32")
    layers = tuple(_report(whole, original, corrected))
    for name, value in whole.update.items():
        parameters[name].data.copy_(value)
    remember_corrected(original, corrected)
    return Correction(original, corrected, choices, layers, provenance, work)


def _report(whole: Context, original: dict[str, Tensor], corrected: dict[str, Tensor]) -> Iterator[LayerReport]:
    for account in whole.collected.accounts:
        name, rows, ranks = account.parameter, 0, []
        if account.status == "corrected":
            for layer in account.layers:
                seen = whole.collected.moments(layer, whole.folds, whole.earlier)
                rows += seen.n
                ranks += [rank for rank in seen.effective_rank.tolist() if rank > 0]
        kept = account.status == "corrected" and name not in corrected
        yield LayerReport(
            name,
            account.kind,
            "kept" if kept else account.status,
            "no change won" if kept else account.reason,
            rows,
            sum(ranks) / max(len(ranks), 1) if account.status == "corrected" else None,
            _relative_change(original[name], corrected[name]) if name in corrected else None,
        )


def _relative_change(before: Tensor, after: Tensor) -> float:
    size = float(before.double().norm())
    return float((after.double() - before.double()).norm()) / size if size else 0.0


@contextmanager
def _working_copy(model: nn.Module, options: CorrectOptions) -> Iterator[tuple[nn.Module, torch.device]]:
    """Copy the model and lend the copy; on success the copy ends on the device of the model, with its train flags."""
    home, work = _device_of(model), copy_model(model)
    where = home if options.device == "auto" else device_named(options.device)
    work.to(where)
    with borrowed(work):
        yield work, where
    work.to(home)


def _device_of(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _with_smaller_batches(run: Callable[[int], T], own: int | None, options: CorrectOptions) -> tuple[T, int]:
    """Run with the batch size wanted; if it is ours to choose, halve it for as long as memory runs out."""
    size = own or DEFAULT_BATCH_SIZE
    while True:
        try:
            return run(size), size
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if options.batch_size != "auto" or size == 1:
                raise VerifixError(
                    f"memory ran out with batches of {size}; lower batch_size, or exclude wide layers"
                ) from error
        size //= 2


def _check_enough(samples: Samples, options: CorrectOptions) -> None:
    if len(samples) < options.minimum_samples:
        alternative = "verify more, or give alpha as a number" if options.alpha == "auto" else "verify more"
        raise DataError(
            f"{len(samples)} verified sample{'s' * (len(samples) != 1)}, but "
            f"{'choosing a strength' if options.alpha == 'auto' else 'a correction'} needs at least "
            f"{options.minimum_samples}; {alternative}"
        )


def _check_outputs(model: nn.Module, work: nn.Module, where: torch.device, samples: Samples) -> None:
    """Run the copy on two samples: it must give logits for the labels, and leave the original alone."""
    inputs = next(samples.batches([0, 1], 2)).inputs.to(where)

    def ignore(layer: Layer, rows: Tensor) -> None:
        """Rows are not needed."""

    with borrowed(model), intercepting(model, ignore) as original:
        output = run_model(work, inputs)
    used = [layer.parameter for layer in original.layers] + list(original.used_by)
    if used:
        raise UsageError(
            f"a copy of the model still runs {used[0]!r} of the original: a forward that was replaced by a closure; "
            "define it in the module's class instead"
        )
    check_labels(samples.labels, as_logits(output, len(inputs)).shape[1])


def _nothing_to_correct(collected: Collected) -> str:
    if not collected.accounts:
        return "the model has no weight matrix at all; there is nothing to correct"
    reasons = "; ".join(
        f"{a.parameter} {a.status}{' (' + a.reason + ')' if a.reason else ''}" for a in collected.accounts[:3]
    )
    return f"no layer of the model can be corrected: {reasons}; see 'verifix inspect'"

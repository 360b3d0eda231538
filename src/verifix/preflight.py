"""All that happens before a choice: copy and check the model, split the samples, run the one pass."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from verifix.capture.collect import Collected, collect
from verifix.capture.first_runs import check_runs
from verifix.capture.input_statistics import watching_first_norm
from verifix.capture.layer import Layer
from verifix.capture.memory_plan import Limits
from verifix.capture.padding import Padding, remarks_on_padding
from verifix.capture.padding_check import settle_padding
from verifix.capture.saved_moments import SavedMoments
from verifix.capture.selection import selection_of
from verifix.errors import DataError, NoLayersError, UsageError
from verifix.evaluation.draw import remark_on_draw
from verifix.evaluation.input_check import settled
from verifix.evaluation.look_over import look_over
from verifix.model import ranks
from verifix.model.batching import with_smaller_batches
from verifix.model.borrow import check_model
from verifix.model.corrected import refuse_corrected
from verifix.model.folds import split_folds
from verifix.model.given import check_count, given_samples
from verifix.model.outputs import understood
from verifix.model.predict import predict
from verifix.model.samples import Samples, read_samples
from verifix.model.tensors import model_digest
from verifix.model.threads import threads_for
from verifix.model.unlabelled import Unlabelled, read_unlabelled
from verifix.model.weights import tensors_of
from verifix.model.work import multiplications, work_of
from verifix.model.working_copy import working_copy
from verifix.model.wrappers import unwrapped
from verifix.moments import Moments
from verifix.options import CollectOptions, CorrectArguments, CorrectOptions, MemoryOptions
from verifix.projection import FLOAT32_ALPHA
from verifix.recipe.beside import affordable, with_unlabelled
from verifix.recipe.context import Context, Run
from verifix.recipe.copies import with_copies
from verifix.recipe.frozen import remark_on_buffers, remark_on_frozen
from verifix.recipe.plan import Plan, is_choosing, minimum_samples, planned
from verifix.recipe.stages.project_jittered import ProjectJittered

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Start:
    """All that is there before the first choice.

    Attributes
    ----------
    work
        The working copy of the model, borrowed.
    samples
        The verified samples.
    plan
        The paths to try.
    whole
        The context of all samples.
    provenance
        What goes in, as plain data.
    read
        The samples as they were read, before anything was found out about how they enter the model.
    class_names
        In the order of the outputs; None if they are not known.
    """

    work: nn.Module
    samples: Samples
    plan: Plan
    whole: Context
    provenance: dict[str, Any]
    read: Samples
    class_names: tuple[str, ...] | None = None


@contextmanager
def begin(
    model: nn.Module,
    verified: Any,
    options: CorrectArguments,
    *,
    folds: int | None,
) -> Iterator[Start]:
    """Check what was given, and run a copy of the model once over the samples.

    Parameters
    ----------
    model, verified
        As in `verifix.correct`.
    options
        Its settings.
    folds
        Into how many folds the samples are split; None if nothing will be chosen.

    Yields
    ------
    Start
        Copy, samples, paths and moments. The copy is lent until the end, and still has its weights then.
    """
    plan = planned(options)
    model = unwrapped(model)
    check_model(model)
    verified, names = given_samples(model, verified, options.labels, options.classes)
    refuse_corrected(tensors_of(model))
    saved = SavedMoments.load(options.moments) if isinstance(options.moments, (str, Path)) else options.moments
    if saved is not None:
        saved.check_origin(options.origin)
    how = options.batch_size, options.progress, options.forward, options.max_samples, options.groups
    read = read_samples(verified, *how)
    samples = read.reaching(model)
    check_enough(samples, options)
    known = frozenset() if saved is None else saved.digests
    unlabelled, left_out = read_unlabelled(options, options.forward, model, samples, known)
    with working_copy(model, options) as (work, where):
        provenance = describe(work, samples, options, earlier=saved is not None, unlabelled=unlabelled)
        check_alike(provenance, samples)
        samples, outputs, steady = check_runs(model, work, where, samples)
        check_count(names, outputs)
        samples, remark = understood(work, samples, where, options.outputs)
        if unlabelled is not None:
            unlabelled.check_given(outputs)
        provenance["outputs"] = samples.outputs
        with threads_for(partial(work_of, work, samples, where)):
            provenance |= check_classes(samples, outputs, options)
            read_as = [each for each in (remark, remark_on_draw(options.drawn)) if each]
            members: Any = [range(len(samples))] if folds is None else split_folds(samples, folds, options.seed)
            digest, dtypes = provenance["model_sha256"], options.stored_as or {}
            with watching_first_norm(work) as seen:
                whole = prepare(work, where, samples, options, members, saved, digest, dtypes)
            if ProjectJittered in plan.stages:
                whole = with_copies(whole, options)
                plan = planned(options, jittered=whole.run.copies is not None)
            answers = whole.run.collected.logits
            looks = look_over(answers, seen.gathered(work).remark(), work, where, samples, options, names)
            provenance["notes"] = [*read_as, *steady, *looks, *remarks_on_padding(whole.run.padding), *left_out]
            if unlabelled is not None:
                unlabelled, part = affordable(whole, unlabelled, options)
                whole, doubt = with_unlabelled(whole, unlabelled, options)
                provenance["notes"] += [part] * bool(part)
                prepared = unlabelled.samples.source.prepared
                odd = settled([doubt], "", prepared, options.check_inputs, "unlabelled")
                provenance["notes"] += [f"Unlabelled inputs: {remark}" for remark in odd]
            provenance["notes"] += whole.run.collected.remarks
            training = [stage.name for stage in plan.stages if stage.trains]
            last = remark_on_frozen(whole, training), remark_on_buffers(whole.run.collected)
            provenance["notes"] += [remark for remark in last if remark]
            yield Start(work, samples, plan, whole, provenance, read, names)


def collect_and_try(
    work: nn.Module, where: torch.device, samples: Samples, folds: Sequence[Sequence[int]], options: CollectOptions
) -> tuple[Collected, int, Padding]:
    """Run the one pass over all folds, and try its padding; return also the size of its batches and how it is told."""
    common: dict[str, Any] = {"device": where, "selection": selection_of(options.include, options.exclude)}

    def passed(padding: Padding) -> tuple[Collected, int, Padding]:
        def run(size: int) -> Collected:
            how = common | {"padding": padding, "exact": is_exact(options), "limits": limits_of(options)}
            return collect(work, samples, folds, batch_size=size, show=options.progress, shared=True, **how)

        collected, size = with_smaller_batches(run, samples.batch_size, options)
        if not (collected.padded and collected.layers):
            return collected, size, padding
        settled = settle_padding(work, samples, collected.padded, padding=padding, **common)
        return passed(settled) if settled.inverted != padding.inverted else (collected, size, settled)

    return passed(Padding(options.padding))


def is_exact(options: CollectOptions) -> bool:
    """Whether moments need products in float64: for a strength that multiplies rounding, or for later use with any."""
    strength = getattr(options, "alpha", math.inf)
    return strength != "auto" and float(strength) > FLOAT32_ALPHA


def limits_of(options: CollectOptions) -> Limits:
    """Return what the moments may take; there is no limit where there is no such setting."""
    if not isinstance(options, MemoryOptions):
        return Limits()
    if options.max_rows is not None and ranks.size() > 1:
        raise UsageError(
            f"max_rows is {options.max_rows} for {ranks.size()} processes, but rows are drawn in one; omit it, or give "
            "memory"
        )
    sets = 1 + bool(getattr(options, "beside", False))  # the moments of unlabelled inputs take as much again
    sets += isinstance(options, CorrectOptions) and ProjectJittered in planned(options).stages  # and those of copies
    return Limits(options.memory_bytes, options.max_rows, options.seed, sets)


def prepare(
    work: nn.Module,
    where: torch.device,
    samples: Samples,
    options: CorrectOptions,
    folds: Sequence[Sequence[int]],
    saved: SavedMoments | None,
    digest: str,
    stored_as: Mapping[str, torch.dtype],
) -> Context:
    """Run the one pass over all samples.

    Parameters
    ----------
    work, where
        The working copy, and its device.
    samples
        The verified samples.
    options
        The settings.
    folds
        Indices of the samples of each fold.
    saved
        Moments of earlier samples, or None.
    digest
        Digest of the uncorrected model; see `model_digest`.
    stored_as
        Dtypes, by parameter name, to round new weights to.

    Returns
    -------
    Context
        To fit on all samples.

    Raises
    ------
    NoLayersError
        If no layer can be corrected.
    """
    selection = selection_of(options.include, options.exclude)

    collected, size, padding = collect_and_try(work, where, samples, folds, options)
    if len(folds) > 1 and size > max(map(len, folds)):  # batches of the pass never cross folds, and those of stages do
        some = range(min(size, len(samples)))
        _, size = with_smaller_batches(lambda n: predict(work, samples, some, n, where), size, options)
    if not collected.layers:
        raise NoLayersError(_nothing_to_correct(collected))
    earlier: dict[Layer, Moments] = {}
    if saved is not None:
        earlier = saved.checked(saved.origin or "the saved moments", digest, collected, where)

    how = (size, where, selection, padding, stored_as, options.seed, is_exact(options), limits_of(options))
    frugal = options.memory is not None or not is_choosing(options)  # a single strength has nothing to share
    trains = any(stage.trains for stage in planned(options).stages)
    each = float(sum(multiplications(work, samples, [0], where))) if trains else 0.0
    collected = collected if frugal else collected.sharing()
    return Context(Run(work, samples, folds, collected, earlier, *how, frugal, each), range(len(folds)))


def check_alike(provenance: Mapping[str, Any], samples: Samples) -> None:
    """Refuse processes of one run that have other weights, samples, settings or versions than the first one."""
    order = hashlib.sha256(b"".join(samples.digests) + samples.labels.numpy().tobytes()).digest()
    names = {"model_sha256": "weights", "samples_sha256": "samples", "verifix": "version of verifix", "torch": "torch"}
    names["unlabelled_sha256"] = "unlabelled inputs"
    what = {name: provenance[key] for key, name in names.items() if key in provenance} | {"order of the samples": order}
    what["settings"] = {key: provenance[key] for key in provenance if key not in {*names, "device"}}
    ranks.check_alike(what, "give all processes the same model, all verified samples in one order, and one call")


def check_enough(samples: Samples, options: CorrectOptions) -> None:
    """Refuse fewer samples than the settings need, and samples that were picked but pass for verified."""
    picked, needed, choosing = options.origin == "trusted", minimum_samples(options), is_choosing(options)
    check_picked(samples, options.origin)
    if len(samples) < needed:
        more = "pick more" if picked else "verify more"
        alternative = f"{more}, or give alpha as a number" if choosing else more
        raise DataError(
            f"{len(samples)} {'trusted' if picked else 'verified'} sample{'s' * (len(samples) != 1)}, but "
            f"{'choosing a strength' if choosing else 'a correction'} needs at least {needed}; {alternative}"
        )


def check_picked(samples: Samples, verified_from: str | None) -> None:
    """Refuse samples that were picked but pass for verified."""
    if samples.source.picked_by and verified_from != "trusted":
        raise UsageError(
            f"verified_from is {verified_from!r}, but these samples were picked by {samples.source.picked_by} "
            "and nobody verified them; it must be 'trusted'"
        )


def check_classes(samples: Samples, outputs: int, options: CorrectOptions) -> dict[str, list[int]]:
    """Count the samples of each class; refuse to choose from samples of one class.

    Parameters
    ----------
    samples
        The verified samples.
    outputs
        Number of logits per sample.
    options
        The settings.

    Returns
    -------
    dict
        "class_samples", a count for each class, and "classes_without_samples".

    Raises
    ------
    DataError
        If a strength is to be chosen from samples of a single class: forgetting all others would look perfect.
    """
    there = set(samples.labels.tolist())
    if len(there) == 1 and is_choosing(options):
        raise DataError(
            f"all {len(samples)} verified samples have the label {there.pop()}, and a strength chosen from one class "
            "would favour it; verify samples of every class"
        )
    counts = torch.bincount(samples.labels, minlength=max(outputs, 2)).tolist()
    absent = [label for label, count in enumerate(counts) if not count]
    return {"classes_without_samples": absent, "class_samples": counts}


def _nothing_to_correct(collected: Collected) -> str:
    if not collected.accounts:
        return "the model has no weight matrix at all; there is nothing to correct"
    reasons = "; ".join(
        f"{a.parameter} {a.status}{' (' + a.reason + ')' if a.reason else ''}" for a in collected.accounts[:3]
    )
    return f"no layer of the model can be corrected: {reasons}; see 'verifix inspect'"


def describe(
    model: nn.Module,
    samples: Samples,
    options: CorrectOptions,
    *,
    earlier: bool,
    unlabelled: Unlabelled | None = None,
) -> dict[str, Any]:
    """Return versions, digests and settings.

    Parameters
    ----------
    model
        The model with its original weights, before it has run.
    samples
        The verified samples.
    options
        The settings.
    earlier
        Whether moments of earlier samples are added.
    unlabelled
        Inputs beside the samples.

    Returns
    -------
    dict
        Plain data; the same for the same inputs, so it holds no time and no host.
    """
    picked = {"picked_by": samples.source.picked_by} if samples.source.picked_by else {}
    return {
        "verifix": version("verifix"),
        "torch": torch.__version__,
        "model_sha256": model_digest(model),
        "samples": len(samples),
        "samples_sha256": samples.digest(),
        **({"groups": len(set(samples.groups.tolist()))} if samples.declared else {}),
        "earlier_moments": earlier,
        **({} if unlabelled is None else unlabelled.about()),
        **options.as_dict(),
        **picked,
    }

"""Pick samples whose given label is probably right, for users who have no verified samples.

There are three rankings. Each gives every sample a score (lower = more trusted), and the best samples of each class are
picked, the same number from each. The result is not a verified set: some of its labels are wrong, and nothing that is
measured on it estimates accuracy on new data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import Subset

from verifix.errors import DataError, UsageError, one_line
from verifix.io.optional_imports import library
from verifix.losses import cross_entropy, probabilities
from verifix.model.batching import with_smaller_batches
from verifix.model.borrow import check_model, seeded
from verifix.model.outputs import understood
from verifix.model.predict import logits_in, predict
from verifix.model.run import Forward, out_of_memory, run_model, to_device
from verifix.model.samples import Samples, read_samples
from verifix.model.sources import Batch, Source
from verifix.model.steady import check_steady
from verifix.model.threads import one_thread, threads_for
from verifix.model.work import work_of
from verifix.model.wrappers import unwrapped
from verifix.options import TRUST_METHODS, TRUSTED_COUNT, ForwardArguments, RunOptions, require, takes, whole
from verifix.preflight import check_outputs, working_copy
from verifix.progress import progress_bar

DRAWS = 10
"""Random directions z per sample; each takes one forward and one backward pass."""

STEP = 1e-3
"""How far along z the gradient is taken again, in units of the model's inputs."""


@dataclass(frozen=True, eq=False)
class Trusted:
    """Samples that were picked because their given label is probably right; nobody verified them.

    Attributes
    ----------
    indices
        Indices of the picked samples, ascending; for a DataLoader, positions among the samples that it draws, in the
        order of its dataset.
    labels
        Their given labels, int64 ``[len(indices)]``.
    scores
        Scores of *all* samples, float64 ``[n]``, lower = more trusted: cross-entropy in nats; squared change of the
        gradient; or 1 − normalised margin, with 1 added for samples that cleanlab calls issues (never picked).
    method
        How samples were ranked.
    shortfall
        For each class with too few samples to pick from, how many are missing.
    source
        The picked samples, to be given to `verifix.correct` with ``verified_from="trusted"``.
    """

    indices: list[int]
    labels: Tensor
    scores: Tensor
    method: str
    shortfall: dict[int, int]
    source: Source = field(repr=False)

    @property
    def per_class(self) -> dict[int, int]:
        """Number of picked samples per class; 0 for a class without any."""
        return dict(sorted((dict.fromkeys(self.shortfall, 0) | Counter(self.labels.tolist())).items()))

    def as_dict(self) -> dict[str, Any]:
        """Return as plain data: method, count, and the number of picked and missing samples per class."""
        return {
            "method": self.method,
            "count": len(self.indices),
            "per_class": {str(label): count for label, count in self.per_class.items()},
            "shortfall": {str(label): count for label, count in self.shortfall.items()},
        }

    def summary(self) -> str:
        """Describe what was picked in one or two lines of text."""
        lines = [
            f"{len(self.indices)} of {len(self.scores)} samples trusted by {self.method}; nobody verified their labels."
        ]
        if self.shortfall:
            few = [f"class {label} lacks {count}" for label, count in list(self.shortfall.items())[:10]]
            lines.append(f"Too few samples to pick from: {', '.join(few)}{', …' * (len(self.shortfall) > 10)}.")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class TrustArguments(ForwardArguments, RunOptions):
    """What `verifix.trust` takes."""

    method: str = "low-loss"
    """How to rank. "low-loss": cross-entropy of the given label. "low-curvature": mean over 10 random sign vectors z of
    ‖∇ₓℓ(x + h z) − ∇ₓℓ(x)‖², h = 0.001, with ℓ the cross-entropy of the given label and ∇ₓ its gradient with respect to
    all floating inputs. "confident": confident learning of cleanlab on the model's probabilities; samples that it calls
    issues are left out, the others go by normalised margin."""
    count: int = TRUSTED_COUNT
    """How many to pick in all, the same number of each class that occurs; if that does not divide, the lowest classes
    get one more. A class with too few falls short, and no other takes its place."""

    def __post_init__(self) -> None:
        """Check what can be checked without data."""
        super().__post_init__()
        allowed = f"one of {', '.join(map(repr, TRUST_METHODS))}"
        require(self.method in TRUST_METHODS, "method", self.method, allowed)
        require(whole(self.count, 2), "count", self.count, "a whole number of 2 or more")


@takes(TrustArguments)
def trust(model: nn.Module, data: Any, settings: TrustArguments) -> Trusted:
    """Pick samples whose given label is probably right, for a correction without verified samples.

    Parameters
    ----------
    model
        The trained classifier, as `verifix.correct` takes it. It is borrowed: a copy is run, in eval mode.
    data
        Labelled samples, such as the training set with its wrong labels: a DataLoader, a Dataset, or a pair of tensors
        ``inputs [n, ...]``, ``labels [n]``.
    settings
        Each is a keyword argument. The random vectors of a sample depend on nothing but its input and `seed`.

    Returns
    -------
    Trusted
        The picked samples, and the scores of all.

    Raises
    ------
    UsageError
        If an argument is invalid, `count` is smaller than the number of classes, or cleanlab is missing.
    DataError
        If samples do not fit the model, or the curvature cannot be computed: no floating-point input, or half
        precision.

    Notes
    -----
    Selecting trusted samples replaces verification in SAP (arXiv 2403.08618 v2). The curvature is that of
    Garg, Ravikumar and Roy, "Memorization through the lens of curvature of loss function around samples"
    (arXiv 2307.05831), who average it over all epochs of training; here, only the final model is available. Confident
    learning: Northcutt, Jiang and Chuang (arXiv 1911.00068). It expects probabilities of models that have not seen the
    sample; those of a network that has memorised its labels show few issues.

    Examples
    --------
    >>> import torch, verifix
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> trusted = verifix.trust(model, (torch.randn(200, 4), torch.arange(200) % 2), count=60, progress=False)
    >>> trusted.per_class
    {0: 30, 1: 30}
    >>> fixed = verifix.correct(model, trusted.source, verified_from="trusted", alpha=100.0, progress=False)
    """
    rank = RANKINGS[settings.method]
    model = unwrapped(model)
    check_model(model)
    with torch.inference_mode(False), seeded(settings.seed), one_thread():
        samples = read_samples(data, settings.batch_size, settings.progress, settings.forward)
        if len(samples) < 2:
            raise DataError("there is 1 sample to pick from; give the labelled samples that the model was trained on")
        classes = len(samples.labels.unique())
        if settings.count < classes:
            raise UsageError(
                f"count is {settings.count}, but the data has {classes} classes; trust at least one sample of each"
            )
        with working_copy(model, settings) as (work, where):
            check_steady(model, work, where, samples)
            check_outputs(model, work, where, samples)
            samples, _ = understood(work, samples, where, settings.outputs)
            with threads_for(partial(work_of, work, samples, where)):
                scores, eligible = rank(work, where, samples, settings)
    indices, shortfall = choose(scores, samples.labels, eligible, samples.digests, settings.count)
    source = replace(
        samples.source,
        dataset=Subset(samples.source.dataset, indices),
        batch_size=samples.batch_size,
        picked_by=settings.method,
    )
    return Trusted(indices, samples.labels[indices], scores, settings.method, shortfall, source)


def choose(
    scores: Tensor, labels: Tensor, eligible: Tensor, digests: Sequence[bytes], count: int
) -> tuple[list[int], dict[int, int]]:
    """Pick the samples with the lowest scores, the same number of each class.

    Parameters
    ----------
    scores
        ``[n]``, lower = more trusted.
    labels
        int64 ``[n]``.
    eligible
        bool ``[n]``: False for samples that are never picked.
    digests
        One per input. They settle equal scores, so that the order of the samples does not.
    count
        How many in all, at least one per class.

    Returns
    -------
    indices : list of int
        The picked samples, ascending.
    shortfall : dict
        For each class with too few, how many are missing.
    """
    classes = labels.unique().tolist()
    each, more = divmod(count, len(classes))
    indices: list[int] = []
    shortfall: dict[int, int] = {}
    for place, label in enumerate(classes):
        wanted = each + (place < more)
        candidates = ((labels == label) & eligible).nonzero().flatten().tolist()
        found = sorted(candidates, key=lambda i: (float(scores[i]), digests[i]))[:wanted]
        indices += found
        if len(found) < wanted:
            shortfall[label] = wanted - len(found)
    return sorted(indices), shortfall


def _by_loss(work: nn.Module, where: torch.device, samples: Samples, options: RunOptions) -> tuple[Tensor, Tensor]:
    """Rank by the cross-entropy of the given label, in nats: one pass."""

    def losses(batch: Sequence[int], size: int) -> Tensor:
        return cross_entropy(predict(work, samples, batch, size, where), samples.labels[batch])

    return _of_all(losses, samples, options), torch.ones(len(samples), dtype=torch.bool)


def _by_confident_learning(
    work: nn.Module, where: torch.device, samples: Samples, options: RunOptions
) -> tuple[Tensor, Tensor]:
    """Rank by 1 − normalised margin, and leave out what cleanlab calls issues: one pass."""
    find, rank = (library(f"cleanlab.{name}", "cleanlab", "label-errors") for name in ("filter", "rank"))

    def run(batch: Sequence[int], size: int) -> Tensor:
        return probabilities(predict(work, samples, batch, size, where))

    pair = samples.labels.numpy(), _of_all(run, samples, options).numpy()
    issues = torch.from_numpy(find.find_label_issues(*pair, n_jobs=1))
    margins = torch.from_numpy(rank.get_label_quality_scores(*pair, method="normalized_margin"))
    return 1 - margins + issues.double(), ~issues


def _by_curvature(work: nn.Module, where: torch.device, samples: Samples, options: RunOptions) -> tuple[Tensor, Tensor]:
    """Rank by the squared change of the loss's gradient along random directions: 11 passes forward and backward."""
    for parameter in work.parameters():
        if parameter.is_leaf:  # those of a scripted part are not, once copied
            parameter.requires_grad_(False)
    _refuse_half(work.parameters(), "the model's weights")

    def curvatures(indices: Sequence[int], size: int) -> Tensor:
        (batch,) = samples.batches(indices, size)
        inputs = to_device(batch.inputs, where)
        generators = [
            np.random.default_rng([options.seed, int.from_bytes(samples.digests[i], "big")]) for i in batch.indices
        ]
        return curvature(
            work, replace(batch, inputs=inputs, labels=batch.labels.to(where)), generators, samples.forward
        )

    with _precisely(work, where):
        return _of_all(curvatures, samples, options), torch.ones(len(samples), dtype=torch.bool)


RANKINGS: dict[str, Callable[[nn.Module, torch.device, Samples, RunOptions], tuple[Tensor, Tensor]]] = {
    "low-loss": _by_loss,
    "low-curvature": _by_curvature,
    "confident": _by_confident_learning,
}
"""Each method: ``(copy of the model, device, samples, options) → scores [n], eligible [n]``."""


def _of_all(score: Callable[[Sequence[int], int], Tensor], samples: Samples, options: RunOptions) -> Tensor:
    """Score all samples batch by batch, ``[n, ...]`` in their order; in smaller batches if memory runs out."""

    def run(size: int) -> Tensor:
        with progress_bar("scoring samples", len(samples), options.progress) as bar:
            parts = []
            for start in range(0, len(samples), size):
                batch = range(start, min(start + size, len(samples)))
                parts.append(score(list(batch), size))
                bar.update(len(batch))
        return torch.cat(parts)

    return with_smaller_batches(run, samples.batch_size, options)[0]


def curvature(
    model: nn.Module, batch: Batch, generators: Sequence[np.random.Generator], forward: Forward | None = None
) -> Tensor:
    """Measure how fast the loss's gradient turns around each sample.

    Parameters
    ----------
    model
        The model, in eval mode, so that samples of a batch do not depend on each other.
    batch
        n samples on the model's device.
    generators
        One per sample, from which its vectors z are drawn: signs in the shape of its floating inputs.
    forward
        As in `Samples`.

    Returns
    -------
    Tensor
        Mean over `DRAWS` vectors z of ‖∇ₓℓ(x + h z) − ∇ₓℓ(x)‖², h = `STEP`: float64 ``[n]`` on the CPU.

    Raises
    ------
    DataError
        If no input is floating, or one is in half precision, or the gradient cannot be taken or is not finite.
    """
    leaves, form = tree_flatten(batch.inputs)
    moved = [k for k, x in enumerate(leaves) if _can_move(x, len(batch.labels))]
    if not moved:
        raise DataError(
            "low-curvature perturbs floating inputs, and these samples have none (token ids cannot be perturbed); "
            "use low-loss or confident"
        )
    _refuse_half([leaves[k] for k in moved], "the inputs")

    def gradient(signs: Sequence[Tensor | float]) -> list[Tensor]:
        at = [(leaves[k] + STEP * z).requires_grad_() for k, z in zip(moved, signs, strict=True)]
        # The model gets copies, which it may overwrite, unlike the leaves of a graph.
        entering = dict(zip(moved, [x.clone() for x in at], strict=True))
        inputs = tree_unflatten([entering.get(k, x) for k, x in enumerate(leaves)], form)
        logits = logits_in(run_model(model, inputs, forward), len(batch.labels))
        return _gradients(cross_entropy(logits.double(), batch.labels).sum(), at)

    total = torch.zeros(len(batch.labels), dtype=torch.float64)
    with torch.enable_grad():
        here = gradient([0.0] * len(moved))
        for _ in range(DRAWS):
            there = gradient(_signs([leaves[k] for k in moved], generators))
            for a, b in zip(here, there, strict=True):
                total += (b.double() - a.double()).square().flatten(1).sum(1).cpu()
    if not torch.isfinite(total).all():
        raise DataError("the gradient of the loss with respect to the inputs is not finite; use low-loss or confident")
    return total / DRAWS


def _gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a loss by every input; zeros for those that it does not depend on."""
    remedy = "low-curvature cannot be computed; use low-loss or confident"
    if not loss.requires_grad:
        raise DataError(f"the model's output has no gradient with respect to its inputs, so {remedy}")
    try:
        return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        line = one_line(error)
        raise DataError(f"the model has no gradient with respect to its inputs ({line}), so {remedy}") from error


def _signs(inputs: Sequence[Tensor], generators: Sequence[np.random.Generator]) -> list[Tensor]:
    """Draw −1 or 1, evenly, for every number of every sample: one tensor per input."""
    # Sample by sample, so that neither the order of samples nor the size of batches has a part in it.
    drawn = [[generator.integers(0, 2, tuple(x.shape[1:]), np.int8) for x in inputs] for generator in generators]
    return [
        torch.from_numpy(2 * np.stack([signs[k] for signs in drawn]) - 1).to(x.device, x.dtype)
        for k, x in enumerate(inputs)
    ]


def _can_move(x: object, count: int) -> bool:
    """Tell whether something is a floating tensor with one entry per sample."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return False
    return x.layout is torch.strided and not x.is_nested and x.ndim > 0 and len(x) == count


@contextmanager
def _precisely(work: nn.Module, where: torch.device) -> Iterator[None]:
    """Multiply float32 as float32: over a step of `STEP`, faster and coarser products are mostly rounding."""
    cudnn = torch.backends.cudnn
    recurrent = any(isinstance(module, nn.RNNBase) for module in work.modules())
    matmul = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(where.type, enabled=False))
        if matmul != "highest":
            stack.callback(torch.set_float32_matmul_precision, matmul)
            torch.set_float32_matmul_precision("highest")
        if where.type == "cuda":
            # Without the recurrent layers of cuDNN, which have no gradient in eval mode.
            kept = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
            stack.enter_context(cudnn.flags(enabled=cudnn.enabled and not recurrent, allow_tf32=False, **kept))
        yield


def _refuse_half(tensors: Any, what: str) -> None:
    """Refuse precisions in which a step of `STEP` is lost."""
    for x in tensors:
        if x.is_floating_point() and x.element_size() < 4:
            name = str(x.dtype).removeprefix("torch.")
            raise DataError(
                f"{what} are {name}, in which a step of {STEP} is lost, so low-curvature cannot be computed; give "
                "the model and its inputs in float32"
            )

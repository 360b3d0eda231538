"""Rank samples by how likely their given label is correct: by loss, by curvature, by confident learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from verifix.errors import DataError, one_line
from verifix.io.optional_imports import library
from verifix.losses import cross_entropy, probabilities
from verifix.model.predict import logits_in, predict
from verifix.model.run import Forward, out_of_memory, run_model, to_device
from verifix.model.samples import Samples
from verifix.model.sources import Batch
from verifix.options import RunOptions
from verifix.selection.score_files import run_through
from verifix.storage.chunks import Arrays, Chunks

DRAWS = 10
"""Random directions z per sample; each takes one forward and one backward pass."""

STEP = 1e-3
"""How far along z the gradient is taken again, in units of the model's inputs."""


def _by_loss(
    work: nn.Module, where: torch.device, samples: Samples, options: RunOptions, chunks: Chunks
) -> tuple[Tensor, Tensor]:
    """Rank by the cross-entropy of the given label, in nats: one pass."""

    def losses(batch: Sequence[int], size: int) -> Tensor:
        return cross_entropy(predict(work, samples, batch, size, where), samples.labels[batch])

    return _of_all(losses, samples, options, chunks), torch.ones(len(samples), dtype=torch.bool)


def _by_confident_learning(
    work: nn.Module, where: torch.device, samples: Samples, options: RunOptions, chunks: Chunks
) -> tuple[Tensor, Tensor]:
    """Rank by 1 − normalised margin, and leave out what cleanlab calls issues: one pass."""
    find, rank = (library(f"cleanlab.{name}", "cleanlab", "label-errors") for name in ("filter", "rank"))

    def run(batch: Sequence[int], size: int) -> Tensor:
        return probabilities(predict(work, samples, batch, size, where))

    pair = samples.labels.numpy(), _of_all(run, samples, options, chunks).numpy()
    issues = torch.from_numpy(find.find_label_issues(*pair, n_jobs=1))
    margins = torch.from_numpy(rank.get_label_quality_scores(*pair, method="normalized_margin"))
    return 1 - margins + issues.double(), ~issues


def _by_curvature(
    work: nn.Module, where: torch.device, samples: Samples, options: RunOptions, chunks: Chunks
) -> tuple[Tensor, Tensor]:
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
        return _of_all(curvatures, samples, options, chunks), torch.ones(len(samples), dtype=torch.bool)


RANKINGS: dict[str, Callable[[nn.Module, torch.device, Samples, RunOptions, Chunks], tuple[Tensor, Tensor]]] = {
    "low-loss": _by_loss,
    "low-curvature": _by_curvature,
    "confident": _by_confident_learning,
}
"""Each method: ``(copy of the model, device, samples, options, chunks) → scores [n], eligible [n]``."""


def _of_all(
    score: Callable[[Sequence[int], int], Tensor], samples: Samples, options: RunOptions, chunks: Chunks
) -> Tensor:
    """Score all samples, ``[n, ...]`` in their order."""

    def scored(batch: Sequence[int], size: int) -> Arrays:
        return {"scores": score(batch, size).numpy()}

    return torch.from_numpy(run_through(scored, samples, options, chunks)["scores"])


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

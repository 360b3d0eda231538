"""The linear layers that a classifier ends with: which they are, what they see, and fitting them to labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from verifix.capture.interceptor import Sink, intercepting
from verifix.capture.layer import Bias, Layer, read_matrix
from verifix.capture.selection import Selection
from verifix.losses import cross_entropy, probabilities
from verifix.model.borrow import one_blas_thread
from verifix.model.predict import as_logits
from verifix.model.run import run_model, to_device
from verifix.recipe.candidates import Grid
from verifix.recipe.context import Context

ITERATIONS = 200
"""Most steps of L-BFGS. Weak pulls take the most; what is left then changes no prediction that was sure."""

TOLERANCE = 1e-3
"""How far logits may lie from what a head would give, relative to their size: float32 networks round."""


PULLS = Grid(1e-5, 1.0, (0.5,))
"""Strengths λ of the pull: below is a fit without one, above hardly a fit. λ means the same for every network."""


@dataclass(frozen=True)
class Head:
    """The last linear layer: logits = features · Wᵀ + b, or plus a fixed offset where it has no bias of its own.

    Attributes
    ----------
    layer, bias
        The layer, and its bias or None.
    features
        What it sees, ``[n, d]``, float64 on the CPU: of the context's samples, under its current weights.
    offset
        What is added to the products, ``[outputs]``.
    beyond
        What of that is not the layer's own bias, such as a prior of the classes, ``[outputs]``.
    """

    layer: Layer
    bias: Bias | None
    features: Tensor
    offset: Tensor
    beyond: Tensor


def find_head(context: Context) -> Head | None:
    """Find the layer whose products are the logits, up to an offset that is the same for all samples.

    A layer that is applied to every token is the head if one of each sample's tokens gives its logits.

    Parameters
    ----------
    context
        The samples to look at, and the weights.

    Returns
    -------
    Head or None
        The last such layer; None if there is none among those that may be corrected.
    """
    outputs = context.predict(context.indices[:1], {}).shape[1]
    wide = [layer for layer in context.layers if read_matrix(layer, context.original).shape[:2] == (1, outputs)]
    logits, seen = watch(context, wide, context.indices)
    shifted = outputs > 1 and context.run.samples.outputs not in (None, "logits")  # logits but for a number per sample
    for layer in reversed(context.layers):
        if layer not in seen:
            continue
        products = seen[layer] @ read_matrix(layer, context.parameter)[0].cpu().mT  # [n, tokens, outputs]
        rest = logits[:, None] - products
        rest = rest - rest.mean(dim=2, keepdim=True) if shifted else rest
        offset = rest[0, _steadiest(rest)] if rest.shape[1] > 1 else rest[0, 0]
        distance = (rest - offset).abs().amax(dim=2)  # [n, tokens]
        token = distance.argmin(dim=1)
        size = float(logits.abs().amax()) + float(offset.abs().amax())
        if float(distance.amin(dim=1).max()) <= TOLERANCE * max(size, 1e-6):
            features = seen[layer][torch.arange(len(token)), token]
            bias = context.run.collected.biases.get(layer)
            own = 0.0 if bias is None else bias.view(context.parameter(bias.parameter)).double().cpu()
            offset = offset + own.mean() if shifted and isinstance(own, Tensor) else offset
            beyond = offset - own
            return Head(layer, bias, features, offset, beyond * (beyond.abs() > TOLERANCE * size))
    return None


def _steadiest(rest: Tensor) -> int:
    """Return the token of the first sample whose rest ``[n, tokens, outputs]`` comes back in the other samples."""
    gaps = (rest[1:, None] - rest[0][None, :, None]).abs().amax(dim=3).amin(dim=2)  # [n − 1, tokens of the first]
    return int(gaps.sum(dim=0).argmin())


def watch(context: Context, layers: Iterable[Layer], indices: Sequence[int]) -> tuple[Tensor, dict[Layer, Tensor]]:
    """Run some samples under the context's weights, and keep what some layers see.

    Parameters
    ----------
    context
        How to run, and the weights.
    layers
        The layers, without groups; all their rows are held.
    indices
        The samples.

    Returns
    -------
    logits : Tensor
        ``[n, outputs]``, float64 on the CPU.
    seen : dict
        For each layer that sees the same number of rows for every sample, ``[n, rows per sample, d_in]``.
    """
    kept: dict[Layer, list[Tensor]] = {layer: [] for layer in layers}

    def sink(layer: Layer, rows: Tensor) -> None:
        kept[layer].append(rows[0].detach().double().cpu())

    logits = _run(context, kept, indices, sink)
    seen = {layer: torch.cat(rows) for layer, rows in kept.items() if rows}
    return logits, {
        layer: rows.reshape(len(indices), -1, rows.shape[1])
        for layer, rows in seen.items()
        if len(rows) % len(indices) == 0
    }


def _run(context: Context, layers: Iterable[Layer], indices: Sequence[int], sink: Sink) -> Tensor:
    """Run samples while some layers are watched; return the logits ``[n, outputs]``."""
    run, logits, selection = context.run, [], Selection(only=frozenset(layers))
    with context.corrected() as model, intercepting(model, sink, selection, masked=False) as census:
        for batch in run.samples.batches(indices, run.batch_size):
            census.begin(len(batch.labels))
            output = run_model(model, to_device(batch.inputs, run.device), run.samples.forward)
            logits.append(as_logits(output, len(batch.labels)))
    return torch.cat(logits)


def fit_logistic(
    features: Tensor, labels: Tensor, towards: Tensor, pull: float, *, free_bias: bool, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression pulled towards given weights: convex, by L-BFGS in float64.

    Minimises the mean cross-entropy of features · Wᵀ + b plus pull / 2 · (s ‖W − W₀‖²_F + ‖b − b₀‖²), where s is the
    mean squared norm of the features: the pull then means the same whatever the features' scale.

    Parameters
    ----------
    features
        ``[n, d]``, float64.
    labels
        ``[n]``.
    towards
        W₀ ``[outputs, d]``; where it starts, too.
    pull
        Its strength, above 0.
    free_bias
        Whether b is fitted; else it stays `offset`.
    offset
        b₀ ``[outputs]``.

    Returns
    -------
    weight, bias : Tensor
        ``[outputs, d]`` and ``[outputs]``.
    """
    from scipy.optimize import minimize

    scale = float(features.square().sum(dim=1).mean()) or 1.0
    root, shape, count = scale**0.5, towards.shape, towards.numel()
    target = one_hot(labels, max(len(offset), 2))[:, -len(offset) :]

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.from_numpy(point)  # √s W, and b − b₀ where it is fitted: all of one scale
        away, beside = free[:count].reshape(shape) - towards * root, free[count:]
        logits = features @ free[:count].reshape(shape).mT / root + (offset + beside if free_bias else offset)
        loss = cross_entropy(logits, labels).mean() + pull / 2 * (away.square().sum() + beside.square().sum())
        residual = (probabilities(logits)[:, -len(offset) :] - target) / len(labels)  # of the mean loss by the logits
        slopes = [(residual.mT @ features / root + pull * away).flatten()]
        slopes += [residual.sum(dim=0) + pull * beside] if free_bias else []
        return float(loss), torch.cat(slopes).numpy()

    start = [(towards * root).flatten(), *([torch.zeros_like(offset)] if free_bias else [])]
    options = {"maxiter": ITERATIONS, "gtol": 1e-6, "ftol": 1e-9}
    with one_blas_thread():  # its products are too small for more
        found = minimize(objective, torch.cat(start).numpy(), jac=True, method="L-BFGS-B", options=options)
    best = torch.from_numpy(found.x)
    return best[:count].reshape(shape) / root, offset + best[count:] if free_bias else offset

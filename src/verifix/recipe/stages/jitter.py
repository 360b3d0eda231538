"""Random changes of inputs that their labels survive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from verifix.recipe.context import Context

SPREAD = 0.3
"""Standard deviation of the noise, relative to that of the inputs."""

SHIFT = 8
"""Images are shifted by up to one part in so many of their side."""

WEAK, STRONG = 0.05, 0.25
"""Standard deviations of the noise of a weak and of a strong change, relative to that of the inputs."""

SWAPPED = 0.2
"""Share of an input's numbers that a strong change takes from another one."""

CONTRAST = 0.4
"""A strong change of images scales their contrast by 1 − this to 1 + this, and moves their brightness by as much of the
standard deviation."""

Change = Callable[[Tensor, torch.Generator], Tensor]
"""(inputs ``[n, ...]``, what draws) → changed inputs; those given stay as they are."""


def jitter_for(context: Context, inputs: Any) -> Change | None:
    """Return how inputs may be changed.

    Parameters
    ----------
    context
        Whose model it is.
    inputs
        A batch; how far its numbers are spread decides how much noise is added.

    Returns
    -------
    callable or None
        For a model that begins with a 2-D convolution, flips and shifts of images; for other inputs that are one tensor
        with fractions, noise; None for all others, such as token ids.
    """
    if not _changeable(inputs):
        return None
    return flipped_and_shifted if _images(context, inputs) else partial(with_noise, deviation=SPREAD * inputs.std())


def weak_and_strong(context: Context, inputs: Any) -> tuple[Change, Change] | None:
    """Return a weak and a strong change of inputs; None where there is no jitter, see `jitter_for`."""
    if not _changeable(inputs):
        return None
    spread = inputs.std()
    if _images(context, inputs):
        return flipped_and_shifted, partial(distorted, spread=spread)
    return partial(with_noise, deviation=WEAK * spread), partial(swapped, deviation=STRONG * spread)


def _changeable(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and inputs.is_floating_point() and not inputs.is_nested


def _images(context: Context, inputs: Tensor) -> bool:
    """Tell whether inputs are images to the model: a 2-D convolution sees them first."""
    return inputs.ndim == 4 and bool(context.layers) and context.layers[0].kind == "conv2d"


def swapped(inputs: Tensor, generator: torch.Generator, *, deviation: float | Tensor) -> Tensor:
    """Take a part of each input's numbers from another one, and add normal noise of this standard deviation."""
    other = inputs[torch.randperm(len(inputs), generator=generator)]
    swap = (torch.rand(inputs.shape, generator=generator) < SWAPPED).to(inputs.device)
    return with_noise(torch.where(swap, other, inputs), generator, deviation=deviation)


def distorted(images: Tensor, generator: torch.Generator, *, spread: float | Tensor) -> Tensor:
    """Flip and shift images ``[n, c, h, w]``, change contrast and brightness, and paint a grey square on each."""
    moved = flipped_and_shifted(images, generator)
    middle = images.mean()
    factor, step = (2 * torch.rand(2, len(images), 1, 1, 1, generator=generator) - 1).to(images)
    changed = middle + (1 + CONTRAST * factor) * (moved - middle) + CONTRAST * step * spread
    square = torch.ones(len(images), 1, *images.shape[2:], dtype=torch.bool)
    for axis, side in enumerate(images.shape[2:], 2):
        centre = torch.randint(side, (len(images), 1, 1, 1), generator=generator)
        place = torch.arange(side).view([-1 if k == axis else 1 for k in range(4)])
        square &= (place - centre).abs() <= side // 4
    return torch.where(square.to(images.device), middle, with_noise(changed, generator, deviation=STRONG * spread))


def with_noise(inputs: Tensor, generator: torch.Generator, *, deviation: float | Tensor) -> Tensor:
    """Add normal noise of this standard deviation."""
    noise = torch.empty_like(inputs, device="cpu").normal_(generator=generator).to(inputs.device)
    return inputs + noise * deviation


def mixed(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix each input ``[n, ...]`` with another, and targets ``[n, classes]`` alike, in shares drawn evenly (mixup)."""
    other = torch.randperm(len(inputs), generator=generator)
    share = torch.rand(len(inputs), generator=generator)
    own = share.view(-1, *[1] * (inputs.ndim - 1)).to(inputs)
    soft = share[:, None].to(targets)
    return own * inputs + (1 - own) * inputs[other], soft * targets + (1 - soft) * targets[other]


def flipped_and_shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each image ``[c, h, w]`` left to right, or not, and shift it along both axes, with its edge repeated."""
    n, _, height, width = images.shape

    def drawn(below: int) -> Tensor:
        return torch.randint(below, (n,), generator=generator).to(images.device)

    rows, columns = (torch.arange(side, device=images.device).expand(n, side) for side in (height, width))
    columns = torch.where(drawn(2)[:, None].bool(), width - 1 - columns, columns)
    up, left = height // SHIFT, width // SHIFT
    rows = (rows + drawn(2 * up + 1)[:, None] - up).clamp(0, height - 1)
    columns = (columns + drawn(2 * left + 1)[:, None] - left).clamp(0, width - 1)
    of = torch.arange(n, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[of, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

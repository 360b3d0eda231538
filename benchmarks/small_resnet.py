"""A residual network for 32 × 32 images that is small enough to be trained on one core."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two convolutions with BatchNorm, and what came in added to what comes out.

    Parameters
    ----------
    before, after
        Channels.
    stride
        Of the first convolution.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, after, h, w]``."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class SmallResNet(nn.Module):
    """Seven convolutions of 3 × 3 in three stages (ResNet-8 of He et al., 2016), two of 1 × 1, and a linear layer.

    Parameters
    ----------
    classes
        Number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.conv = nn.Conv2d(3, first, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(first)
        self.stages = nn.Sequential(Block(first, first, 1), Block(first, second, 2), Block(second, third, 2))
        self.head = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[n, classes]``."""
        features: Tensor = self.stages(F.relu(self.bn(self.conv(x))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits

"""The shared table of layer cases, and the slow, obvious definitions they are tested against."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from verifix.capture.collect import add_rows, check_rows
from verifix.capture.interceptor import intercepting
from verifix.capture.kinds import RowMask
from verifix.capture.layer import read_matrix, write_matrix
from verifix.capture.selection import Selection
from verifix.model.borrow import borrowed
from verifix.projection import prepare

ALPHAS = (1.0, 10.0, 1e2, 1e4, 1e6)
CHANNELS, SIZE = 4, 5


@dataclass(frozen=True)
class ConvCase:
    dims: int
    stride: int
    dilation: int
    groups: int
    padding: int | str
    mode: str

    def build(self) -> nn.Module:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.dims - 1]
        kernel = (3, 2, 1)[: self.dims]
        return kind(
            CHANNELS,
            2 * CHANNELS,
            kernel,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
            padding=self.padding,
            padding_mode=self.mode,
            dtype=torch.float64,
        ).eval()

    def inputs(self, samples: int) -> torch.Tensor:
        return torch.randn(samples, CHANNELS, *[SIZE] * self.dims, dtype=torch.float64)

    def __str__(self) -> str:
        return f"{self.dims}d-s{self.stride}-d{self.dilation}-g{self.groups}-p{self.padding}-{self.mode}"


CONVOLUTIONS = [
    ConvCase(*values)
    for values in itertools.product(
        (1, 2, 3),
        (1, 2),
        (1, 2),
        (1, 2, CHANNELS),
        (0, 1, "same", "valid"),
        ("zeros", "reflect", "replicate", "circular"),
    )
    if not (values[1] == 2 and values[4] == "same")
]


class Bare(nn.Module):
    """A weight that no layer module owns, and that is used as one half of a larger parameter."""

    def __init__(self, d_in: int = 6, d_out: int = 4) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.randn(2 * d_out, d_in, dtype=torch.float64))
        self.whole = nn.Parameter(torch.randn(d_out, d_out, dtype=torch.float64))

    def forward(self, x):
        first, _ = self.both.chunk(2)
        return F.linear(F.linear(x, first).relu(), self.whole)


def one_hot_rows(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The rows of a convolution, column by column: what a filter that is 1 in one place and 0 elsewhere gives out."""
    groups, width = conv.groups, conv.weight[0].numel()
    probe = type(conv)(
        conv.in_channels,
        groups * width,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=groups,
        bias=False,
        padding_mode=conv.padding_mode,
        dtype=x.dtype,
    )
    with torch.no_grad():
        probe.weight.copy_(torch.eye(width, dtype=x.dtype).repeat(groups, 1).reshape(probe.weight.shape))
        out = probe(x)  # [samples, groups * width, *positions]
    return out.unflatten(1, (groups, width)).movedim(2, -1).movedim(1, 0).reshape(groups, -1, width)


def slow_projection(weight: torch.Tensor, rows: torch.Tensor, alpha: float) -> torch.Tensor:
    """W P by its definition: one group, one eigendirection at a time."""
    result = torch.empty_like(weight)
    for g in range(len(weight)):
        x = rows[g]
        if not x.any():
            result[g] = weight[g]
            continue
        _, singular, directions = torch.linalg.svd(x, full_matrices=True)
        total = sum(float(s) ** 2 for s in singular)
        p = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        for i, s in enumerate(singular):
            r = float(s) ** 2 / total
            importance = alpha * r / ((alpha - 1) * r + 1)
            p += importance * torch.outer(directions[i], directions[i])
        result[g] = weight[g] @ p
    return result


def captured(model: nn.Module, *batches: torch.Tensor, keep=None, selection=None) -> tuple[dict, object]:
    """Moments by layer, and the census."""
    table: dict = {}

    def sink(layer, rows):
        add_rows(table, layer, rows)

    with borrowed(model), intercepting(model, sink, selection or Selection()) as census:
        for batch in batches:
            census.begin(len(batch))
            census.batch.keep = None if keep is None else RowMask(keep)
            model(batch)
    check_rows(table)
    return table, census


def projected(model: nn.Module, table: dict, alpha: float, dual: bool | None = None) -> dict[str, torch.Tensor]:
    """New values of all parameters that have moments."""
    parameters = dict(model.named_parameters())
    update: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for layer, moments in table.items():
            for name in layer.parameters:
                update.setdefault(name, parameters[name].detach().clone())
            factors = prepare(read_matrix(layer, parameters.__getitem__), moments, dual=dual)
            write_matrix(layer, update, factors.project(alpha))
    return update


def tolerance(alpha: float, weight: torch.Tensor) -> float:
    return max(1e-12, 10 * alpha * 2.2e-16) * float(weight.norm())


def small_net(bn: bool = True, classes: int = 3, d_in: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(d_in, 16),
        *([nn.BatchNorm1d(16)] if bn else []),
        nn.ReLU(inplace=True),
        nn.Linear(16, 16),
        nn.ReLU(inplace=True),
        nn.Linear(16, classes),
    )


def small_data(n: int = 80, classes: int = 3, d_in: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % classes
    centres = 2 * torch.randn(classes, d_in, generator=generator).roll(1, 0)  # so that `small_net` is mostly right
    return centres[labels] + torch.randn(n, d_in, generator=generator), labels

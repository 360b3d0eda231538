"""An independent reference: rows as the operators below all of torch's functions see them, projected by definition.

It knows no layer kinds. It watches products of matrices and convolutions of single operators, follows every copy of a
parameter element by element, and multiplies by P from an SVD. Slow, obvious, and shared by all tests of layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cases import slow_projection

aten = torch.ops.aten


class Watch(TorchDispatchMode):
    """Collects, for every set of parameter elements that forms a weight matrix, the rows it multiplies."""

    def __init__(self, model: nn.Module, mask: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.origin: dict[int, tuple[str, Tensor]] = {}  # storage → parameter, and which element each place holds
        self.alive: list[Tensor] = []
        self.found: dict[tuple[str, bytes], tuple[Tensor, list[Tensor]]] = {}
        self.mask = mask or (lambda rows: rows)
        self.parameters = dict(model.named_parameters())
        for name, parameter in self.parameters.items():
            places = torch.full((parameter.untyped_storage().nbytes() // parameter.element_size(),), -1)
            own = torch.arange(parameter.numel()).reshape(parameter.shape)
            places.as_strided(parameter.shape, parameter.stride(), parameter.storage_offset()).copy_(own)
            self.origin[parameter.untyped_storage().data_ptr()] = (name, places)

    def elements(self, x: Tensor) -> tuple[str, Tensor] | None:
        """Which elements of which parameter a tensor holds, if it holds any."""
        known = self.origin.get(x.untyped_storage().data_ptr())
        if known is None:
            return None
        return known[0], known[1].as_strided(x.shape, x.stride(), x.storage_offset())

    def note(self, weight: Tensor, rows: Tensor) -> None:
        """``rows [n, d_in]`` were multiplied by ``weight [d_out, d_in]``."""
        name, elements = self.elements(weight)  # type: ignore[misc]
        key = (name, elements.sort().values.contiguous().numpy().tobytes())
        self.found.setdefault(key, (elements.clone(), []))[1].append(self.mask(rows.detach().clone()))

    def product(self, left: Tensor, right: Tensor) -> None:
        of_left, of_right = self.elements(left), self.elements(right)
        if of_right is not None and of_left is None:
            self.note(right.mT, left)
        elif of_left is not None and of_right is None:
            self.note(left, right.mT)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket
        if name in (aten.mm, aten.addmm):
            self.product(*args[-2:])
        elif name is aten.mv:
            self.product(args[0], args[1][:, None])
        elif name in (aten.bmm, aten.baddbmm):
            for left, right in zip(*args[-2:], strict=True):
                self.product(left, right)
        elif name is aten.convolution and self.elements(args[1]) is not None:
            self.convolution(*args)
        elif name is aten._trilinear and self.elements(args[1]) is not None:
            left, weight, right = args[0].squeeze(1), args[1].squeeze(0), args[2].squeeze(1)
            rows = torch.einsum("ni,nj->nij", left.flatten(1), right.flatten(1)).flatten(1)
            self.note(weight.flatten(1), rows)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and name in (aten.clone, aten._unsafe_view, aten._to_copy, aten.cat, aten.stack):
            self.copied(args[0] if isinstance(args[0], Tensor) else list(args[0]), result)
        return result

    def copied(self, source: Tensor | list[Tensor], result: Tensor) -> None:
        if isinstance(source, list) or result.untyped_storage().data_ptr() in self.origin:
            return
        known = self.elements(source)
        if known is not None and source.numel() == result.numel():
            places = torch.full((result.untyped_storage().nbytes() // result.element_size(),), -1)
            places.as_strided(result.shape, result.stride(), result.storage_offset()).copy_(
                known[1].reshape(result.shape)
            )
            self.origin[result.untyped_storage().data_ptr()] = (known[0], places)
            self.alive.append(result)

    def convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        transposed: bool,
        out: Any,
        groups: int,
    ) -> None:
        if transposed:
            for part, filters in zip(x.chunk(groups, 1), weight.chunk(groups), strict=True):
                self.note(filters.flatten(1).T, part.movedim(1, -1).flatten(0, -2))
            return
        conv = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
        for part, filters in zip(x.chunk(groups, 1), weight.chunk(groups), strict=True):
            width = filters[0].numel()
            probes = torch.eye(width, dtype=x.dtype).reshape(width, *filters.shape[1:])
            rows = conv(part, probes, None, stride, padding, dilation)
            self.note(filters.flatten(1), rows.movedim(1, -1).flatten(0, -2))


def reference(
    model: nn.Module,
    run: Callable[[nn.Module], Any],
    alpha: float,
    skip: tuple[str, ...] = (),
    mask: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """A copy of the model with every weight matrix that `run` multiplies replaced by W P(α)."""
    work = copy.deepcopy(model).eval()
    fast, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with torch.no_grad(), Watch(work, mask) as watch:
            run(work)
        for (name, _), (elements, rows) in watch.found.items():
            if any(part in name for part in skip):
                continue
            parameter = watch.parameters[name]
            weight = parameter.detach().flatten()[elements].double()
            new = slow_projection(weight[None], torch.cat(rows).double()[None], alpha)[0]
            with torch.no_grad():
                flat = parameter.detach().clone().flatten()
                flat[elements.flatten()] = new.flatten().to(flat.dtype)
                parameter.copy_(flat.reshape(parameter.shape))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = mkldnn  # type: ignore[assignment]
    return work

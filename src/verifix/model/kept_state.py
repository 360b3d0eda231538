"""What a model keeps beside its parameters while it runs: attributes, buffers, and the content of containers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module, which are no state of a model's own."""


@contextmanager
def state_kept(model: nn.Module) -> Iterator[list[str]]:
    """Give a model's attributes, buffers and containers back what they held, whatever runs meanwhile.

    Parameters
    ----------
    model
        The model.

    Yields
    ------
    list of str
        At the end, the names of all that had changed.
    """
    before = {name: _Held(module) for name, module in model.named_modules()}
    changed: list[str] = []
    try:
        yield changed
    finally:
        for name, held in before.items():
            changed += [f"{name}.{attribute}".lstrip(".") for attribute in held.give_back()]


class _Held:
    """What one module holds now.

    Parameters
    ----------
    module
        The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own = {name: value for name, value in vars(module).items() if name not in OF_TORCH}
        self.buffers = dict(module._buffers.items())
        self.contents = {name: _content(value) for name, value in {**self.own, **self.buffers}.items()}

    def give_back(self) -> list[str]:
        """Restore all of it, and return the names of what was something else."""
        table, now = vars(self.module), dict(self._now())
        changed = [name for name in now if name not in self.contents or now[name] is not self._held(name)]
        for name in now.keys() - self.own.keys() - self.buffers.keys():
            table.pop(name, None)
        table.update(self.own)
        if isinstance(self.module._buffers, dict):  # not so in a scripted part, which keeps its own
            self.module._buffers.clear()
            self.module._buffers.update(self.buffers)
        same = [name for name in self.contents if name not in changed]
        return changed + [name for name in same if _restored(self._held(name), self.contents[name])]

    def _now(self) -> Iterator[tuple[str, Any]]:
        yield from ((name, value) for name, value in vars(self.module).items() if name not in OF_TORCH)
        yield from self.module._buffers.items()

    def _held(self, name: str) -> Any:
        return self.own[name] if name in self.own else self.buffers.get(name)


def _content(value: Any) -> Any:
    """Return a copy of what a container or a plain tensor holds; None for all else, which nothing can write into."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.layout is torch.strided and not value.is_nested else None
    return value.copy() if type(value) in (dict, list, set) else None


def _restored(value: Any, content: Any) -> bool:
    """Write a copied content back, and tell whether it was needed."""
    if content is None:
        return False
    if isinstance(value, Tensor):
        if value.shape == content.shape and torch.equal(value, content):
            return False
        value.data = content
        return True
    same = len(value) == len(content) and all(a is b for a, b in zip(value, content, strict=True))
    if same and (not isinstance(value, dict) or all(value[key] is content[key] for key in content)):
        return False
    value.clear()
    value.extend(content) if isinstance(value, list) else value.update(content)
    return True

"""A copy of the user's model to run, on the device wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from verifix.model.borrow import borrowed
from verifix.model.clone import copy_model
from verifix.model.tensors import device_named, device_of
from verifix.options import RunOptions


@contextmanager
def working_copy(model: nn.Module, options: RunOptions) -> Iterator[tuple[nn.Module, torch.device]]:
    """Copy the model and lend the copy; on success the copy ends on the device of the model, with its train flags."""
    home, work = device_of(model), copy_model(model)
    where = home if options.device == "auto" else device_named(str(options.device))
    if where != home:
        work.to(where)
    with borrowed(work):
        yield work, where
    if where != home:
        work.to(home)

"""What every call that runs a model begins with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from verifix.model import ranks
from verifix.model.borrow import seeded
from verifix.model.threads import one_thread


@contextmanager
def own_call(seed: int) -> Iterator[None]:
    """Work in the way of one call: errors shared by all processes, a seed of its own, and one thread at first.

    Inference mode of the caller is off: tensors made under it could not be trained, or hooked.

    Parameters
    ----------
    seed
        See `verifix.model.borrow.seeded`.
    """
    with ranks.sharing(), torch.inference_mode(False), seeded(seed), one_thread():
        yield

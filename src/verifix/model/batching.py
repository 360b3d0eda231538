"""Batch sizes: the user's own, or one that memory allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from verifix.errors import AmbiguousBatchError, VerifixError
from verifix.model.run import out_of_memory
from verifix.model.sources import DEFAULT_BATCH_SIZE
from verifix.options import RunOptions
from verifix.progress import note

T = TypeVar("T")


def with_smaller_batches(run: Callable[[int], T], own: int | None, options: RunOptions | None = None) -> tuple[T, int]:
    """Run with the batch size wanted; halve it for as long as memory runs out, unless `options` fix it."""
    size, fixed = own or DEFAULT_BATCH_SIZE, options is not None and options.batch_size != "auto"
    while True:
        try:
            return run(size), size
        except AmbiguousBatchError:  # noqa: PERF203 - what is tried costs far more
            if fixed or size == 1:
                raise
            size -= 1  # any other size tells samples from tokens
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if fixed or size == 1:
                raise VerifixError(
                    f"memory ran out with batches of {size}; lower batch_size or memory, or exclude wide layers"
                ) from error
            note(f"memory ran out with batches of {size}; trying {size // 2}")
            size //= 2

"""How many threads compute, and how they wait for each other. Importable before torch, for what has to precede it.

OpenMP splits an operation among threads, and each of them waits at the end for the others. By default they wait by
spinning. On a machine that is shared, a spinning thread can hold the very processor that the late thread needs, until
the scheduler takes it away milliseconds later: small operations then take up to a hundred times longer. Two measures
help. Idle threads sleep instead (`wait_passively`), which must be set before torch is imported; and work that is too
small to be split runs on one thread (`threads_for`).

The number of threads depends on the work, the processors and the user's settings, never on the load: floating-point
results differ in their last digits with the number of threads, and the same call must give the same result.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

COUNT_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a user sets the number of threads of torch."""

BLAS_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
"""Those by which a user sets the number of threads of numpy and scipy."""

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Environment variables by which a user sets how threads wait."""

PER_THREAD = 2**25
"""Multiply-adds of an operation that are worth a thread of their own: about a millisecond on one core."""

EVERY_PROCESSOR = 2**29
"""Multiply-adds of an operation from which on all processors are used; below, one is left to other processes."""

ROOT = Path("/")


def wait_passively() -> None:
    """Let idle threads sleep instead of spin, unless the user has set how they wait or torch is already imported."""
    if "torch" not in sys.modules and not any_set(WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


@contextmanager
def threads_for(work: Callable[[], float]) -> Iterator[None]:
    """Compute with the number of threads that suits the work, for as long as the context lasts.

    A number that the user has set stays: with OMP_NUM_THREADS or MKL_NUM_THREADS, or with ``torch.set_num_threads``,
    which is recognised by a number that torch does not start with; see `starting_counts`.

    Parameters
    ----------
    work
        Returns the multiply-adds of an average operation. It is called inside the context, on one thread, and only if
        there is something to choose.

    Yields
    ------
    None
    """
    import torch

    with _count_outside(torch.get_num_threads) as outside:
        most = min(outside, available_processors())
        if outside == 1 or set_by_user(outside):
            yield
            return
        before = _CHOSEN.get() or outside
        try:
            torch.set_num_threads(1)
            count = suitable_count(work(), most) if most > 1 else 1
            token = _CHOSEN.set(count)
            torch.set_num_threads(count)
            try:
                yield
            finally:
                _CHOSEN.reset(token)
        finally:
            torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as `threads_for` does for small work: before the work is known, or between."""
    with threads_for(lambda: 0.0):
        yield


def suitable_count(work: float, processors: int) -> int:
    """Return how many threads suit some work.

    Parameters
    ----------
    work
        Multiply-adds of an average operation.
    processors
        How many there are.

    Returns
    -------
    int
        One thread per `PER_THREAD` multiply-adds, from 1 up to all processors but one; up to all of them from
        `EVERY_PROCESSOR` multiply-adds on.
    """
    most = processors if work >= EVERY_PROCESSOR else processors - 1
    return max(1, min(most, int(work // PER_THREAD)))


def set_by_user(count: int, root: Path = ROOT) -> bool:
    """Tell whether a number of threads is the user's own rather than the one that torch starts with."""
    return any_set(COUNT_VARIABLES) or count not in starting_counts(root)


def any_set(variables: Iterable[str]) -> bool:
    """Tell whether any of some environment variables is set."""
    return any(os.environ.get(name) for name in variables)


def starting_counts(root: Path = ROOT) -> set[int]:
    """Return the numbers of threads that torch may start with: logical processors, and physical cores for MKL.

    Parameters
    ----------
    root
        Where the file system begins. Without Linux' ``/sys`` the physical cores are not known.

    Returns
    -------
    set of int
        Only processors count that this process may run on.
    """
    allowed = allowed_processors()
    names = [root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list" for number in allowed]
    cores = {_text(name) for name in names}
    return {len(allowed)} if "" in cores else {len(allowed), len(cores)}


def available_processors(root: Path = ROOT) -> int:
    """Return how many processors this process may use, by its affinity mask and the quotas of its control groups."""
    return max(1, int(min(len(allowed_processors()), *_quotas(root), math.inf)))


def allowed_processors() -> set[int]:
    """Return the numbers of the processors that the affinity mask of this process allows."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _quotas(root: Path) -> Iterator[float]:
    """Return the processors that each control group around this process grants, in version 2 and 1 of them."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / ("sys/fs/cgroup/cpu" if controllers else "sys/fs/cgroup")
        own = mount / path.lstrip("/")
        # A container may see its own group as the root of the mount, whatever path it has outside.
        for folder in (own, *own.parents)[: len(own.parts) - len(mount.parts) + 1]:
            yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    both = _text(folder / "cpu.max").split()
    if not both:
        both = [_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    quota, period = both
    if quota not in ("", "max", "-1"):
        yield int(quota) / int(period)


def _text(path: Path) -> str:
    """Return the text of a file without the white space around it; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


_LOCK = threading.Lock()
_USERS: list[int] = []
"""For every open context the number of threads outside of all of them."""

_CHOSEN: ContextVar[int | None] = ContextVar("threads that the enclosing context chose", default=None)


@contextmanager
def _count_outside(current: Callable[[], int]) -> Iterator[int]:
    """Yield the number of threads outside of all contexts, also where other threads of Python have changed it."""
    # A new thread of Python starts with the number that was set last, which may be another context's choice.
    with _LOCK:
        outside = _USERS[0] if _USERS else current()
        _USERS.append(outside)
    try:
        yield outside
    finally:
        with _LOCK:
            _USERS.pop()

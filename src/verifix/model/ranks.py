"""The processes that share one run: what each does, and how they agree. Only this module uses torch.distributed.

Every process runs the same program on the same samples, so that most of it needs no thought: what is cheap is done by
all alike. What is expensive is split (`share`, `spread`), and its results are put together in the order of the samples.

Whatever is exchanged is a pair of a value and an error. A process that fails sends its error in place of the value that
the others wait for, wherever they are, so that all of them raise the same error at once and none waits for ever.
"""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

from verifix.errors import UsageError, VerifixError, one_line
from verifix.progress import quiet

T = TypeVar("T")
P = TypeVar("P")
S = TypeVar("S", bound=Sized)

_ALIKE: ContextVar[bool] = ContextVar("what runs here runs in every process", default=False)


class LostError(VerifixError):
    """Another process has ended, or does not take part."""

    exit_code = 1


def size() -> int:
    """Return how many processes share the run; 1 without a process group."""
    group = torch.distributed
    return int(group.get_world_size()) if group.is_available() and group.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(torch.distributed.get_rank()) if size() > 1 else 0


def common_store() -> Any:
    """Return what all processes that torchrun has started can read and write."""
    from torch.distributed.rendezvous import rendezvous

    return next(iter(rendezvous("env://")))[0]


@contextmanager
def joined(store: Any, own: int, count: int, *, gpu: bool) -> Iterator[None]:
    """Connect this process with the others for as long as the context lasts.

    Parameters
    ----------
    store
        What all processes can read and write.
    own, count
        The number of this process, and how many there are.
    gpu
        Whether each has a GPU; tensors on the CPU are exchanged by gloo in any case.

    Yields
    ------
    None
    """
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=own, world_size=count)
    yield
    torch.distributed.destroy_process_group()  # after an error the others may be gone, and it would wait for them


def share(weights: Sequence[int], count: int | None = None, own: int | None = None) -> range:
    """Return which of some parts are those of a process: neighbours, each part in one process, of like weight.

    Parameters
    ----------
    weights
        How much work each part is.
    count, own
        How many processes there are, and which one is asked for; by default, those of this run.

    Returns
    -------
    range
        Places in `weights`; the ranges of all processes follow each other.
    """
    count, own = size() if count is None else count, rank() if own is None else own
    total = sum(weights)
    middles = [end - weight / 2 for weight, end in zip(weights, itertools.accumulate(weights), strict=True)]
    owners = [max(0, math.ceil(count * middle / total) - 1) if total else 0 for middle in middles]
    return range(sum(owner < own for owner in owners), sum(owner <= own for owner in owners))


def mine(parts: Sequence[S]) -> list[S]:
    """Return those of some parts that `spread` gives to this process if each weighs what it is long."""
    return [parts[place] for place in share(list(map(len, parts)))]


def spread(work: Callable[[P], T], parts: Sequence[P], weights: Sequence[int]) -> list[T]:
    """Do some work on every part, each in one process, and return all results, in the order of the parts.

    Parameters
    ----------
    work
        What to do. Its results are sent to the other processes, so they should be small, and on the CPU.
    parts
        The parts.
    weights
        How much work each of them is.

    Returns
    -------
    list
        One result per part, in every process.
    """
    with sharing():
        own = [work(parts[place]) for place in share(weights)]
        return list(itertools.chain.from_iterable(exchange(own)))


def exchange(value: T) -> list[T]:
    """Return what each process gives, in the order of their numbers; raise the error of the first that sent one."""
    return _exchange(value, None)


def sum_of_all(tensor: Tensor) -> Tensor:
    """Return the sum of one tensor of each process, all of one shape; may write to it."""
    if size() > 1:
        exchange(None)  # so that nobody adds up while another one reports an error
        with _connected():
            torch.distributed.all_reduce(tensor)
    return tensor


def from_first(value: T) -> T:
    """Return what the first process gives: for what may differ, such as times, where all must decide alike."""
    return exchange(value if rank() == 0 else None)[0]  # type: ignore[return-value]  # that of the first is a value


def only_first(work: Callable[[], object]) -> None:
    """Do some work in the first process alone, such as writing a file; the others wait, and share its error."""
    with sharing():
        if rank() == 0:
            work()


@contextmanager
def sharing() -> Iterator[None]:
    """Share the errors of what all processes do: what one of them raises, all raise. The first one alone speaks.

    Yields
    ------
    None
    """
    if size() == 1:
        yield
        return
    try:
        with quiet(on=rank() > 0):
            yield
    except Exception as error:
        if not getattr(error, "from_ranks", False):
            _exchange(None, error)
        raise
    _exchange(None, None)


@contextmanager
def alike() -> Iterator[None]:
    """Mark what runs in every process on the same samples, so that it is counted once; see `counts`."""
    token = _ALIKE.set(True)
    try:
        yield
    finally:
        _ALIKE.reset(token)


def counts() -> bool:
    """Tell whether this process counts what runs now; what all do alike, the first one counts."""
    return not _ALIKE.get() or rank() == 0


def check_alike(
    what: Mapping[str, object], remedy: str = "give all processes the same model, samples and settings"
) -> None:
    """Refuse processes that were not given the same.

    Parameters
    ----------
    what
        What must be the same, by its name.
    remedy
        What to do.

    Raises
    ------
    UsageError
        Naming what differs, in all processes.
    """
    everyone = exchange(dict(what))
    for number, one in enumerate(everyone):
        for name in what:
            if one[name] != everyone[0][name]:
                raise _shared(UsageError(f"process {number} has other {name} than process 0; {remedy}"))


def _exchange(value: Any, error: Exception | None) -> list[Any]:
    """Send a value or an error to all processes; return their values, or raise the error of the first that has one."""
    if size() == 1:
        return [value]
    pairs: list[Any] = [None] * size()
    with _connected():
        torch.distributed.all_gather_object(pairs, (value, None if error is None else _portable(error)))
    for number, (_, found) in enumerate(pairs):
        if found is not None:
            raise _shared(error if error is not None and number == rank() else found)
    return [value for value, _ in pairs]


def _shared(error: Exception) -> Exception:
    """Mark an error that all processes raise."""
    error.from_ranks = True  # type: ignore[attr-defined]
    return error


def _portable(error: Exception) -> Exception:
    """Return an error that another process can read."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - it has just been made here
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {one_line(error)}")
    return error


@contextmanager
def _connected() -> Iterator[None]:
    """Turn the loss of another process into one line."""
    try:
        yield
    except RuntimeError as error:
        raise _shared(
            LostError(
                f"the exchange with another process of this run failed ({one_line(error, 120)}): it has ended, or it "
                "never made this call; see what it has said, and start all processes again"
            )
        ) from None

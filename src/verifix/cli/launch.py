"""Start as one of several processes, as torchrun starts them. Importable before torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TextIO

from verifix.errors import UsageError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of the environment by which torchrun tells a process that it is one of several."""

TOLD = "verifix/told/{}"
"""Key of the store of all processes, by restart, under which they count who has spoken."""


@dataclass
class Launch:
    """Which of several processes this is.

    Attributes
    ----------
    rank, size
        Its number, and how many there are.
    local_rank, local_size
        The same among the processes of its machine.
    stderr
        Where the first error of all processes is written.
    store
        What all processes can read and write; None before it is connected.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    stderr: TextIO
    store: Any = None

    def connect(self) -> Any:
        """Return the store of all processes."""
        if self.store is None:
            from verifix.model.ranks import common_store

            self.store = common_store()
        return self.store

    def speaks_first(self) -> bool:
        """Tell whether no other process has reported an error; also if that cannot be found out."""
        with suppress(Exception):
            count: int = self.connect().add(TOLD.format(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), 1)
            return count == 1
        return True

    def report(self, line: str) -> None:
        """Write an error, unless another process has reported one: it is the same, or the cause of this one."""
        if self.speaks_first():
            self.stderr.write(f"\n{line}")  # the bar of another process may stand in the last line
            self.stderr.flush()


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """Return which of several processes this is; None if it is the only one.

    Parameters
    ----------
    environment
        Its variables.

    Returns
    -------
    Launch or None
        The numbers.

    Raises
    ------
    UsageError
        If a variable is no whole number.
    """
    if any(not environment.get(name) for name in NEEDED):
        return None
    try:
        rank, size = (int(environment[name]) for name in NEEDED[:2])
        local_rank, local_size = (int(environment.get(f"LOCAL_{name}", environment[name])) for name in NEEDED[:2])
    except ValueError:
        raise UsageError(
            f"RANK is {environment['RANK']!r} and WORLD_SIZE {environment['WORLD_SIZE']!r}; they must be whole "
            "numbers, as torchrun sets them"
        ) from None
    return Launch(rank, size, local_rank, local_size, sys.stderr) if size > 1 else None


def silence() -> None:
    """Let this process print nothing, but for what C libraries write to standard error, and tracebacks if wanted."""
    nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - it stays open
    os.dup2(nowhere.fileno(), 1)
    sys.stdout = nowhere
    if not os.environ.get("VERIFIX_TRACEBACK"):
        sys.stderr = nowhere


@contextmanager
def launched(launch: Launch, command: Any) -> Iterator[None]:
    """Run a command as one of several processes.

    Parameters
    ----------
    launch
        Which one.
    command
        The settings of the command.

    Yields
    ------
    None

    Raises
    ------
    UsageError
        If the command runs in one process only, or there are more processes than GPUs.
    """
    from verifix.model import ranks

    if not command.shared:
        name = type(command).__name__.removesuffix("Command").lower()
        raise UsageError(f"verifix {name} runs in one process; start it without torchrun")
    gpu = _takes_gpu(command.device, launch)
    with ranks.joined(launch.connect(), launch.rank, launch.size, gpu=gpu), ranks.sharing():
        yield


def _takes_gpu(wanted: str, launch: Launch) -> bool:
    """Take a GPU for this process if GPUs are wanted: "cuda" then is the one with the number of the process."""
    import torch

    gpus = torch.cuda.device_count()
    if not wanted.startswith("cuda") and (wanted != "auto" or not gpus):
        return False
    if wanted.startswith("cuda:"):
        raise UsageError(f"--device is {wanted!r} for {launch.size} processes; give cuda, and each takes its own GPU")
    if launch.local_size > gpus:
        raise UsageError(
            f"there are {launch.local_size} processes and {gpus} GPU{'s' * (gpus != 1)} on this machine; start "
            "torchrun with --nproc-per-node gpu, or give --device cpu"
        )
    torch.cuda.set_device(launch.local_rank)
    return True

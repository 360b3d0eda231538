"""Samples whose reading is counted, and processes that are killed while they read them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

from torch.utils.data import Dataset


class Counted(Dataset):
    """Samples that note which of them are read, and may kill the process at one of them."""

    def __init__(self, inputs: Sequence, labels: Sequence, deadly: int | None = None) -> None:
        self.inputs, self.labels = inputs, labels
        self.read: list[int] = []
        self.deadly = deadly

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        self.read.append(index)
        if len(self.read) == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inputs[index], self.labels[index]


def killed(run: Callable[[], object]) -> None:
    """Run in a child process, which has to be killed on the way."""
    pid = os.fork()
    if pid == 0:
        run()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

"""Folders of scores: a killed run goes on where it was, and only with the same model and samples."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import Dataset

import verifix
from tests.cases import small_data, small_net
from verifix.errors import UsageError
from verifix.model import reading
from verifix.storage import chunks

COUNT = 80


class Counted(Dataset):
    """Samples that note which of them are read, and may kill the process at one of them."""

    def __init__(self, deadly: int | None = None, shift: float = 0.0) -> None:
        self.inputs, self.labels = small_data(COUNT)
        self.inputs[40:] += shift
        self.read: list[int] = []
        self.deadly = deadly

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int):
        self.read.append(index)
        if len(self.read) == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inputs[index], self.labels[index]


@pytest.fixture(autouse=True)
def _as_if_there_were_many(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 16)
    monkeypatch.setattr(reading, "MEMORY_BYTES", 0)  # so that samples are read again to be run


def trusted(data, folder: Path | None = None, seed: int = 0) -> verifix.Trusted:
    torch.manual_seed(seed)
    where = None if folder is None else str(folder)
    return verifix.trust(small_net().eval(), data, count=30, batch_size=8, scores=where, progress=False)


def killed(folder: Path, deadly: int) -> None:
    """Run in a child process that is killed when it reads so many samples."""
    pid = os.fork()
    if pid == 0:
        trusted(Counted(deadly), folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("deadly", [1, 20, 50, COUNT, COUNT + 5, COUNT + 60])
def test_a_killed_run_goes_on_where_it_was(deadly, tmp_path):
    want = trusted(Counted())
    folder = tmp_path / "scores"
    killed(folder, deadly)
    finished = len(list(folder.glob("read-*.npz")))
    assert finished == min(deadly - 1, COUNT) // 16
    data = Counted()
    found = trusted(data, folder)
    assert torch.equal(found.scores, want.scores)
    assert found.indices == want.indices
    assert [path.name for path in folder.iterdir()] == ["scores-00000-of-00001.parquet"]
    table = pq.read_table(folder).to_pydict()
    assert table["score"] == want.scores.tolist()
    assert [i for i, picked in zip(table["sample"], table["picked"], strict=True) if picked] == want.indices
    assert table["label"] == data.labels.tolist()


def test_what_has_been_scored_is_not_run_again(tmp_path, monkeypatch):
    folder = tmp_path / "scores"
    with monkeypatch.context() as patch:
        patch.setattr(chunks.Chunks, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trusted(Counted(), folder)
    assert len(list(folder.glob("scores-*.npz"))) == len(list(folder.glob("read-*.npz"))) == COUNT // 16
    data = Counted()
    trusted(data, folder)
    assert len(data.read) < COUNT  # the first one of each chunk, and those that models are tried on


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: trusted(Counted(shift=1.0), folder), r"sample 48 has changed|sample 64 has changed"),
        (lambda folder: trusted(Counted(), folder, seed=1), "run with model_sha256"),
        (lambda folder: (folder / "mine.txt").touch() or trusted(Counted(), folder), "other files .mine.txt."),
        (lambda folder: trusted(Counted(), folder / "deeper" / "still"), "name a new folder"),
    ],
)
def test_chunks_of_something_else_are_refused(change, message, tmp_path):
    folder = tmp_path / "scores"
    killed(folder, COUNT + 60)
    with pytest.raises(UsageError, match=message) as error:
        change(folder)
    assert "\n" not in str(error.value)


def test_finished_scores_are_not_replaced(tmp_path):
    trusted(Counted(), tmp_path / "scores")
    before = (tmp_path / "scores" / "scores-00000-of-00001.parquet").read_bytes()
    with pytest.raises(UsageError, match="scores of a finished run"):
        trusted(Counted(), tmp_path / "scores")
    assert (tmp_path / "scores" / "scores-00000-of-00001.parquet").read_bytes() == before

"""Folders of scores: a killed run goes on where it was, and only with the same model and samples."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import verifix
from tests.cases import small_data, small_net
from tests.deadly import Counted, killed
from verifix.errors import UsageError
from verifix.model import reading
from verifix.storage import chunks

COUNT = 80


def counted(deadly: int | None = None, shift: float = 0.0) -> Counted:
    inputs, labels = small_data(COUNT)
    inputs[40:] += shift
    return Counted(inputs, labels, deadly)


@pytest.fixture(autouse=True)
def _as_if_there_were_many(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 16)
    monkeypatch.setattr(reading, "MEMORY_BYTES", 0)  # so that samples are read again to be run


def trusted(data, folder: Path | None = None, seed: int = 0) -> verifix.Trusted:
    torch.manual_seed(seed)
    where = None if folder is None else str(folder)
    return verifix.trust(small_net().eval(), data, count=30, batch_size=8, scores=where, progress=False)


@pytest.mark.parametrize("deadly", [1, 20, 50, COUNT, COUNT + 5, COUNT + 60])
def test_a_killed_run_goes_on_where_it_was(deadly, tmp_path):
    want = trusted(counted())
    folder = tmp_path / "scores"
    killed(lambda: trusted(counted(deadly), folder))
    finished = len(list(folder.glob("read-*.npz")))
    assert finished == min(deadly - 1, COUNT) // 16
    data = counted()
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
            trusted(counted(), folder)
    assert len(list(folder.glob("scores-*.npz"))) == len(list(folder.glob("read-*.npz"))) == COUNT // 16
    data = counted()
    trusted(data, folder)
    assert len(data.read) < COUNT  # the first one of each chunk, and those that models are tried on


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: trusted(counted(shift=1.0), folder), r"sample 48 has changed|sample 64 has changed"),
        (lambda folder: trusted(counted(), folder, seed=1), "run with model_sha256"),
        (lambda folder: (folder / "mine.txt").touch() or trusted(counted(), folder), "other files .mine.txt."),
        (lambda folder: trusted(counted(), folder / "deeper" / "still"), "name a new folder"),
    ],
)
def test_chunks_of_something_else_are_refused(change, message, tmp_path):
    folder = tmp_path / "scores"
    killed(lambda: trusted(counted(COUNT + 60), folder))
    with pytest.raises(UsageError, match=message) as error:
        change(folder)
    assert "\n" not in str(error.value)


def test_finished_scores_are_not_replaced(tmp_path):
    trusted(counted(), tmp_path / "scores")
    before = (tmp_path / "scores" / "scores-00000-of-00001.parquet").read_bytes()
    with pytest.raises(UsageError, match="scores of a finished run"):
        trusted(counted(), tmp_path / "scores")
    assert (tmp_path / "scores" / "scores-00000-of-00001.parquet").read_bytes() == before

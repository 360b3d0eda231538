"""The command line under torchrun: one file, one voice, and an end soon when a process fails or is killed."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.rank_cases import errors_in, launched, noisy
from verifix.cli.main import main

MODEL = """
import os
import signal
import time
from pathlib import Path
from torch import nn
from verifix.storage import transaction

RANK, WHERE = os.environ.get("RANK", "0"), os.environ.get("WHERE", "")
HERE = Path(__file__).parent

def happen(place):
    what, rank, when = (WHERE.split() + ["", "", ""])[:3]
    if (rank, when) != (RANK, place):
        return
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fail":
        raise RuntimeError(f"bad luck in process {RANK}")

class Net(nn.Sequential):
    runs = 0

    def forward(self, x):
        Net.runs += 1
        happen(f"run{Net.runs}")
        return super().forward(x)

def build():
    print("building the network")
    happen("build")
    (HERE / f"pid{RANK}").write_text(str(os.getpid()))
    finish = transaction.Move.carry_out
    def carry_out(move):
        happen("write")
        if WHERE == "other":
            os.kill(int((HERE / "pid1").read_text()), signal.SIGKILL)
            time.sleep(20)  # until torchrun has noticed
        finish(move)
    transaction.Move.carry_out = carry_out
    return Net(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    import numpy as np

    (tmp_path / "net.py").write_text(MODEL)
    model, (x, y) = noisy(torch.float32)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    np.savez(tmp_path / "verified.npz", x=x.numpy(), y=y.numpy())
    (tmp_path / "out").mkdir()
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    return [
        *("verifix", "correct", "--model", f"py:{folder / 'net.py'}:build"),
        *("--checkpoint", str(folder / "net.safetensors"), "--verified", str(folder / "verified.npz")),
        *("--verified-from", "unseen", "--proof", "none", "--recipe", "verifix", "--batch-size", "16"),
        *("--out", str(folder / "out" / "fixed.safetensors"), "--result", str(folder / "out" / "result.json"), *more),
    ]


def test_the_first_process_writes_and_prints_what_one_process_would(folder):
    alone = launched(1, *words(folder))
    assert alone.returncode == 0, alone.stderr
    want = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    for path in (folder / "out").iterdir():
        path.unlink()
    result = launched(2, *words(folder))
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (folder / "out").iterdir()} == want.keys()
    for path in (folder / "out").glob("*.safetensors"):
        assert path.read_bytes() == want[path.name]
    assert _untimed(result.stdout) == _untimed(alone.stdout) != ""
    assert result.stderr.count("building the network") == 1
    results = [json.loads(text) for text in ((folder / "out" / "result.json").read_bytes(), want["result.json"])]
    assert results[0]["strengths"] == results[1]["strengths"]


def _untimed(text: str) -> str:
    return re.sub(r"[\d.]+ s\b", "… s", text)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["fail 1 build", "fail 1 run1", "fail 0 run1", "fail 1 run5"])
def test_what_fails_in_one_process_is_said_once_and_ends_all(where, folder):
    begun = time.monotonic()
    result = launched(2, *words(folder), WHERE=where)
    assert time.monotonic() - begun < 60
    assert result.returncode != 0
    (error,) = errors_in(result.stderr)
    assert f"bad luck in process {where.split()[1]}" in error
    assert list((folder / "out").iterdir()) == []
    assert result.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["kill 1 build", "kill 1 run5", "kill 0 run5", "other", "kill 0 write"])
def test_a_process_that_is_killed_leaves_all_or_nothing_and_the_others_end(where, folder):
    begun = time.monotonic()
    result = launched(2, *words(folder), WHERE=where)
    assert time.monotonic() - begun < 60
    assert result.returncode != 0
    (error,) = errors_in(result.stderr)
    assert "another" in error
    left = [path.name for path in (folder / "out").iterdir() if not path.name.startswith(".")]
    assert left == []
    assert main(words(folder, "--force")[1:]) == 0  # finishes or removes what was begun, and is not disturbed by it
    assert len(load_file(folder / "out" / "fixed.safetensors")) == 4
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "fixed.correction.safetensors",
        "fixed.safetensors",
        "result.json",
    ]


def test_what_cannot_be_shared_is_refused_once(folder):
    result = launched(2, "verifix", "undo", "fixed.safetensors", "--out", "o.safetensors")
    assert errors_in(result.stderr) == ["verifix: error: verifix undo runs in one process; start it without torchrun"]


def test_a_score_is_that_of_one_process_and_each_writes_its_own_samples(folder, monkeypatch):
    def words(name: str) -> list[str]:
        paths = "--data", str(folder / "verified.npz"), "--scores", str(folder / name), "--batch-size", "8", "--json"
        return ["score", str(folder / "net.safetensors"), "--model", f"py:{folder / 'net.py'}:build", *paths]

    alone = launched(1, "verifix", *words("one"))
    assert alone.returncode == 0, alone.stderr
    result = launched(2, "tests.rank_cases", "verifix", *words("two"))  # in chunks of 16
    assert result.returncode == 0, result.stderr
    assert result.stdout == alone.stdout
    one, two = (pq.read_table(folder / name) for name in ("one", "two"))
    assert two.equals(one)
    parts = [pq.read_table(path)["sample"].to_pylist() for path in sorted((folder / "two").iterdir())]
    assert parts == [list(range(64)), list(range(64, 120))]

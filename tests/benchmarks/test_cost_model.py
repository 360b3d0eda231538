"""The cost model of convolutions decides as it did when it was measured, and was right where that matters."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks.cost_model import OUT, TABLE, patches_of

from verifix.capture.kinds import lags

CLOSE = 1.1
"""Where the slower way takes no more than this times the faster, either decision will do."""

ROWS = json.loads(OUT.read_text(encoding="utf-8"))["geometries"]


def wrong() -> list[str]:
    """Geometries for which the slower way would be taken now, or another one than was recorded."""
    found = []
    for row in ROWS:
        with torch.device("meta"):
            now = patches_of(row["channels"], row["space"], row["kernel"]).worthwhile
        faster, slower = sorted((row["lags"], row["unfolded"]))
        right = now == (row["lags"] == faster) or slower <= CLOSE * faster
        if not right or now != row["worthwhile"]:
            found.append(f"{row['channels']} channels, {row['space']}, {row['kernel']}")
    return found


def test_the_faster_way_is_taken():
    assert [(row["channels"], tuple(row["space"]), row["kernel"]) for row in ROWS] == [*TABLE]
    assert {row["worthwhile"] for row in ROWS} == {True, False}
    assert wrong() == []


@pytest.mark.parametrize(("name", "value"), [("FEWEST_CHANNELS", 2), ("FEWEST_CHANNELS", 17), ("OVERHEAD", 10**8)])
def test_other_constants_would_be_noticed(name, value, monkeypatch):
    monkeypatch.setattr(lags, name, value)
    assert wrong()

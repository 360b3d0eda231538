"""Trainings that are robust to wrong labels: each against its formula, or where it has to equal the plain one."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from benchmarks.records import read
from benchmarks.robust_bases import (
    BASES,
    MEMORY,
    PLAIN,
    TASKS,
    TRUSTED,
    MentorMix,
    clipped,
    mixed_loss,
    summed_up,
    trained,
)
from torch import nn

from benchmarks import robust_bases
from tests.cases import small_data
from verifix.cli.demo.training import mlp, train

SETTINGS = {"epochs": 3, "rate": 0.01, "batch": 16, "seed": 4}


def data():
    x, y = small_data(64)
    return x.float(), y


def weights(base: str | None, seed: int = 4) -> dict[str, torch.Tensor]:
    model = mlp((8, 12, 3), seed, norm=True)
    made = train(model, *data(), **SETTINGS) if base is None else trained(base, model, *data(), **SETTINGS)
    assert not made.training
    return made.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_plain_training_is_that_of_the_demo():
    assert same(weights(None), weights("plain"))


@pytest.mark.slow
@pytest.mark.parametrize("base", [name for name in BASES if name != "plain"])
def test_every_other_training_comes_out_again_and_elsewhere(monkeypatch, base):
    monkeypatch.setattr(robust_bases, "NORM", 0.5)  # these logits are short
    found = weights(base)
    assert same(found, weights(base))
    assert not same(found, weights("plain"))
    assert all(torch.isfinite(value).all() for value in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "setting", "value"),
    [("SAM", "RADIUS", 0.0), ("LogitClip", "NORM", 1e9), ("label smoothing", "SMOOTHING", 0.0)],
)
def test_without_its_strength_a_training_is_the_plain_one(monkeypatch, base, setting, value):
    monkeypatch.setattr(robust_bases, setting, value)
    plain, found = weights("plain"), weights(base)
    passes = 2 if base == "SAM" else 1
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor * passes if name.endswith("tracked") else tensor)


def test_unmixed_samples_have_the_plain_loss_and_half_of_each_the_mean():
    (x, y), model = data(), nn.Linear(8, 3)
    one, other = (x[:4], y[:4]), (x[4:8], y[4:8])
    plain = nn.functional.cross_entropy(model(one[0]), one[1])
    torch.testing.assert_close(mixed_loss(model, one, other, torch.ones(4)), plain)
    half = model((one[0] + other[0]) / 2)
    both = [nn.functional.cross_entropy(half, labels) for labels in (one[1], other[1])]
    torch.testing.assert_close(mixed_loss(model, one, other, torch.full((4,), 0.5)), sum(both) / 2)


def test_logits_are_cut_to_a_norm_and_keep_their_direction():
    logits = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clipped(logits, 2.0), torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0]]))


def test_the_mentor_trusts_what_has_less_loss_than_most_had(monkeypatch):
    x, y = data()
    model = nn.Linear(8, 3)
    mentor = MentorMix(model, 0.01, 10, torch.Generator().manual_seed(0))
    seen = []
    monkeypatch.setattr(robust_bases, "mixed_loss", lambda _, one, other, share: seen.append((one, other, share)))
    levels = []
    for start in (0, 16, 32):
        batch = x[start : start + 16], y[start : start + 16]
        own = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none").tolist()
        rank = TRUSTED * 15
        low, high = sorted(own)[math.floor(rank)], sorted(own)[math.ceil(rank)]
        levels.append(low + (rank - math.floor(rank)) * (high - low))
        mentor.done = math.ceil(PLAIN * 10) if start else 0
        found = mentor.loss(*batch)
        assert (found is None) == (start > 0)  # the beginning is plain
    level = MEMORY * (MEMORY * levels[0] + (1 - MEMORY) * levels[1]) + (1 - MEMORY) * levels[2]
    assert mentor.level == pytest.approx(level, rel=1e-5)
    one, other, share = seen[-1]
    assert torch.equal(one[0], x[32:48])
    trusted = torch.tensor(own) <= level
    assert 0 < trusted.sum() < 16
    assert share[trusted].min() >= 0.5 >= share[~trusted].max()
    rows = {tuple(row.tolist()): int(label) for row, label in zip(*one, strict=True)}
    assert all(rows[tuple(row.tolist())] == int(label) for row, label in zip(*other, strict=True))


def test_sharpness_leaves_the_statistics_of_one_pass():
    x, y = data()
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    training = BASES["SAM"](model, 0.01, 10, torch.Generator())
    training.step(x, y)
    torch.testing.assert_close(model[0].running_mean, 0.1 * x.mean(0))
    assert model[0].momentum == 0.1


def test_a_quick_run_makes_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(robust_bases.TASKS, "digits", replace(TASKS["digits"], sizes=(50,)))
    words = ["digits", "--quick", "--bases", "mixup", "--tools", "verifix", "--out", str(tmp_path / "runs.jsonl")]
    assert robust_bases.main(words) == 0
    assert "| digits, mlp | 50 | mixup | 1 |" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "runs.json").read_text())["rows"]
    (record,) = read(tmp_path / "runs.jsonl")
    after = record["tools"]["verifix"]["after"]
    assert row["verifix"] == f"{after:.1f} ({after - record['before']:+.1f})"
    assert row["auto"] == ""


def test_the_table_has_means_over_seeds():
    common = {"task": "digits", "verified": 200, "base": "SAM", "learned": 90.0}
    scores = ((80.0, 90.0), (84.0, 89.0))
    rows = summed_up([common | {"before": before, "tools": {"auto": {"after": after}}} for before, after in scores])
    assert [(row["trained with"], row["seeds"], row["before"], row["auto"]) for row in rows] == [
        ("SAM", 2, 82.0, "89.5 (+7.5)")
    ]
